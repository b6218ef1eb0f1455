"""Evaluations during training that fail or are killed: no step is lost to them."""

import json

import numpy as np
import pytest

from encnet_jax.errors import UserError
from encnet_jax.run.checkpoint_folder import choose_step, read_scores
from encnet_jax.train import train
from encnet_jax.train.trainer import Trainer
from tests.commands import trained_arrays
from tests.interrupted import small_run_config


@pytest.fixture
def config(camvid):
    config = small_run_config(str(camvid))
    config.total_steps, config.eval_every, config.checkpoint_every = 6, 2, 6
    return config


@pytest.fixture(scope="module")
def whole(camvid, tmp_path_factory):
    """The workdir of a run whose evaluations all succeed."""
    config = small_run_config(str(camvid))
    config.total_steps, config.eval_every, config.checkpoint_every = 6, 2, 6
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(config, workdir)
    return workdir


def lines_of(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_as_whole(workdir, whole):
    for expected, found in zip(trained_arrays(whole), trained_arrays(workdir)):
        np.testing.assert_array_equal(expected, found)
    for lines in (lines_of(workdir), lines_of(whole)):
        assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    scores, expected = (
        read_scores(run / "checkpoints", "mean_iou") for run in (workdir, whole)
    )
    assert scores == expected and None not in scores.values()
    best = max(lines_of(whole), key=lambda line: line.get("mean_iou", -1))
    assert choose_step(workdir / "checkpoints", "best", "mean_iou") == best["step"]


@pytest.mark.slow
def test_damaged_image_costs_no_step(config, camvid, whole, tmp_path, monkeypatch):
    workdir, path = tmp_path / "run", camvid / "val" / "0001.png"
    content, evaluate, count = path.read_bytes(), Trainer._evaluate, []

    def damage_before_step_4(trainer, step):
        if step == 4 and not count:
            path.write_bytes(b"no image")
            count.append(step)
        return evaluate(trainer, step)

    monkeypatch.setattr(Trainer, "_evaluate", damage_before_step_4)
    try:
        with pytest.raises(UserError) as caught:
            train(config, workdir)
        message = str(caught.value)
        assert str(path) in message and "step 4, which is saved" in message
        scores = read_scores(workdir / "checkpoints", "mean_iou")
        assert scores.keys() == {2, 4} and scores[4] is None
        assert lines_of(workdir)[-1]["step"] == 4 and "loss" in lines_of(workdir)[-1]
    finally:
        path.write_bytes(content)
    train(config, workdir)
    assert_as_whole(workdir, whole)


@pytest.mark.parametrize(
    ("step", "moment"),
    [
        (2, "logged"),
        (4, "evaluating"),
        (6, "logged"),
    ],
)
@pytest.mark.slow
def test_killed_evaluation_is_repeated_first(
    config, whole, tmp_path, monkeypatch, step, moment
):
    workdir, evaluate = tmp_path / "run", Trainer._evaluate

    def killed(trainer, at):
        result = evaluate(trainer, at) if at != step or moment == "logged" else None
        if at == step:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, workdir)
    scores = read_scores(workdir / "checkpoints", "mean_iou")
    assert max(scores) == step and scores[step] is None
    assert train(config, workdir) is not None
    assert_as_whole(workdir, whole)


def test_finished_run_is_scored_again_without_another_line(config, whole):
    before, scores = lines_of(whole), read_scores(whole / "checkpoints", "mean_iou")
    result = train(config, whole)
    assert result["mean_iou"] == before[-1]["mean_iou"]
    assert lines_of(whole) == before
    assert read_scores(whole / "checkpoints", "mean_iou") == scores


def test_workdir_that_cannot_be_read_again_is_refused_before_it_exists(
    config, tmp_path
):
    with pytest.raises(UserError, match=r"run\[1\]/checkpoints|run\[1\]: "):
        train(config, tmp_path / "run[1]")
    assert not list(tmp_path.iterdir())
