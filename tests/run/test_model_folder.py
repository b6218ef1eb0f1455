"""Model folders: what is written, what is replaced, and every damage as one line."""

import contextlib
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.errors import UserError
from encnet_jax.export.run import export_workdir
from encnet_jax.models import create_model
from encnet_jax.run import model_folder
from encnet_jax.run.folder_config import FolderConfig
from encnet_jax.run.model_config import config_of_model
from encnet_jax.run.model_folder import (
    FILES,
    find_model_folder,
    is_model_folder,
    read_model_folder,
    write_model_folder,
)
from encnet_jax.run.state import flatten_paths, split_model
from encnet_jax.run.workdir import load_workdir
from tests.random_module import random_module
from tests.small_workdir import TINY, write_workdir

SETTINGS = dict(name="encnet", **TINY)
INFO = DatasetInfo("mine", ("road", "car", "sky"), voc_colormap(3), {})
SCORE = dict(dataset="mine", split="val", evaluation="single scale")


@pytest.fixture(scope="module")
def trees():
    """Returns parameters and running statistics."""
    return split_model(random_module(create_model, num_classes=3, **SETTINGS))[1:]


@pytest.fixture(scope="module")
def written(trees, tmp_path_factory):
    folder = tmp_path_factory.mktemp("new") / "below" / "model"
    write(folder, trees)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """Returns a copy to damage."""
    return shutil.copytree(written, tmp_path / "model")


def write(folder, trees, training=None, info=INFO, **changes):
    stored = FolderConfig(config_of_model(SETTINGS | changes), info, training or {})
    write_model_folder(folder, stored, *trees)


@pytest.mark.parametrize("channels", [None, "4", 2.5])
def test_channels_of_another_type_are_refused(channels):
    with pytest.raises(UserError, match="^model.in_channels=.*: must be int$"):
        config_of_model(SETTINGS | {"in_channels": channels})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_config(folder, *keys, value):
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    group = stored
    for key in keys[:-1]:
        group = group[key]
    group[keys[-1]] = value
    path.write_text(json.dumps(stored))


def one_line(folder):
    with pytest.raises(UserError) as caught:
        read_model_folder(folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 2100
    return str(caught.value)


def test_three_files_hold_the_arrays_by_path(written, trees):
    assert sorted(os.listdir(written)) == sorted(FILES)
    expected = flatten_paths(trees[0]) | flatten_paths(trees[1])
    arrays = load_file(written / "model.safetensors")
    assert arrays.keys() == expected.keys()
    assert "backbone.stem.0.conv.kernel" in arrays
    stored = read_model_folder(written)
    read = flatten_paths(stored.params) | flatten_paths(stored.batch_stats)
    for path, array in expected.items():
        assert arrays[path].dtype == read[path].dtype == np.float32
        np.testing.assert_array_equal(arrays[path], array)
        np.testing.assert_array_equal(read[path], array)
    assert stored.info == INFO and stored.config.model.width == 4


def test_keys_of_training_stay_out(written):
    model = json.loads((written / "config.json").read_text())["model"]
    assert model["num_classes"] == 3 and model["dtype"] == "float32"
    left_out = {"weights", "remat", "conv_impl", "head_init", "freeze_backbone"}
    assert not left_out & model.keys()


def test_paths_of_the_training_stay_out(tmp_path):
    weights = "/home/me/secret/resnet.pth"
    data = dict(data_dir="/home/me/secret/leaves")
    write_workdir(tmp_path / "run", data=data, weights=weights, **TINY)
    export_workdir(tmp_path / "run", tmp_path / "model", "pretrained")
    assert sorted(os.listdir(tmp_path / "model")) == sorted(FILES)
    for path in (tmp_path / "model").iterdir():
        content = path.read_bytes()
        assert b"secret" not in content and str(tmp_path).encode() not in content


def test_several_faults_of_the_arrays_are_one_error(folder):
    path = folder / "model.safetensors"
    arrays = load_file(path)
    del arrays["head.classifier.conv.bias"]
    arrays["more"] = np.zeros(1, np.float32)
    kernel = "backbone.stem.0.conv.kernel"
    arrays[kernel] = arrays[kernel][..., 1:]
    mean = next(name for name in arrays if name.endswith(".mean"))
    arrays[mean] = arrays[mean].astype(np.float16)
    save_file(arrays, path)
    message = one_line(folder)
    assert str(path) in message
    for part in (
        "1 arrays missing: head.classifier.conv.bias",
        "1 arrays unexpected: more",
        f"1 arrays of another shape: {kernel} is (7, 7, 3, 3), not (7, 7, 3, 4)",
        f"1 arrays of another dtype: {mean} is F16, not F32",
    ):
        assert part in message, message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_arrays_that_are_not_finite_are_named(folder, trees, value):
    arrays = load_file(folder / "model.safetensors")
    name = "head.classifier.conv.bias"
    arrays[name] = np.full_like(arrays[name], value)
    save_file(arrays, folder / "model.safetensors")
    assert f"NaN or infinity in 1 arrays: {name}" in one_line(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, 2000, -1])
def test_truncated_weights_are_one_line(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: truncated or damaged" in one_line(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"{folder / name}: missing" in one_line(folder)


def test_nothing_but_the_files_of_the_format_is_read(folder, trees):
    for name in ("pytorch_model.bin", "model.pkl", "modeling.py", "config.pkl"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    (folder / "README.md").write_text("mine")
    assert read_model_folder(folder).info == INFO
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: missing" in one_line(folder)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["format"], "timm", '"format" is not "encnet_jax"'),
        (["format_version"], 2, "format_version=2: this version reads 1; a newer"),
        (["format_version"], "1", "format_version='1'"),
        (["format_version"], True, "format_version=True"),
        (["format_version"], "x" * 9999, "newer encnet_jax"),
        (["model"], [], "model: must be an object"),
        (["prediction"], None, "prediction: must be an object"),
        (["training"], 3, "training: must be an object"),
        (["training"], {"run": 3}, "training: {'run': 3} is not the record"),
        (["training"], {"run": "a", "step": 1, "scores": [3]}, "not the record"),
        (["training"], {"run": "a", "step": True}, "not the record"),
        (["training"], {"run": "a", "step": -1}, "not the record"),
        (["training"], {"run": "a", "step": 1, "scores": [SCORE]}, "not the record"),
        (
            ["training"],
            {"run": "a", "step": 1, "scores": [SCORE | {"mean_iou": np.nan}]},
            "not the record",
        ),
        (["training"], {"run": "a", "step": 1, "initial_weights": 3}, "not the rec"),
        (["model", "lateral"], None, "model.lateral=None: must be bool"),
        (["model", "num_classes"], 4, "num_classes=4; data.class_names has 3"),
        (["model", "name"], "unet", "model.name='unet': allowed are encnet"),
        (["model", "name"], "resnet14", "resnet14 has no such setting"),
        (["model", "widht"], 3, "model.widht=3: no such setting"),
        (["model", "width"], "4", "model.width='4': must be int"),
        (["model", "width"], -4, "model.width=-4: must be an integer of at least"),
        (["model", "dtype"], "float8", "float8"),
        (["model", "dropout"], None, "config.json: "),
        (["prediction", "mode"], "tiles", "evaluation.mode='tiles'"),
        (["prediction", "mode"], None, "prediction.mode=None"),
        (["prediction", "mode"], {"a": 1}, "'mode'"),
        (["prediction", "base_size"], True, "prediction.base_size=True: must be int"),
        (["prediction", "base_size"], -1, "base_size=-1: must be at least"),
        (["prediction", "base_size"], "big", "base_size"),
        (["prediction", "code"], "x", "prediction: has mode, protocol"),
        (["data", "mean"], [0, 1], "data.std=(0.229, 0.224, 0.225): must be as many"),
        (["data", "std"], [0, 1, 1], "data.std"),
        (["data", "colors"], [[0, 0, 256]] * 3, "data.colors"),
        (["data", "class_names"], ["a", "b", 3], "data.class_names"),
        (["data", "class_names"], ["a", "b", "a"], "different texts"),
        (["data", "class_names"], ["a", "b", ""], "different texts"),
        (["data", "class_names"], ["a", "b", "\ud800"], "data.class_names"),
        (["data", "class_names"], "abc", "class_names must be a list"),
        (["data", "mean"], [10**400, 1, 1], "data.mean"),
        (["data", "label_map"], {"7": 3}, "data.label_map"),
        (["data", "value_range"], [2, 1], "data.value_range"),
        (["data", "task"], "detection", "data.task"),
        (["data", "task"], "classification", "prediction: "),
        (["data"], {}, "not a class file"),
    ],
)
def test_damage_of_the_configuration_is_one_line(folder, keys, value, message):
    edit_config(folder, *keys, value=value)
    found = one_line(folder)
    assert message in found and "config.json" in found


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\x00"])
def test_configuration_that_is_none_is_one_line(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in one_line(folder)
    with pytest.raises(UserError, match="config.json"):
        load_workdir(folder)


def test_earlier_model_folder_is_replaced_whole(folder, trees):
    before = contents(folder)
    (folder / ".encnet-killed.tmp").touch()
    write(folder, [{**trees[0]}, trees[1]], {"run": "again", "step": 3})
    after = contents(folder)
    assert after["config.json"] != before["config.json"]
    assert after["README.md"] != before["README.md"]
    write(folder, trees)
    del after[".encnet-killed.tmp"]
    assert {name: (folder / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.txt", "mine", "holds notes.txt"),
        ("README.md", "# Mine", "README.md was edited"),
        ("config.json", '{"model": 1}', "config.json is not of a model folder"),
        ("config.json", '{"format": "timm"}', "config.json is not of a model folder"),
        ("config.json", '"format"', "config.json is not of a model folder"),
        ("config.json", "[" * 100_000, "config.json is not of a model folder"),
        ("model.safetensors", "mine", "model.safetensors is not of this package"),
    ],
)
@pytest.mark.parametrize("earlier", [True, False])
def test_other_files_are_not_replaced(folder, trees, earlier, name, text, message):
    if not earlier:
        shutil.rmtree(folder)
        folder.mkdir()
    (folder / name).write_text(text)
    before = contents(folder)
    with pytest.raises(UserError, match=f"folder={folder}: {message}; choose"):
        write(folder, trees)
    assert contents(folder) == before


def test_weights_of_another_package_are_not_replaced(tmp_path, trees):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is not of this package"):
        write(tmp_path, trees)


def test_edited_card_is_recognized_but_not_its_line_ends(folder, trees):
    card = folder / "README.md"
    text = card.read_text()
    card.write_bytes(text.replace("\n", "\r\n").encode())
    write(folder, trees)
    card.write_text(text.replace("license: ", "license:  "))
    with pytest.raises(UserError, match="README.md was edited"):
        write(folder, trees)


@pytest.mark.parametrize("existing", [True, False])
def test_failed_writing_leaves_everything(folder, trees, monkeypatch, existing):
    target = folder if existing else folder.parent / "new"
    before = contents(folder)

    whole_file = model_folder.whole_file

    @contextlib.contextmanager
    def full(path):
        with whole_file(path) as file:
            if path.name == "README.md":  # the last that is opened
                raise OSError(28, "No space left on device")
            yield file

    monkeypatch.setattr(model_folder, "whole_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        write(target, trees)
    assert contents(folder) == before
    assert target.exists() == existing


def test_output_that_cannot_be_a_folder_is_named(tmp_path, trees):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="folder=.*file: .*is a file"):
        write(tmp_path / "file", trees)


def test_arrays_must_be_those_of_the_settings(tmp_path, trees):
    with pytest.raises(UserError, match="not that of its settings.*another shape"):
        write(tmp_path / "new", trees, width=8)
    assert not (tmp_path / "new").exists()


def test_a_model_folder_is_told_from_a_workdir(written, tmp_path):
    assert is_model_folder(written) and not is_model_folder(tmp_path)
    assert find_model_folder(written) == find_model_folder(str(written)) == written
    (tmp_path / "config.json").write_text('{"model": {}}')
    (tmp_path / "checkpoints").mkdir()
    assert not is_model_folder(tmp_path)
    with pytest.raises(UserError, match="a workdir, no model folder; use from_workdir"):
        find_model_folder(tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "/a/b", "hf://a", "", "a b/c"])
def test_what_is_no_source_is_one_error_with_all_forms(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not source:
        source = tmp_path / "x" / "y"  # a Path is never an address
    with pytest.raises(UserError) as caught:
        find_model_folder(source)
    assert "OWNER/REPO and hf://OWNER/REPO@REVISION" in str(caught.value)


@pytest.mark.parametrize("name", ["a\n\x1b[31mb", "x" * 9999])
def test_names_of_arrays_are_printed_as_text(folder, name):
    arrays = load_file(folder / "model.safetensors")
    arrays[name] = np.zeros(1, np.float32)
    save_file(arrays, folder / "model.safetensors")
    assert "1 arrays unexpected: " in one_line(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(mean=(np.nan, 0, 0)), "data.mean"),
        (dict(class_names=("a", "a", "b")), "data.class_names"),
        (dict(colors=voc_colormap(2)), "data.colors"),
        (dict(label_map={1000: 1}), "data.label_map"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, trees, changes, message):
    with pytest.raises(UserError, match=f"the model: {message}"):
        write(tmp_path / "new", trees, info=dataclasses.replace(INFO, **changes))
    with pytest.raises(UserError, match="the model: model.dtype='float16'"):
        write(tmp_path / "new", trees, dtype="float16")
    assert not (tmp_path / "new").exists()


def test_numpy_values_are_stored_as_numbers(tmp_path, trees):
    info = dataclasses.replace(
        INFO,
        mean=np.array(INFO.mean),
        colors=np.uint8(INFO.colors),
        value_range=(np.float32(0), np.float32(3)),
        label_map={np.uint8(7): np.int64(1)},
    )
    write(tmp_path / "new", trees, info=info)
    expected = dataclasses.replace(INFO, value_range=(0, 3), label_map={7: 1})
    assert read_model_folder(tmp_path / "new").info == expected


def test_files_and_unusual_names_never_reach_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match="model/config.json: a file; must be"):
        find_model_folder("model/config.json")
    for source in ("a" * 300, "hf://a/b@../x", "~nobody-here/x", "a\0b"):
        with pytest.raises(UserError, match="no such|null"):
            find_model_folder(source)


def test_safetensors_marks_its_files(written):
    with safetensors.safe_open(written / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "encnet_jax"}
