"""What batches need, said before a training starts, and what is stored of it."""

import os
import sys

import numpy as np
import pytest

from encnet_jax.config import default, load_config, save_config
from encnet_jax.data.dataset_info import save_info
from encnet_jax.data.object_dataset import as_datasets
from encnet_jax.errors import UserError
from encnet_jax.export.run import export_workdir
from encnet_jax.fit_arrays import small_config
from encnet_jax.run.workdir import load_model_folder, load_workdir
from encnet_jax.train import train
from encnet_jax.train.input_pipeline import open_splits
from encnet_jax.train.step import augment
from tests.commands import make_camvid
from tests.settings.toy import toy_config, toy_dataset
from tests.test_fit_arrays import squares, tiny

NETWORK = {"model.name": "fcn", "model.backbone": "tiny"}


def test_training_from_files_without_tensorflow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    config = toy_config(**NETWORK)
    config.data.cache_on_device = False
    dataset = toy_dataset()
    message = r"training from files needs tensorflow, .*install 'encnet-jax\[train\]'"
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", (dataset, dataset))
    assert not (tmp_path / "run").exists()


def test_objects_of_one_training_serve_another_of_another_range(tmp_path):
    pairs = [(np.uint8([[[0, 40]], [[20, 100]]]), np.array([[0], [1]]))] * 2
    splits = as_datasets(pairs, class_names=["a", "b"], channels=2)
    config = default()
    config.data.channels = 2
    for high in (100, 200):
        config.data.value_range = (0, high)
        _, dataset, validation = open_splits(config, splits, tmp_path)
        assert dataset is validation
        assert dataset.info.value_range == ((0, high),) * 2
        np.testing.assert_allclose(dataset.info.mean, (10 / high, 70 / high), 1e-4)
    assert splits[0].info.value_range is None and splits[0].info.mean == (0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": "device"}, "data.resize='device': must be 'host' with data.cache"),
        ({"padded_size": 9}, "data.padded_size=9: must be 0 without data.resize="),
    ],
)
def test_setting_that_nothing_would_read_is_refused(tmp_path, changes, message):
    config = toy_config(**NETWORK)
    config.data.cache_on_device = True
    config.data.update(changes)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", (toy_dataset(), toy_dataset()))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def camvid_config(tmp_path, monkeypatch):
    """A configuration with CamVid in the current folder."""
    make_camvid(tmp_path / "sets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = default()
    config.data.name = "camvid"
    return config


@pytest.mark.parametrize("given", ["sets", "./sets", "~/sets", "../{}/sets"])
def test_folder_of_the_data_set_is_stored_for_any_current_folder(
    camvid_config, tmp_path, given
):
    camvid_config.data.data_dir = given = given.format(tmp_path.name)
    config, dataset, _ = open_splits(camvid_config, None, tmp_path / "run")
    stored = config.data.data_dir
    assert os.path.isabs(stored) and os.path.samefile(stored, tmp_path / "sets")
    assert len(dataset) == 8
    assert camvid_config.data.data_dir == given  # the caller's own


def test_links_in_the_folder_stay_as_they_are_given(camvid_config, tmp_path):
    (tmp_path / "today").symlink_to("sets")
    camvid_config.data.data_dir = "today"
    config, *_ = open_splits(camvid_config, None, tmp_path / "run")
    assert config.data.data_dir == str(tmp_path / "today")


@pytest.mark.parametrize("given", [None, "", "gs://BUCKET/tfds"])
def test_addresses_and_no_folder_are_stored_as_given(tmp_path, given):
    config, splits = toy_config(), (toy_dataset(), toy_dataset())
    config.data.data_dir = given
    assert open_splits(config, splits, tmp_path)[0].data.data_dir == given


def test_unknown_home_folder_is_an_error_of_the_key(camvid_config, tmp_path):
    camvid_config.data.data_dir = "~nobody-here/sets"
    message = "data.data_dir=~nobody-here/sets: no such user"
    with pytest.raises(UserError, match=message):
        open_splits(camvid_config, None, tmp_path / "run")


def test_run_with_a_relative_folder_resumes_and_then_has_the_absolute_one(
    tmp_path, monkeypatch
):
    """The run and the model folder are given as text, in the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    images, labels = squares()
    config = tiny(small_config(images, labels))
    config.data.update(name="squares", data_dir="mine", cache_on_device=True)
    config.total_steps, config.optimizer.warmup_steps = 2, 0
    pairs = list(zip(images, labels))
    splits = as_datasets(pairs, class_names=["ground", "square"], ignore_label=255)
    train(config, "~/run", splits)
    stored = load_config("~/run/config.json")
    assert stored.data.data_dir == str(tmp_path / "mine")
    stored.data.data_dir = "mine"  # as older versions stored it
    save_config(stored, "~/run/config.json")
    config.total_steps = 3
    train(config, "~/run", splits)
    stored = load_config(tmp_path / "run" / "config.json")
    assert stored.data.data_dir == str(tmp_path / "mine")
    assert load_workdir("~/run").step == 3
    export_workdir("~/run", "~/model", "pretrained")
    folder = load_workdir("~/model")
    assert folder.step == 3 and (tmp_path / "model" / "README.md").exists()
    assert load_model_folder("~/model").info == folder.info
    with pytest.raises(UserError, match="hf://me/run: must be a folder"):
        load_workdir("hf://me/run")


def test_bands_are_measured_anew_where_there_is_no_checkpoint(tmp_path):
    """A run that ended before its first one may have been of other data."""
    rng = np.random.default_rng(0)

    def opened(high):
        images = rng.integers(0, high, (2, 8, 8, 4), np.uint8)
        labels = np.zeros((8, 8), np.uint8)
        examples = [(image, labels) for image in images]
        config = default()
        config.data.channels = 4
        splits = as_datasets(examples, None, ("a", "b"), channels=4)
        return open_splits(config, splits, tmp_path)[:2]

    config, dark = opened(20)
    save_config(config, tmp_path / "config.json")
    save_info(dark.info, tmp_path / "classes.json")
    assert opened(250)[1].info.mean > dark.info.mean
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert opened(250)[1].info.mean == dark.info.mean


def test_batch_of_indices_without_an_augmentation_is_named():
    with pytest.raises(ValueError, match="augmentation: needed for .* index, epoch"):
        augment({}, {"index": 0, "epoch": 0}, None)
