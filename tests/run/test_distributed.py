"""The same run on one device, on eight, and on two processes of four devices."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from encnet_jax.errors import UserError
from encnet_jax.run.distributed import _report_failure, connect_hosts
from tests.commands import (
    ROOT,
    SMALL,
    environment,
    start,
    start_two,
    trained_arrays,
)

# Sums over the batch run in another order: float32 keeps seven digits. So mostly in
# later steps; but in a third of the runs rounding takes an activation across the kink
# of a ReLU, or max pooling to another pixel, and training amplifies that.
FIRST_TOLERANCE = 2e-6
LOSS_TOLERANCE = 1e-4
WEIGHT_TOLERANCE = 5e-4


def arguments(camvid, workdir, *more):
    return [
        "train.py",
        "--config=configs/camvid.py:cpu",
        f"--config.data.data_dir={camvid}",
        f"--workdir={workdir}",
        *SMALL,
        "--config.batch_size=8",
        "--config.learning_rate=0.001",
        *more,
    ]


def finish(process):
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    return stderr


def metrics(workdir, key):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


@pytest.fixture(scope="module", params=["files", "cached, accumulated"])
def one_device(request, camvid, tmp_path_factory):
    """Returns extra flags, and the workdir of a run with them on one device."""
    more = ["loss.class_balance=log"]
    if request.param == "cached, accumulated":
        # A micro-batch is one image per device.
        more = ["data.cache_on_device=True", "batch_size=16", "grad_accum_steps=2"]
    more = [f"--config.{setting}" for setting in more]
    workdir = tmp_path_factory.mktemp("one") / "run"
    finish(start(*arguments(camvid, workdir, *more), devices=1))
    return more, workdir


def assert_same(expected, found):
    for key in ("loss", "se_loss", "aux_loss"):
        ours, theirs = metrics(found, key), metrics(expected, key)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=FIRST_TOLERANCE)
        np.testing.assert_allclose(ours, theirs, rtol=LOSS_TOLERANCE)
    assert metrics(found, "mean_iou") == pytest.approx(
        metrics(expected, "mean_iou"), abs=0.01
    )
    for ours, theirs in zip(
        trained_arrays(found), trained_arrays(expected), strict=True
    ):
        np.testing.assert_allclose(
            ours, theirs, rtol=WEIGHT_TOLERANCE, atol=WEIGHT_TOLERANCE
        )


@pytest.mark.slow
def test_eight_devices_train_as_one(one_device, camvid, tmp_path):
    more, expected = one_device
    finish(start(*arguments(camvid, tmp_path / "run", *more), devices=8))
    assert_same(expected, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_two_processes_train_as_one_device(devices, one_device, camvid, tmp_path):
    more, expected = one_device
    run = arguments(camvid, tmp_path / "run", *more)
    first, second = start_two(*run, devices=devices)
    logged, quiet = finish(first), finish(second)
    assert_same(expected, tmp_path / "run")
    weights = [folder / "class_weights.json" for folder in (expected, tmp_path / "run")]
    assert weights[0].read_text() == weights[1].read_text()
    # Written and logged once.
    assert metrics(tmp_path / "run", "step") == [1, 2, 3, 4, 5, 6, 6]
    assert "step 6/6" in logged and "step 6" not in quiet


@pytest.mark.slow
def test_two_processes_start_from_the_weights_of_a_run(one_device, camvid, tmp_path):
    """Loaded arrays are on one device of each host."""
    more, trained = one_device
    more = [*more, f"--config.model.weights={trained}"]
    for name, devices in (("one", 1), ("two", 2)):
        run = arguments(camvid, tmp_path / name, *more)
        hosts = start_two(*run, devices=2) if devices == 2 else [start(*run)]
        for process in hosts:
            finish(process)
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.fixture
def endless(camvid, tmp_path):
    """Returns two processes that have taken some steps of many, and their workdir."""
    more = [f"--config.{key}=100000" for key in ("total_steps", "eval_every")]
    more += ["--config.data.cache_on_device=False"]  # files are read all the time
    processes = start_two(*arguments(camvid, tmp_path / "run", *more), devices=2)
    path, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and len(path.read_text().splitlines()) >= 2):
        assert processes[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    yield processes, tmp_path / "run"
    for process in processes:
        process.kill()
        process.communicate()


def ends_of(processes):
    """Returns exit codes and standard error of two processes, both within a minute."""
    began = time.monotonic()
    stderrs = [process.communicate(timeout=120)[1] for process in processes]
    assert time.monotonic() - began < 60
    return [(process.returncode, text) for process, text in zip(processes, stderrs)]


@pytest.mark.slow
def test_host_that_dies_stops_the_others_within_a_minute(endless):
    processes, _ = endless
    processes[1].kill()
    (code, stderr), _ = ends_of(processes)
    assert code == 1
    (line,) = errors_in(stderr)
    assert line.startswith("error: another host of the run is gone")
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_host_that_fails_says_why_and_stops_the_others_within_a_minute(endless, camvid):
    processes, _ = endless
    path = camvid / "train" / "0003.png"
    content = path.read_bytes()
    path.write_bytes(b"no image")
    try:
        ends = ends_of(processes)
    finally:
        path.write_bytes(content)
    # Either of them may have met it.
    lines = [line for _, stderr in ends for line in errors_in(stderr)]
    assert [line for line in lines if line.startswith(f"error: {path}: ")]
    codes = [code for code, _ in ends]
    assert 2 in codes and 0 not in codes


@pytest.mark.slow
def test_sigterm_to_one_host_saves_once_and_all_end_well(endless):
    processes, workdir = endless
    processes[1].send_signal(signal.SIGTERM)
    (code, stderr), (other, _) = ends_of(processes)
    assert code == other == 0, stderr
    (saved,) = [line for line in stderr.splitlines() if "SIGTERM: saved" in line]
    step = int(saved.split("step ")[1].split()[0])
    assert str(step) in os.listdir(workdir / "checkpoints")
    assert metrics(workdir, "step")[-1] == step


def errors_in(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def test_no_cluster_is_one_line(camvid, tmp_path):
    process = start(*arguments(camvid, tmp_path / "run"), "--distributed=auto")
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 2
    (line,) = errors_in(stderr)
    assert "--distributed=auto: allowed are auto (Cloud TPU" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "value",
    [
        *("localhost", "localhost:1,2,2", "a:1,2"),
        *("localhost:abc,1,0", "localhost:65536,1,0", "localhost:0,1,0", "8476,1,0"),
    ],
)
def test_bad_value_names_the_forms_that_are_allowed(value):
    with pytest.raises(UserError, match="--distributed=.*allowed are auto.*ADDRESS"):
        connect_hosts(value)


def test_sigterm_ends_an_evaluation_of_several_hosts():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    code = f"""
import os, signal
from encnet_jax.run.distributed import connect_hosts
connect_hosts("{address},1,0", ended_by_sigterm=True)
os.kill(os.getpid(), signal.SIGTERM)
"""
    result = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT)
    assert result.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (
            "FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed by peer",
            True,
        ),
        ("INTERNAL: NCCL operation ncclGroupEnd() failed", True),
        ("UNAVAILABLE: The tasks have crashed", True),
        ("INTERNAL: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False),
        ("RESOURCE_EXHAUSTED: Out of memory", False),
    ],
)
def test_only_errors_of_the_network_are_the_loss_of_a_host(text, lost, capsys):
    assert _report_failure(jax.errors.JaxRuntimeError(text)) == 1
    written = capsys.readouterr().err
    assert text in written
    assert ("another host of the run is gone" in written) == lost


def test_port_in_use_is_named():
    """JAX would end in a segmentation fault."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port}: Address"):
            connect_hosts(f"localhost:{port},1,0")
