"""What batches need, said before a training starts."""

import sys

import pytest

from encnet_jax.errors import UserError
from encnet_jax.train import train
from tests.settings.toy import toy_config, toy_dataset


def test_training_from_files_without_tensorflow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    config = toy_config()
    config.data.cache_on_device = False
    dataset = toy_dataset()
    message = r"training from files needs tensorflow, .*install 'encnet-jax\[train\]'"
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", (dataset, dataset))
    assert not (tmp_path / "run").exists()
