"""Runs stopped, killed, locked out, or out of disk space: real processes."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import ClassVar

import numpy as np
import pytest

from encnet_jax.errors import UserError
from encnet_jax.run.lock import lock_workdir
from encnet_jax.train import train
from tests.commands import (
    ROOT,
    SMALL,
    command,
    environment,
    errors,
    run,
    trained_arrays,
)
from tests.interrupted import small_run_config, train_small


def train_arguments(camvid, workdir, *more):
    return [
        "train.py",
        "--config=configs/camvid.py:cpu",
        f"--config.data.data_dir={camvid}",
        "--config.data.cache_on_device",
        f"--workdir={workdir}",
        *SMALL,
        *more,
    ]


def steps_written(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def checkpoints(listing):
    """Returns the names of finished checkpoints, sorted, in the listing of a folder."""
    return sorted(name for name in listing.split() if name.isdigit())


def wait_for_step(process, workdir, step):
    for _ in range(2400):
        if max(steps_written(workdir), default=0) >= step:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"no step {step} after two minutes")


def test_sigterm_saves_and_exits_with_0_and_a_rerun_resumes(camvid, tmp_path):
    steps = ["total_steps=150", "eval_every=150", "checkpoint_every=150"]
    arguments = train_arguments(
        camvid, tmp_path / "run", *(f"--config.{setting}" for setting in steps)
    )
    process = subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    (saved,) = [line for line in stderr.splitlines() if "SIGTERM: saved" in line]
    step = int(saved.split("step ")[1].split()[0])
    assert 3 <= step < 150
    assert str(step) in os.listdir(tmp_path / "run" / "checkpoints")
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert f"resuming at step {step}" in result.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["step"] for line in lines if '"loss"' in line]
    assert losses == list(range(1, 151))


def test_second_run_on_a_workdir_is_refused(camvid, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with lock_workdir(workdir):
        result = run(*train_arguments(camvid, workdir))
    assert result.returncode == 2
    (line,) = errors(result)
    assert f"{workdir}: another run is writing there (process {os.getpid()} on" in line
    assert os.listdir(workdir) == [".lock"]


def test_lock_ends_with_its_run(tmp_path):
    for _ in range(2):
        with lock_workdir(tmp_path), pytest.raises(UserError, match="another run"):
            with lock_workdir(tmp_path):
                raise AssertionError("two runs at once")


class FakeMsvcrt:
    """The lock of Windows, on a file's range of bytes."""

    LK_NBLCK = 2
    held: ClassVar[set] = set()

    @classmethod
    def locking(cls, descriptor, mode, count):
        assert (mode, count) == (cls.LK_NBLCK, 1)
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        assert place[1] > 1000, "others must be able to read the text"
        if place in cls.held:
            raise PermissionError(13, "Permission denied")
        cls.held.add(place)


def test_lock_without_fcntl_is_that_of_windows(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "msvcrt", FakeMsvcrt)
    with lock_workdir(tmp_path), pytest.raises(UserError, match="process .* on "):
        with lock_workdir(tmp_path):
            raise AssertionError("two runs at once")


def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with lock_workdir(tmp_path):
        assert "its file system has no locks (No locks available)" in caplog.text


@pytest.mark.slow
def test_killed_at_twenty_moments_ends_with_the_same_parameters(camvid, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.interrupted"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(workdir, checkpoint_every=2):
        arguments = str(camvid), str(workdir), checkpoint_every
        process = context.Process(target=train_small, args=arguments)
        process.start()
        return process

    process = start(whole, checkpoint_every=300)
    process.join(300)
    assert process.exitcode == 0
    moments = random.Random(0)
    for kill in range(20):
        process = start(killed)
        before = len(steps_written(killed))
        while process.is_alive() and len(steps_written(killed)) <= before:
            time.sleep(0.01)
        # Steps take some milliseconds, and every second one is saved: most kills fall
        # into the writing of a checkpoint.
        time.sleep(moments.uniform(0, 0.1))
        assert process.is_alive(), f"ended before kill {kill}"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process = start(killed)
    process.join(300)
    assert process.exitcode == 0
    for expected, found in zip(
        trained_arrays(whole), trained_arrays(killed), strict=True
    ):
        np.testing.assert_array_equal(expected, found)


@pytest.mark.slow
def test_loss_gone_wrong_names_its_step_and_spares_the_checkpoints(camvid, tmp_path):
    config = small_run_config(str(camvid))
    config.total_steps = config.eval_every = 4
    train(config, tmp_path / "run")

    def assert_stops(what):
        with pytest.raises(FloatingPointError) as caught:
            train(config, tmp_path / "run")
        message = str(caught.value)
        assert message.startswith(f"{what}; the checkpoints before it are kept.")
        assert "Try a lower learning_rate or more optimizer.warmup_steps" in message
        folder = tmp_path / "run" / "checkpoints"
        assert checkpoints("\n".join(os.listdir(folder))) == ["2", "4"]

    # Step 5 has a finite loss, and ruins the weights. No check before step 8.
    config.learning_rate = 1e30
    config.total_steps = config.eval_every = config.checkpoint_every = 10
    config.log_every = 8
    assert_stops("the loss is nan at step 6")
    config.checkpoint_every = 1
    assert_stops("the weights are not finite, or huge, after step 5")
    config.learning_rate = 0.01
    assert train(config, tmp_path / "run") is not None
    assert steps_written(tmp_path / "run") == [1, 2, 3, 4, 4, 8, 10, 10]


FULL_DISK = """
mount -t tmpfs -o size={size}k tmpfs {disk} || exit 99
{train} --config.total_steps=2 || exit 98
ls {disk}/run/checkpoints > {out}/first
free=$(df --output=avail {disk} | tail -1)
head -c $((free * 1024 - 20000)) /dev/zero > {disk}/filler
{train} --config.total_steps=6 2> {out}/stderr
echo $? > {out}/full
ls {disk}/run/checkpoints > {out}/second
cp {disk}/run/metrics.jsonl {out}/
rm {disk}/filler
{train} --config.total_steps=6 || exit 97
ls {disk}/run/checkpoints > {out}/third
"""


@pytest.mark.slow
def test_full_disk_costs_a_checkpoint_but_not_the_run(camvid, tmp_path):
    own_mounts = ["unshare", "-rm", "true"]
    if not shutil.which("unshare") or subprocess.run(own_mounts).returncode:
        pytest.skip("no file system of its own can be mounted here")
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    train = " ".join(command(*train_arguments(camvid, disk / "run")))
    script = FULL_DISK.format(size=8000, disk=disk, out=out, train=train)
    result = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (out / "first").read_text().split() == ["2"]
    stderr = (out / "stderr").read_text()
    assert "WARNING: the checkpoint of step 4 does not fit" in stderr
    # The run continued to its end, and then reported the missing checkpoint.
    assert (out / "full").read_text().strip() == "2"
    assert (
        "error: " in stderr and "of step 6, the last one taken, does not fit" in stderr
    )
    # Pieces that Orbax's threads still wrote are removed by the next start.
    assert checkpoints((out / "second").read_text()) == ["2"]
    # The last two, and step 2 where its score is the best.
    assert checkpoints((out / "third").read_text())[-2:] == ["4", "6"]
