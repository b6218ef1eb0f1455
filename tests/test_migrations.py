"""Workdirs of version 0.1.0 are predicted with, resumed and evaluated; old names."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from encnet_jax import cli
from encnet_jax.config import default, load_config
from encnet_jax.config_checks import validate
from encnet_jax.errors import UserError
from encnet_jax.migrations import CONFIG_KEYS, CONFIG_VALUES, old_parameter_path
from encnet_jax.predict.predictor import Segmenter
from tests.commands import errors, run

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
NETWORKS = ("encnet", "deeplabv3")


@pytest.fixture(scope="module", params=NETWORKS)
def old(request, tmp_path_factory):
    """A workdir of version 0.1.0, and the results of that version."""
    workdir = tmp_path_factory.mktemp(request.param)
    with tarfile.open(FIXTURES / f"workdir_{request.param}.tar.xz") as archive:
        archive.extractall(workdir, filter="data")
    return workdir, EXPECTED[request.param]


def test_stored_config_is_migrated(old):
    config = load_config(old[0] / "config.json")
    validate(config)
    assert config.optimizer.head_lr_mult == 5
    assert config.optimizer.min_learning_rate == 1e-4
    assert config.loss.normalize_by == "all"
    assert config.evaluation.absent_classes == "zero"
    assert config.evaluation.protocol == "pytorch_encoding"
    assert config.model.conv_impl == "lax"
    assert config.grad_accum_steps == 1
    assert config.data.cache_on_device is False


def test_predictions_are_those_of_the_old_version(old, camvid):
    workdir, expected = old
    result = Segmenter.from_workdir(workdir, "latest")(camvid / "val" / "0000.png")
    pixels = np.bincount(result.labels.ravel(), minlength=11)
    # Another order of float32 sums may move a pixel where two classes tie.
    assert np.abs(pixels - expected["class_pixels"]).sum() <= 8
    if expected["presence"] is None:
        assert result.presence is None
    else:
        np.testing.assert_allclose(result.presence, expected["presence"], atol=1e-4)


@pytest.mark.slow
def test_resumed_training_continues_with_the_optimizer_state(old, camvid, tmp_path):
    workdir, expected = old
    shutil.copytree(workdir, tmp_path / "run")
    stored = load_config(workdir / "config.json")
    stored.total_steps, stored.data.data_dir = 6, str(camvid)
    file = tmp_path / "config.py"
    file.write_text(
        "import json\nfrom encnet_jax.config import default\n"
        "def get_config():\n    config = default()\n"
        f"    config.update(json.loads({json.dumps(stored.to_dict())!r}))\n"
        "    return config\n"
    )
    result = run("train.py", f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}
    assert losses[5] == pytest.approx(expected["losses"]["5"], rel=1e-4)
    assert losses[6] == pytest.approx(expected["losses"]["6"], rel=1e-2)
    result = run(
        "evaluate.py",
        f"--config={file}",
        f"--workdir={tmp_path / 'run'}",
        "--step=4",
    )
    assert result.returncode == 0, result.stderr
    scores = json.loads((tmp_path / "run/evaluation/val.json").read_text())
    for key, value in expected["scores"]["4"].items():
        assert scores[key] == pytest.approx(value, abs=5e-3)


def test_join_of_deeplab_and_fuse_of_encnet_have_different_old_names():
    path = "head.fuse.conv.kernel"
    assert old_parameter_path(path, [path]) == path
    assert old_parameter_path(path, [path, "head.views.0.conv.kernel"]) == (
        "head.join.conv.kernel"
    )
    assert old_parameter_path("stage3_reduce.norm.mean", []) == (
        "stage3_project.norm.mean"
    )


@pytest.mark.parametrize("key", CONFIG_KEYS)
def test_old_key_is_answered_with_the_new_one(key):
    config = default()
    group = config
    for part in key.split(".")[:-1]:
        group = group[part]
    group[key.rpartition(".")[2]] = 1
    with pytest.raises(UserError, match=f"{key}: is now called {CONFIG_KEYS[key]}"):
        validate(config)


@pytest.mark.parametrize("key", CONFIG_VALUES)
def test_old_value_is_answered_with_the_new_one(key):
    config = default()
    group, _, name = key.rpartition(".")
    before, after = next(iter(CONFIG_VALUES[key].items()))
    config[group][name] = before
    with pytest.raises(UserError, match=f"{key}={before!r}: is now {after!r}"):
        validate(config)


def test_an_unknown_key_is_refused():
    config = default()
    config.data.cropsize = 3
    with pytest.raises(UserError, match="data.cropsize: no such key"):
        validate(config)


@pytest.mark.parametrize(
    "flag, message",
    [
        (
            "--config.data.in_memory=True",
            "in_memory: is now called --config.data.",
        ),
        ("-noconfig.data.in_memory", "in_memory: is now called --config.data."),
        ("--config.modle.width=4", "modle.width: no such key of the configuration;"),
        ("--config.x.y=4", "x.y: no such key of the configuration"),
        ("--config.model.widht=4", "is it --config.model.width?"),
    ],
)
def test_a_flag_with_an_old_or_unknown_key_is_named(flag, message):
    known = ["train.py", "--config=scenes", "--noconfig.data.cache_on_device"]
    assert cli._wrong_key([*known, "--config.seed=1"]) is None
    assert message in cli._wrong_key([*known, flag])


def test_a_flag_with_an_old_key_is_one_line_and_exit_code_2():
    flag = "--config.data.in_memory=True"
    result = run("train.py", "--config=configs/scenes.py", flag)
    assert result.returncode == 2
    assert errors(result) == [
        "error: --config.data.in_memory: is now called --config.data.cache_on_device"
    ]
