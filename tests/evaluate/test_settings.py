"""Settings of an evaluation: those of the training, unless a flag sets others."""

import json
import logging

import pytest

from encnet_jax.config import default, save_config
from encnet_jax.data.dataset_info import CAMVID
from encnet_jax.errors import UserError
from encnet_jax.evaluate.settings import (
    check_data_folder,
    describe_differences,
    differences_from_training,
    evaluated_split,
    evaluation_config,
    evaluation_name,
)
from encnet_jax.run import folder_config


def given(**data):
    """A configuration as a file gives it; every value differs from the run's."""
    config = default()
    config.data.name = "camvid"
    config.data.update(data)
    config.mesh.data = 1
    return config


@pytest.fixture
def run(tmp_path):
    """A workdir that was trained by other settings than the file's."""
    config = default()
    config.data.name = "camvid"
    config.data.data_dir = "/data/camvid"
    config.data.base_size, config.data.crop_size = 96, 64
    config.data.cache_on_device = True
    config.model.backbone = "resnet18"
    config.evaluation.update(
        split="test", mode="slide", base_size=80, stride=20, absent_classes="zero"
    )
    config.mesh.data = 8
    save_config(config, tmp_path / "config.json")
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    return tmp_path, config


def test_everything_that_changes_scores_comes_from_the_run(run):
    workdir, trained = run
    config = evaluation_config(given(), workdir, ())
    assert config.evaluation == trained.evaluation
    assert config.model == trained.model
    for key in ("base_size", "crop_size", "cache_on_device", "data_dir"):
        assert config.data[key] == trained.data[key]
    assert config.mesh.data == 1  # the devices of this machine
    assert not differences_from_training(config, workdir)


def test_flags_count_and_are_reported(run):
    workdir, trained = run
    config = given(base_size=48, data_dir="/elsewhere")
    config.evaluation.scales = (0.5, 1.0)
    config.evaluation.stride = 20
    config.model.dtype = "float32"
    explicit = ["data.base_size", "evaluation.scales", "evaluation.stride"]
    config = evaluation_config(config, workdir, [*explicit, "model.dtype"])
    assert (config.data.base_size, config.data.crop_size) == (48, 64)
    assert config.data.data_dir == "/elsewhere"
    differences = differences_from_training(config, workdir)
    assert differences == {
        "data.base_size": {"value": 48, "training": 96},
        "model.dtype": {"value": "float32", "training": "auto"},
        "evaluation.scales": {"value": [0.5, 1.0], "training": []},
    }
    assert describe_differences(differences) == (
        "data.base_size=48 (training: 96), model.dtype='float32' (training: 'auto'), "
        "evaluation.scales=[0.5, 1.0] (training: [])"
    )


def test_flag_that_nothing_reads_is_no_difference(run):
    workdir, _ = run
    config = evaluation_config(given(), workdir, ())
    assert config.evaluation.mode == "slide"  # its windows have model.align_corners
    config.evaluation.align_corners = not config.evaluation.align_corners
    assert not differences_from_training(config, workdir)
    config.evaluation.mode = "whole"
    assert "evaluation.align_corners" in differences_from_training(config, workdir)


def test_values_of_the_file_that_are_not_used_are_logged(run, caplog):
    workdir, _ = run
    with caplog.at_level(logging.INFO, "encnet_jax"):
        evaluation_config(given(), workdir, ())
    (line,) = caplog.messages
    assert "data.base_size=96, not 520" in line
    assert "evaluation.mode='slide', not 'whole'" in line
    assert "model" not in line and "split" not in line


def test_another_data_set_brings_its_folder_and_split(run):
    workdir, trained = run
    config = given(name="folder", data_dir=None)
    config.evaluation.split = "val"
    config = evaluation_config(config, workdir, ())
    assert (config.data.name, config.data.data_dir) == ("folder", None)
    assert config.evaluation.split == "val"
    assert config.data.base_size == trained.data.base_size
    assert differences_from_training(config, workdir) == {
        "data.name": {"value": "folder", "training": "camvid"}
    }


def test_folder_in_the_environment_counts_as_given(run, monkeypatch):
    workdir, trained = run
    monkeypatch.setenv("ENCNET_CAMVID", "/other")
    assert evaluation_config(given(), workdir, ()).data.data_dir is None


def test_limit_of_pixels_is_that_of_the_training(run):
    workdir, trained = run
    trained.data.max_image_pixels = 10**9
    save_config(trained, workdir / "config.json")
    config = evaluation_config(given(), workdir, ())
    assert config.data.max_image_pixels == 10**9
    assert not differences_from_training(config, workdir)


def test_model_folder_sets_what_it_stores(run):
    workdir, trained = run
    stored = folder_config.to_json(trained, CAMVID, {})
    (workdir / "config.json").write_text(json.dumps(stored))
    file = given(data_dir="/data")
    file.evaluation.update(split="train", object_sizes=True)
    config = evaluation_config(file, workdir, ())
    expected = file.evaluation.to_dict() | dict(
        mode="slide", base_size=80, stride=20, crop_size=64, scales=()
    )
    assert config.evaluation.to_dict() == expected
    assert config.data.crop_size == 64 and config.data.data_dir == "/data"
    assert config.model.backbone == "resnet18"
    assert not differences_from_training(config, workdir)
    config.evaluation.flip = True
    assert [*differences_from_training(config, workdir)] == ["evaluation.flip"]


def test_another_network_is_refused(run):
    workdir, _ = run
    config = given()
    with pytest.raises(UserError, match="model.backbone='resnet50': the run in .* has"):
        evaluation_config(config, workdir, ["model.backbone"])


def test_imported_weights_are_evaluated_by_the_file(run):
    workdir, trained = run
    (workdir / "checkpoints" / "100").rename(workdir / "checkpoints" / "0")
    trained.evaluation.align_corners = True
    save_config(trained, workdir / "config.json")
    config = evaluation_config(given(), workdir, ())
    assert config.data.base_size == 520 and config.evaluation.mode == "whole"
    assert config.evaluation.align_corners and config.model == trained.model
    assert not differences_from_training(config, workdir)


@pytest.mark.parametrize("data_dir", ["leaves", "/nowhere/leaves"])
@pytest.mark.parametrize("name", ["camvid", "folder"])
def test_stored_folder_that_is_gone_is_named_with_its_origin(
    run, tmp_path_factory, monkeypatch, data_dir, name
):
    workdir, trained = run
    monkeypatch.chdir(here := tmp_path_factory.mktemp("elsewhere"))
    trained.data.update(name=name, data_dir=data_dir)
    save_config(trained, workdir / "config.json")
    config = evaluation_config(given(name=name), workdir, ())
    with pytest.raises(UserError) as caught:
        check_data_folder(config, workdir, labels=True)
    place = "" if data_dir[0] == "/" else f" in {here}"
    assert str(caught.value) == (
        f"data.data_dir={data_dir!r}, as {workdir}/config.json has it: no such folder"
        f"{place}; give that of the data set: --config.data.data_dir=DIR"
    )
    # Those of `--images` need of CamVid no more than its classes.
    if name == "camvid":
        check_data_folder(config, workdir, labels=False)
    else:
        with pytest.raises(UserError, match="as .*config.json has it"):
            check_data_folder(config, workdir, labels=False)
    # What was given is not blamed on the run.
    given_here = evaluation_config(given(name=name, data_dir="mine"), workdir, ())
    check_data_folder(given_here, workdir, labels=True)


def test_stored_relative_folder_that_is_here_is_logged(
    run, tmp_path, monkeypatch, caplog
):
    workdir, trained = run
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaves").mkdir()
    trained.data.data_dir = "leaves"
    save_config(trained, workdir / "config.json")
    config = evaluation_config(given(), workdir, ())
    caplog.clear()
    with caplog.at_level(logging.INFO, "encnet_jax"):
        check_data_folder(config, workdir, labels=True)
    (line,) = caplog.messages
    assert line.startswith("data.data_dir='leaves', as ")
    assert line.endswith(f"is {tmp_path / 'leaves'} here")


@pytest.mark.parametrize("data_dir", [None, "gs://bucket/tfds", "tfds"])
def test_folders_of_prepared_data_sets_are_not_looked_up(run, data_dir):
    workdir, trained = run
    trained.data.update(name="ade20k", data_dir=data_dir)
    save_config(trained, workdir / "config.json")
    config = evaluation_config(given(name="ade20k"), workdir, ())
    check_data_folder(config, workdir, labels=True)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (dict(), "test"),
        (dict(mode="slide"), "test"),
        (dict(mode="slide", scales=(1.0,)), "test"),
        (dict(protocol="mmseg", scales=(1.0,)), "test"),
        (dict(mode="slide", scales=(0.5,)), "test-ms"),
        (dict(scales=(1.0, 2.0)), "test-ms"),
        (dict(scales=(1.0,)), "test-ms"),  # windows in place of whole images
    ],
)
def test_files_are_named_by_split_and_scales(settings, name):
    config = default()
    config.evaluation.update(settings)
    assert evaluation_name("test", config.evaluation) == name
    assert evaluated_split(name) == "test"
