"""The mean gate over the validation split, kept with each evaluated checkpoint."""

import json

import numpy as np
import pytest

from encnet_jax import Segmenter, UserError
from encnet_jax.data.registry import open_dataset
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.mean_gate import MeanGate, read_mean_gate, write_mean_gate
from encnet_jax.run.workdir import load_workdir
from encnet_jax.train import train
from encnet_jax.train.trainer import Trainer
from tests.interrupted import small_run_config


def make_config(camvid, **evaluation):
    config = small_run_config(str(camvid))
    config.total_steps, config.eval_every, config.checkpoint_every = 3, 2, 3
    config.evaluation.update(evaluation)
    return config


@pytest.fixture(scope="module")
def whole(camvid, tmp_path_factory):
    """The workdir of a run that is evaluated at steps 2 and 3."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(make_config(camvid), workdir)
    return workdir


def gate_of(workdir, step):
    return read_mean_gate(workdir / "checkpoints" / str(step))


def images_of(camvid):
    dataset = open_dataset("camvid", "val", str(camvid))
    return [dataset[index].image for index in range(len(dataset))]


def test_each_evaluated_step_has_its_own(camvid, whole):
    for step in (2, 3):
        stored = gate_of(whole, step)
        segmenter = Segmenter.from_workdir(whole, step)
        expected = segmenter.mean_gate(images_of(camvid))
        assert stored.images == expected.images == 3
        np.testing.assert_allclose(stored.gate, expected.gate, atol=2e-5)
        np.testing.assert_array_equal(segmenter.mean_gate().gate, stored.gate)
    assert not np.array_equal(gate_of(whole, 2).gate, gate_of(whole, 3).gate)


@pytest.mark.parametrize(
    "protocol", ["pytorch_encoding", pytest.param("mmseg", marks=pytest.mark.slow)]
)
def test_windows_count_as_in_the_evaluation(camvid, tmp_path, protocol):
    settings = dict(mode="slide", protocol=protocol, flip=True, scales=(1.0, 1.25))
    train(make_config(camvid, **settings), tmp_path / "run")
    expected = Segmenter.from_workdir(tmp_path / "run").mean_gate(images_of(camvid))
    stored = Segmenter.from_workdir(tmp_path / "run").mean_gate()
    np.testing.assert_allclose(stored.gate, expected.gate, atol=2e-5)


@pytest.mark.slow
def test_killed_evaluation_is_repeated_with_its_gate(
    camvid, whole, tmp_path, monkeypatch
):
    add_scores = Checkpoints.add_scores

    def killed(checkpoints, step, *arguments):
        if step == 2:
            raise KeyboardInterrupt
        add_scores(checkpoints, step, *arguments)

    workdir = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "add_scores", killed)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(camvid), workdir)
    assert gate_of(workdir, 2) is None
    train(make_config(camvid), workdir)
    for step in (2, 3):
        np.testing.assert_array_equal(
            gate_of(workdir, step).gate, gate_of(whole, step).gate
        )


def test_model_folder_and_its_copy_keep_it(whole, tmp_path):
    segmenter = Segmenter.from_workdir(whole, 2)
    segmenter.save_pretrained(tmp_path / "a")
    loaded = Segmenter.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    again = Segmenter.from_pretrained(tmp_path / "b")
    for mean_gate in (loaded.mean_gate(), again.mean_gate()):
        np.testing.assert_array_equal(mean_gate.gate, segmenter.mean_gate().gate)
        assert mean_gate.images == 3
    assert "mean_gate" in load_workdir(tmp_path / "b").training


def test_runs_and_folders_without_it_load(whole, tmp_path):
    segmenter = Segmenter.from_workdir(whole)
    segmenter.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["training"]["mean_gate"]
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match="no mean gate is stored"):
        Segmenter.from_pretrained(tmp_path).mean_gate()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"images": 3, "gate": [0.5] * 7}, "7 channels; model.head_channels is"),
        ({"images": 0, "gate": [0.5]}, "images=0"),
        ({"images": 1, "gate": [1.5]}, "numbers from 0 to 1"),
        ({"images": 1, "gate": []}, "numbers from 0 to 1"),
        ({"images": 1, "gate": None}, "numbers from 0 to 1"),
        ({"gate": [0.5]}, "must have images and gate"),
        ("0.5", "must have images and gate"),
        (None, "must have images and gate"),
    ],
)
def test_damage_in_a_model_folder_is_one_line(whole, tmp_path, value, message):
    Segmenter.from_workdir(whole).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    stored["training"]["mean_gate"] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(
        UserError, match=f"config.json: training.mean_gate: .*{message}"
    ):
        Segmenter.from_pretrained(tmp_path)


def test_damage_in_a_workdir_is_a_warning(tmp_path, caplog):
    assert read_mean_gate(tmp_path) is None and not caplog.text
    mean_gate = MeanGate(np.float32([0.25, 1 / 3]), 5)
    write_mean_gate(tmp_path, mean_gate)
    read = read_mean_gate(tmp_path)
    assert read.images == 5
    np.testing.assert_allclose(read.gate, mean_gate.gate, atol=1e-6)
    huge = json.dumps({"images": 5, "gate": [10**400]})
    for damage in ("{", "[" * 99_999, huge):
        caplog.clear()
        (tmp_path / "metrics" / "mean_gate.json").write_text(damage)
        assert read_mean_gate(tmp_path) is None
        assert "not used as the mean gate" in caplog.text


@pytest.mark.slow
def test_network_without_the_module_stores_none(camvid, tmp_path, monkeypatch):
    config = make_config(camvid)
    config.model.name, config.total_steps = "fcn", 1
    results, evaluate = [], Trainer._evaluate

    def evaluated(trainer, step):
        results.append(evaluate(trainer, step))
        return results[-1]

    monkeypatch.setattr(Trainer, "_evaluate", evaluated)
    train(config, tmp_path / "run")
    assert results[0].mean_gate is None and gate_of(tmp_path / "run", 1) is None
