"""Checkpoints: exact, the right ones kept, and damage met with the one before."""

import contextlib
import errno
import gc
import logging
import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from flax import nnx

from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.optimizer import create_optimizer, poly_schedule
from encnet_jax.run import checkpoint
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.failed_reads import DamagedError, failed_read
from encnet_jax.run.state import create_train_state, split_model

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def make_state(width):
    model = create_model(
        "fcn",
        num_classes=3,
        backbone="tiny",
        stem="plain",
        width=width,
        head_channels=4,
        rngs=nnx.Rngs(0),
    )
    _, params, batch_stats = split_model(model)
    tx = create_optimizer(poly_schedule(0.1, 10))
    return create_train_state(params, batch_stats, tx)


@pytest.fixture(scope="module", autouse=True)
def frozen_garbage():
    """A failed read looks for garbage: not among the programs of all earlier tests."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def state():
    return make_state(2)


def test_checkpoint_of_an_unreadable_score_is_kept(tmp_path, state, caplog):
    save_all(tmp_path, state, {1: 0.9, 2: 0.3, 3: 0.4})
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text('{"mean')
    checkpoints = save_all(tmp_path, state, {4: 0.1, 5: 0.2})
    assert checkpoints.steps() == [1, 3, 4, 5]
    assert "1/metrics/metrics: cannot be read" in caplog.text
    params, batch_stats = state.params, state.batch_stats
    assert checkpoints.restore_model(params, batch_stats, "best")[2] == 3


def test_moving_averages_are_kept_and_are_the_model(tmp_path, state):
    averages = jax.tree.map(
        lambda x: x + 1, {"params": state.params, "batch_stats": state.batch_stats}
    )
    state = at_step(state, 1)._replace(ema=averages)
    averaged = averages["params"], averages["batch_stats"]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, 1)
    checkpoints.close()
    restored = Checkpoints(tmp_path).restore_latest(state, HERE)
    model = Checkpoints(tmp_path).restore_model(state.params, state.batch_stats)[:2]
    for found, expected in (
        (restored, state),
        (model, averaged),
        (state.evaluated, averaged),
    ):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            np.testing.assert_array_equal(a, b)


def at_step(state, step):
    shifted = jax.tree.map(lambda p: p + step, state.params)
    return state._replace(step=jnp.asarray(step, jnp.int32), params=shifted)


def save_all(folder, state, scores):
    checkpoints = Checkpoints(folder)
    for step, score in scores.items():
        checkpoints.save(at_step(state, step), step)
        if score is not None:
            checkpoints.add_scores(step, {"mean_iou": score})
    checkpoints.close()
    return checkpoints


def test_latest_two_and_best_are_kept_and_restored(tmp_path, state):
    scores = {1: None, 2: 0.9, 3: 0.3, 4: None, 5: 0.5, 6: None}
    save_all(tmp_path, state, scores)
    checkpoints = Checkpoints(tmp_path)  # as a new process sees it
    assert checkpoints.steps() == [2, 5, 6]
    restored = checkpoints.restore_latest(state, HERE)
    expected = at_step(state, 6)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected)):
        np.testing.assert_array_equal(a, b)
    params, batch_stats = state.params, state.batch_stats
    assert checkpoints.restore_model(params, batch_stats, "best")[2] == 2
    assert checkpoints.restore_model(params, batch_stats, "latest")[2] == 6
    assert checkpoints.restore_model(params, batch_stats, "5")[2] == 5
    with pytest.raises(UserError, match="step 3.*there are 2, 5, 6"):
        checkpoints.restore_model(params, batch_stats, 3)
    for step in ("newest", "-1", "²"):
        with pytest.raises(UserError, match="step=.*: allowed are best, latest or"):
            checkpoints.restore_model(params, batch_stats, step)


@pytest.fixture
def no_leftovers():
    """Collects what a failed read leaves behind before another test meets it."""
    yield
    gc.collect()


# Orbax leaves the reads that were under way behind, each with its exception.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_checkpoint_is_set_aside_for_the_one_before(
    tmp_path, state, damage, caplog, no_leftovers
):
    save_all(tmp_path, state, {1: None, 2: None})
    files = [p for p in (tmp_path / "checkpoints/2/params").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    if damage == "truncate":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    else:
        largest.unlink()
    checkpoints = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING):
        restored = checkpoints.restore_latest(state, HERE)
    assert int(restored.step) == 1
    assert "checkpoints/2" in caplog.text and "damaged" in caplog.text
    assert checkpoints.steps() == [1]
    caplog.clear()
    gc.collect()
    # The step can be saved again.
    checkpoints.save(at_step(state, 2), 2)
    checkpoints.close()
    assert int(Checkpoints(tmp_path).restore_latest(state, HERE).step) == 2


def test_checkpoint_of_another_model_is_refused_by_name(tmp_path, state):
    save_all(tmp_path, state, {1: None})
    with pytest.raises(UserError, match="of another model: .*shape"):
        Checkpoints(tmp_path).restore_latest(make_state(3), HERE)
    assert Checkpoints(tmp_path).steps() == [1]


def test_no_checkpoint_is_none_to_training_and_an_error_to_prediction(tmp_path, state):
    assert Checkpoints(tmp_path).restore_latest(state, HERE) is None
    with pytest.raises(UserError, match="no checkpoint"):
        Checkpoints(tmp_path).restore_model(state.params, state.batch_stats)


def damage(folder, step):
    files = [p for p in (folder / f"checkpoints/{step}").rglob("*") if p.is_file()]
    for path in files:
        path.write_bytes(b"")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_checkpoint_is_renamed_if_none_can_be_read(tmp_path, state, no_leftovers):
    save_all(tmp_path, state, {1: 0.5, 2: None, 3: None})
    for step in (1, 2, 3):
        damage(tmp_path, step)
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path).restore_latest(state, HERE)
    assert "none of the checkpoints (1, 2, 3) can be read" in str(caught.value)
    assert "start anew in another --workdir" in str(caught.value)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["1", "2", "3"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_newer_ones_are_set_aside_once_an_older_one_is_read(
    tmp_path, state, no_leftovers
):
    save_all(tmp_path, state, {1: 0.5, 2: None, 3: None})
    (tmp_path / "checkpoints" / "3.damaged").mkdir()  # of an earlier time
    damage(tmp_path, 2)
    damage(tmp_path, 3)
    assert int(Checkpoints(tmp_path).restore_latest(state, HERE).step) == 1
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["1", "2.damaged", "3.damaged", "3.damaged-2"]


def tensorstore_error(number, text):
    error = ValueError(f"INTERNAL: Error opening file [OS error {number}: {text}]")
    error.__cause__ = None
    return error


def wrapped(error):
    outer = RuntimeError("a read failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (tensorstore_error(errno.ESTALE, "ESTALE"), "ESTALE"),
        (ValueError(f"DATA_LOSS: [os_error_code='{errno.EACCES}']"), "DATA_LOSS"),
        (OSError(errno.ENOTCONN, "Transport endpoint"), "Transport endpoint"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (wrapped(PermissionError(errno.EACCES, "Permission denied")), "Permission"),
        (MemoryError("no memory"), "no memory"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), "9 GiB"),
    ],
)
def test_checkpoint_that_cannot_be_read_at_the_moment_is_not_damaged(
    tmp_path, state, monkeypatch, error, reason
):
    save_all(tmp_path, state, {1: None, 2: None})

    def restore(*given, **named):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.ocp.Checkpointer, "restore", restore)
        with pytest.raises(UserError, match=f"2: cannot be read now: .*{reason}"):
            Checkpoints(tmp_path).restore_latest(state, HERE)
    assert int(Checkpoints(tmp_path).restore_latest(state, HERE).step) == 2


def test_step_that_another_host_cannot_read_is_set_aside_on_all(
    tmp_path, state, monkeypatch, caplog
):
    save_all(tmp_path, state, {1: None, 2: None})
    elsewhere = iter([True, False])
    monkeypatch.setattr(
        checkpoint, "_on_any_host", lambda flag: flag or next(elsewhere)
    )
    assert int(Checkpoints(tmp_path).restore_latest(state, HERE).step) == 1
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["1", "2.damaged"]
    assert "checkpoints/2: damaged on another host" in caplog.text


def test_scores_arrive_after_the_state_and_decide_what_is_kept(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    for step, score in {1: 0.2, 2: 0.9, 3: 0.1, 4: float("nan")}.items():
        checkpoints.save(at_step(state, step), step)
        checkpoints.add_scores(step, {"mean_iou": score})
    checkpoints.save(at_step(state, 5), 5)  # its evaluation fails
    checkpoints.close()
    resumed = Checkpoints(tmp_path)
    assert resumed.steps() == [2, 4, 5]
    assert [resumed.has_scores(step) for step in (2, 4, 5)] == [True, True, False]
    assert int(resumed.restore_latest(state, HERE).step) == 5
    resumed.add_scores(5, {"mean_iou": 0.95})
    params, batch_stats = state.params, state.batch_stats
    assert resumed.restore_model(params, batch_stats, "best")[2] == 5
    assert resumed.steps() == [4, 5]
    resumed.save(at_step(state, 6), 6)
    resumed.add_scores(6, {"mean_iou": 0.4})
    resumed.close()
    assert resumed.steps() == [5, 6]
    scores = (tmp_path / "checkpoints/5/metrics/metrics").read_text()
    assert scores == '{"mean_iou": 0.95}'


def test_what_a_kill_left_is_removed_before_the_next_save(tmp_path, state):
    save_all(tmp_path, state, {1: None})
    folder = tmp_path / "checkpoints"
    for name in ("2.orbax-checkpoint-tmp", "0.removed"):
        (folder / name / "params").mkdir(parents=True)
    assert Checkpoints(tmp_path).steps() == [1]
    save_all(tmp_path, state, {2: None})
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("name", ["a[1]", "a*", "what?", "back\\slash"])
def test_path_that_could_not_be_read_again_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="checkpoints cannot be read from a path with"):
        Checkpoints(tmp_path / name)


def test_link_to_such_a_path_is_written_and_read(tmp_path, state):
    (tmp_path / "a[1]").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a[1]")
    save_all(link, state, {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2})
    assert Checkpoints(link).steps() == [1, 3, 4]
    assert int(Checkpoints(link).restore_latest(state, HERE).step) == 4


@pytest.mark.parametrize("name", ["a b", "größe 漢", "a]b", "a{b}", "~", "a%20#b"])
def test_other_paths_are_read_again(tmp_path, state, name):
    save_all(tmp_path / name, state, {1: None})
    assert int(Checkpoints(tmp_path / name).restore_latest(state, HERE).step) == 1


@pytest.fixture(scope="module")
def too_many_files(tmp_path_factory):
    """The error of TensorStore where this process may open no more files."""
    path = str(tmp_path_factory.mktemp("array") / "a")
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": path}}
    metadata = {"shape": [4], "chunks": [4], "dtype": "<f4"}
    array = tensorstore.open({**spec, "metadata": metadata}, create=True).result()
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), limits[1])
    )
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(ValueError, match="Too many open files") as caught:
            array.write([1, 2, 3, 4]).result()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return caught.value


def test_real_error_of_tensorstore_is_no_damage(tmp_path, too_many_files):
    error = failed_read(tmp_path / "2", too_many_files)
    assert not isinstance(error, DamagedError)
    assert "2: cannot be read now: RESOURCE_EXHAUSTED" in str(error)


def test_shortage_of_another_kind_is_no_full_disk(
    tmp_path, state, monkeypatch, too_many_files
):
    def refused(*arguments, **settings):
        raise too_many_files

    monkeypatch.setattr(checkpoint.ocp.AsyncCheckpointer, "save", refused)
    with pytest.raises(ValueError, match="Too many open files"):
        Checkpoints(tmp_path).save(state, 3)


@pytest.mark.parametrize("hosts", [1, 2])
def test_full_disk_ends_a_run_of_several_hosts_alone(
    tmp_path, state, monkeypatch, caplog, hosts
):
    def full(*arguments, **settings):
        monkeypatch.setattr(jax, "process_count", lambda: hosts)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp.AsyncCheckpointer, "save", full)
    checkpoints, message = Checkpoints(tmp_path), "step 3 does not fit on the disk"
    if hosts == 1:
        checkpoints.save(state, 3)
        assert message in caplog.text
    else:
        with pytest.raises(UserError, match=f"{message} of .*; free space and rerun"):
            checkpoints.save(state, 3)
    assert checkpoints.steps() == []
