"""Early stopping: when it stops, and that it does so again after any interruption."""

import contextlib
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from encnet_jax.data.array_dataset import ArrayDataset
from encnet_jax.data.dataset_info import CIFAR10
from encnet_jax.errors import UserError
from encnet_jax.models.cifar import ClassifierOutput
from encnet_jax.models.registry import BACKBONES, MODELS
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.checkpoint_folder import (
    choose_step,
    read_scores,
    saved_steps,
    write_score,
)
from encnet_jax.run.model_config import check_config
from encnet_jax.run.workdir import load_workdir
from encnet_jax.train import early_stopping, trainer
from encnet_jax.train.early_stopping import EarlyStopping
from encnet_jax.train.validation import Validation
from tests.settings.toy import (
    ToyBackbone,
    ToyModel,
    flat,
    lines,
    toy_config,
    toy_dataset,
)

NAN = float("nan")


def write_scores(path, scores, metric="mean_iou"):
    """Writes a score each 10 steps, and a line of training before it."""
    rows = []
    for place, score in enumerate(scores, 1):
        rows.append({"step": 10 * place, "loss": 1.0})
        rows.append({"step": 10 * place, metric: None if score != score else score})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("scores", "ends"),
    [
        ((0.1, 0.2, 0.15, 0.2), "mean_iou has not improved in 2 evaluations (the best"),
        ((0.1, 0.2, 0.15, 0.3), ""),
        ((0.1, 0.2, 0.3, 0.25), ""),
        ((0.3, 0.2, NAN, 0.25), "in 3 evaluations (the best is that of step 10)"),
        ((0.1, 0.2, NAN, NAN), "in 2 evaluations (the best is that of step 20)"),
        ((NAN, NAN, NAN, 0.0), ""),
        ((NAN, NAN), "in 2 evaluations (none is finite)"),
        ((0.3, 0.2), ""),
        ((), ""),
    ],
)
def test_evaluations_since_the_best_are_counted(tmp_path, scores, ends):
    write_scores(tmp_path / "metrics.jsonl", scores)
    stopping = EarlyStopping(2, tmp_path / "metrics.jsonl", "mean_iou")
    reason = stopping.reason(10 * len(scores))
    assert ends in reason and bool(reason) == bool(ends)
    assert not EarlyStopping(0, tmp_path / "metrics.jsonl", "mean_iou").reason(40)


def test_later_lines_and_damaged_ones_do_not_count(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_scores(path, (0.3, 0.2, 0.1, 0.4))
    path.write_text(path.read_text() + '{"step": 30, "mean_i\n{"mean_iou": 1.0}\n')
    stopping = EarlyStopping(2, path, "mean_iou")
    assert not stopping.reason(20) and "at step 30" in stopping.reason(30)
    assert not stopping.reason(40)


def test_a_score_missing_in_the_metrics_is_that_of_its_checkpoint(tmp_path):
    # A rerun that is killed while it repeats the last evaluation leaves no line of it.
    write_scores(tmp_path / "metrics.jsonl", (0.3, 0.2))
    for step, score in ((30, 0.25), (40, 0.5)):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        write_score(tmp_path / "checkpoints" / str(step), "mean_iou", score)
    stopping = EarlyStopping(2, tmp_path / "metrics.jsonl", "mean_iou")
    reason = stopping.reason(30)
    assert "in 2 evaluations (the best is that of step 10)" in reason
    assert not stopping.reason(20) and not stopping.reason(40)


def test_hosts_without_the_file_stop_with_the_first(tmp_path, monkeypatch):
    sums = []

    def gathered(counts):
        sums.append(counts.copy())
        return counts + [20, 3]

    monkeypatch.setattr(early_stopping.jax, "process_index", lambda: 1)
    monkeypatch.setattr(early_stopping, "sum_over_hosts", gathered)
    write_scores(tmp_path / "metrics.jsonl", (0.1, 0.2, 0.3))  # a stale view of it
    stopping = EarlyStopping(3, tmp_path / "metrics.jsonl", "mean_iou")
    assert "in 3 evaluations (the best is that of step 20)" in stopping.reason(50)
    np.testing.assert_array_equal(sums, [[0, 0]])


# The best is that of step 2; with a patience of 2 training ends at step 6.
SCORES = {2: 0.5, 4: 0.5, 6: NAN, 8: 0.4, 10: 0.6}


class ToyClassifier(nnx.Module):
    """A classifier of constant logits that counts its forward passes."""

    checks = {}

    def __init__(self, num_classes, *, rngs):
        self.bias = nnx.Param(jnp.zeros(num_classes))
        self.passes = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, images):
        self.passes[...] += 1
        shape = (len(images), len(self.bias[...]))
        return ClassifierOutput(jnp.broadcast_to(self.bias[...], shape))


class Run:
    """A run of a toy network, whose evaluations have the scores above."""

    def __init__(self, workdir, task):
        self.workdir = workdir
        changes = dict(log_every=1, eval_every=2, checkpoint_every=3, total_steps=10)
        if task == "classification":
            changes |= {"model.name": "resnet14", "model.backbone": "resnet50"}
            data = ArrayDataset(CIFAR10, toy_dataset().images, np.arange(4))
            self.metric = "accuracy"
        else:
            data, self.metric = toy_dataset(), "mean_iou"
        self.changes, self.datasets = changes, (data, data)

    def train(self, patience, **changes):
        config = toy_config(**self.changes, **changes, early_stopping=patience)
        check_config(config)
        return trainer.train(config, self.workdir, self.datasets)

    def steps(self):
        """Returns the steps that were logged, and those evaluated."""
        rows = lines(self.workdir)
        trained = [row["step"] for row in rows if "loss" in row]
        return trained, [row["step"] for row in rows if self.metric in row]

    def arrays(self):
        return flat(load_workdir(self.workdir, "latest").params)


@pytest.fixture(scope="module")
def new_run(tmp_path_factory):
    """Returns a function that prepares a run."""

    def make_validate_fn(config, model, dataset, info):
        def validate(params, batch_stats):
            score = SCORES[int(batch_stats["passes"])]
            panel, classes = Image.new("RGB", (4, 4)), {}
            if dataset.info.task == "classification":
                scores = {"accuracy": score, "error": 1 - score}
            else:
                scores = {"mean_iou": score, "pixel_accuracy": 0.5}
                classes = dict(classes_scored=2, num_classes=2)
            return Validation(scores, 4, panel, classes)

        return validate

    def prepare(task="segmentation"):
        return Run(tmp_path_factory.mktemp("runs") / "run", task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "toy", ToyModel)
        patch.setitem(MODELS, "resnet14", ToyClassifier)
        patch.setitem(BACKBONES, "toy", ToyBackbone)
        patch.setattr(trainer, "make_validate_fn", make_validate_fn)
        yield prepare


@pytest.fixture(scope="module")
def whole(new_run):
    """A run that nothing interrupts until it has no better score in 2 evaluations."""
    run = new_run()
    run.train(2)
    return run


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_run_ends_at_the_evaluation_and_says_so(new_run, caplog, task):
    caplog.set_level(logging.INFO, "encnet_jax")
    run = new_run(task)
    assert run.metric in run.train(2)
    assert run.steps() == ([1, 2, 3, 4, 5, 6], [2, 4, 6])
    folder = run.workdir / "checkpoints"
    assert saved_steps(folder) == [2, 4, 6]
    assert read_scores(folder, run.metric)[6] is not None
    assert choose_step(folder, "best", run.metric) == 2
    reason = (
        f"stopped early at step 6: {run.metric} has not improved in 2 evaluations (the "
        "best is that of step 2); to continue, rerun with early_stopping above 2, or 0"
    )
    assert caplog.messages.count(reason) == 1
    # The schedule is that of all steps.
    rates = [row["learning_rate"] for row in lines(run.workdir) if "loss" in row]
    np.testing.assert_allclose(rates[5], 0.01 * (1 - 5 / 10) ** 0.9, rtol=1e-5)


def test_rerun_takes_no_step_and_says_how_to_continue(whole, caplog):
    caplog.set_level(logging.INFO, "encnet_jax")
    before, arrays = lines(whole.workdir), whole.arrays()
    assert "mean_iou" in whole.train(2)
    text = "evaluations (the best is that of step 2); to continue, rerun with early_sto"
    assert (
        caplog.text.count(
            f"stopped early at step 6: mean_iou has not improved in 2 {text}"
        )
        == 1
    )
    assert lines(whole.workdir) == before
    np.testing.assert_equal(whole.arrays(), arrays)


def test_stopped_run_continues_as_one_that_did_not_stop(new_run):
    run, other = new_run(), new_run()
    run.train(2)
    run.train(3)
    assert run.steps() == ([*range(1, 9)], [2, 4, 6, 8])
    run.train(0)
    other.train(0)
    assert run.steps() == other.steps() == ([*range(1, 11)], [2, 4, 6, 8, 10])
    np.testing.assert_equal(run.arrays(), other.arrays())


@pytest.mark.parametrize(
    ("step", "moment"),
    [(2, "logged"), (4, "scored"), (6, "evaluating"), (6, "logged"), (6, "scored")],
)
def test_killed_run_ends_at_the_same_step(new_run, whole, monkeypatch, step, moment):
    run = new_run()
    evaluate, add_scores = trainer.Trainer._evaluate, Checkpoints.add_scores

    def killed_evaluation(self, at):
        scores = None if (at, moment) == (step, "evaluating") else evaluate(self, at)
        if at == step and moment != "scored":
            raise KeyboardInterrupt
        return scores

    def killed_after(self, at, *results):
        add_scores(self, at, *results)
        if at == step and moment == "scored":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_evaluate", killed_evaluation)
        patch.setattr(Checkpoints, "add_scores", killed_after)
        with pytest.raises(KeyboardInterrupt):
            run.train(2)
    assert run.train(2) is not None
    assert run.steps() == whole.steps() == ([1, 2, 3, 4, 5, 6], [2, 4, 6])
    np.testing.assert_equal(run.arrays(), whole.arrays())


def test_last_checkpoint_must_fit_on_the_disk(new_run, monkeypatch):
    run, save = new_run(), Checkpoints.save

    def full(self, state, step):
        if step != 6:
            save(self, state, step)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        with pytest.raises(UserError, match="step 6, the last one taken, does not fit"):
            run.train(2)
    assert run.train(2) is not None
    assert run.steps() == ([1, 2, 3, 4, 5, 6], [2, 4, 6])


def test_sigterm_on_a_full_disk_is_an_error(new_run, monkeypatch):
    run = new_run()
    monkeypatch.setattr(trainer.SigtermHandler, "due", lambda self, step: step == 4)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda self, state, step: None)
        with pytest.raises(UserError, match="step 4, the last one taken, does not fit"):
            run.train(2)
    assert run.train(2) is None and run.steps()[0] == [1, 2, 3, 4]


def test_evaluations_are_no_part_of_the_rate(new_run, monkeypatch):
    run, paused = new_run(), []

    @contextlib.contextmanager
    def pause(self):
        paused.append(self.step)
        yield

    monkeypatch.setattr(trainer.Progress, "paused", pause)
    run.train(2)
    assert paused == run.steps()[1] == [2, 4, 6]


def test_negative_patience_is_refused(new_run):
    with pytest.raises(UserError, match="early_stopping=-1: must be at least 0"):
        new_run().train(-1)
