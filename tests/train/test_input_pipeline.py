"""What batches need, said before a training starts."""

import sys

import numpy as np
import pytest

from encnet_jax.config import default
from encnet_jax.data.object_dataset import as_datasets
from encnet_jax.errors import UserError
from encnet_jax.train import train
from encnet_jax.train.input_pipeline import open_splits
from tests.settings.toy import toy_config, toy_dataset

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
