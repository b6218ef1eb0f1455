"""The same run on one device, on eight, on two processes of four: real processes."""

import json
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

from encnet_jax import Segmenter
from encnet_jax.distributed import connect_hosts
from encnet_jax.errors import UserError
from tests.commands import ROOT, SMALL, command, environment, make_camvid

# Sums over the batch are taken in another order: float32 keeps seven digits, and six
# steps of training let the last ones grow.
LOSS_TOLERANCE = 2e-5
WEIGHT_TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return make_camvid(tmp_path_factory.mktemp("camvid"))


def start(camvid, workdir, devices, *more):
    return subprocess.Popen(
        command(
            "train.py",
            "--config=configs/camvid.py:cpu",
            f"--config.data.data_dir={camvid}",
            f"--workdir={workdir}",
            *SMALL,
            "--config.batch_size=8",
            *more,
        ),
        cwd=ROOT,
        env={**environment(), "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(camvid, workdir, *more):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(camvid, workdir, 4, f"--distributed=localhost:{port},2,{number}", *more)
        for number in range(2)
    ]


def finish(process):
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    return stderr


def metrics(workdir, key):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def parameters(workdir):
    segmenter = Segmenter.from_workdir(workdir, "latest")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(segmenter._arrays)]


@pytest.fixture(scope="module")
def one_device(camvid, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    finish(start(camvid, workdir, 1))
    return workdir


def assert_same(expected, found):
    for key in ("loss", "se_loss", "aux_loss"):
        np.testing.assert_allclose(
            metrics(found, key), metrics(expected, key), rtol=LOSS_TOLERANCE
        )
    assert metrics(found, "mean_iou") == pytest.approx(
        metrics(expected, "mean_iou"), abs=0.01
    )
    for ours, theirs in zip(parameters(found), parameters(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=WEIGHT_TOLERANCE)


def test_eight_devices_train_as_one(one_device, camvid, tmp_path):
    finish(start(camvid, tmp_path / "run", 8))
    assert_same(one_device, tmp_path / "run")


def test_two_processes_of_four_devices_train_as_one_device(
    one_device, camvid, tmp_path
):
    first, second = start_two(camvid, tmp_path / "run")
    told, quiet = finish(first), finish(second)
    assert_same(one_device, tmp_path / "run")
    # Written and said once.
    assert metrics(tmp_path / "run", "step") == [1, 2, 3, 4, 5, 6, 6]
    assert "step 6/6" in told and "step 6" not in quiet


def test_host_that_dies_stops_the_others_within_a_minute(camvid, tmp_path):
    workdir = tmp_path / "run"
    first, second = start_two(
        camvid, workdir, "--config.total_steps=100000", "--config.eval_every=100000"
    )
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and len(path.read_text().splitlines()) >= 2):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    second.kill()
    second.communicate()
    died = time.monotonic()
    _, stderr = first.communicate(timeout=120)
    assert time.monotonic() - died < 60
    assert first.returncode != 0
    assert errors_in(stderr)[0].startswith("error: another host of the run is gone")
    assert "Traceback" not in stderr


def errors_in(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def test_no_cluster_is_one_line(camvid, tmp_path):
    process = start(camvid, tmp_path / "run", 1, "--distributed=auto")
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 2
    (line,) = errors_in(stderr)
    assert "--distributed=auto: allowed are auto (Cloud TPU" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["localhost", "localhost:1,2,2", "a:1,2"])
def test_bad_value_names_the_forms_that_are_allowed(value):
    with pytest.raises(UserError, match="--distributed=.*allowed are auto.*ADDRESS"):
        connect_hosts(value)
