"""Flags of the commands reach what they set: each command in this process."""

import importlib.util

import numpy as np
import pytest
from PIL import Image
from torch_networks import small_weights

from encnet_jax.commands import app, convert, data, evaluate, export, predict, train
from encnet_jax.data.dataset_info import CIFAR10, load_info, save_info
from encnet_jax.data.registry import dataset_info
from encnet_jax.errors import UserError
from tests.convert.test_load import write_pth
from tests.parsed_flags import run_command
from tests.small_workdir import TINY, write_workdir

MMSEG = "mmseg_encnet_r50_d8"  # 19 classes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs with one checkpoint, of step 7, by task."""
    folder = tmp_path_factory.mktemp("runs")
    write_workdir(folder / "segmentation", **TINY)
    settings = dict(name="resnet14", width=4)
    write_workdir(folder / "classification", "classification", **settings)
    return folder


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.pth"
    entries = {f"net.{name}": array for name, array in small_weights(MMSEG).items()}
    write_pth(path, {**entries, "other.weight": np.zeros((2, 2))})
    return path


@pytest.mark.parametrize(
    "task, flags",
    [
        ("segmentation", {}),
        ("segmentation", {"slide": True}),
        ("classification", {}),
    ],
)
def test_step_to_predict_with(monkeypatch, tmp_path, runs, photo, task, flags):
    given = dict(workdir=runs / task, output=tmp_path / "out", **flags)
    with pytest.raises(UserError, match="step 3: not in .*; there are 7"):
        run_command(monkeypatch, predict, photo, step=3, **given)
    assert not (tmp_path / "out").exists()


def test_step_to_export(monkeypatch, tmp_path, runs):
    given = dict(workdir=runs / "segmentation", output=tmp_path / "out")
    with pytest.raises(UserError, match="step 3: not in .*; there are 7"):
        run_command(monkeypatch, export, step=3, format="pretrained", **given)
    assert not (tmp_path / "out").exists()


def test_nothing_to_predict_is_not_the_current_folder(monkeypatch, tmp_path, runs):
    given = dict(workdir=runs / "segmentation", output=tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save("mine.png")
    with pytest.raises(UserError, match="^'': an empty path"):
        run_command(monkeypatch, predict, "", **given)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]


@pytest.mark.parametrize("command", [app, data, evaluate, export, train])
def test_what_is_no_flag_is_refused(command):
    with pytest.raises(UserError, match="^'steps=3': only flags .--name=value. are"):
        command.main(["steps=3"])


@pytest.fixture
def gradio(monkeypatch):
    """Whether the package seems to be installed."""
    find = importlib.util.find_spec
    found = {"gradio": True}

    def find_spec(name, *arguments):
        return found[name] or None if name in found else find(name, *arguments)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return found


def test_step_to_show(monkeypatch, runs, gradio):
    with pytest.raises(UserError, match="step 3: not in .*; there are 7"):
        run_command(monkeypatch, app, workdir=runs / "segmentation", step=3)


def test_page_is_for_segmenters(monkeypatch, tmp_path, gradio):
    save_info(CIFAR10, tmp_path / "classes.json")
    with pytest.raises(UserError, match=f"{tmp_path}: classifies; encnet app takes"):
        run_command(monkeypatch, app, workdir=tmp_path)
    gradio["gradio"] = False
    with pytest.raises(UserError, match=r"gradio, .*pip install 'encnet-jax\[app\]'"):
        run_command(monkeypatch, app, workdir=tmp_path)
    with pytest.raises(UserError, match="photo.png"):
        run_command(monkeypatch, app, "photo.png", workdir=tmp_path)


@pytest.mark.parametrize("flags", [{"classes": "list"}, {"dataset": "cityscapes"}])
def test_weights_are_converted_with_the_names_given(
    monkeypatch, tmp_path, weights, capsys, flags
):
    names = [f"class {index}" for index in range(19)]
    if "classes" in flags:
        flags = {"classes": ",".join(names)}
    else:
        names = dataset_info("cityscapes").class_names
    folder = tmp_path / "run"
    run_command(monkeypatch, convert, weights, output=folder, prefix="net.", **flags)
    assert load_info(folder / "classes.json").class_names == tuple(names)
    assert str(folder) in capsys.readouterr().out


def test_one_file_is_converted(monkeypatch, tmp_path, weights):
    for files in ((), (weights, weights)):
        with pytest.raises(UserError, match=f"^{len(files)} files: one weight file is"):
            run_command(monkeypatch, convert, *files, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
