"""Class weights computed from the training split."""

import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image

import encnet_jax
from encnet_jax.config import default
from encnet_jax.data.dataset_info import CIFAR10, DatasetInfo, voc_colormap
from encnet_jax.data.datasets import Example, FileDataset
from encnet_jax.data.statistics import Statistics, log_weights, summarize
from encnet_jax.errors import UserError
from encnet_jax.fit_arrays import small_config
from encnet_jax.train import class_balance, trainer
from encnet_jax.train.class_balance import create_weights, save_weights
from encnet_jax.train.settings import check_task
from tests.test_fit_arrays import squares, tiny

INFO = DatasetInfo("hand", ("sky", "house", "never"), voc_colormap(3), {})
LABELS = [[[0, 0, 0], [0, 1, 255]]], [[[0, 1]]], [[[0, 0]]]
# 7 pixels of class 0, 2 of class 1; images with them have 10 and 8 pixels.
FREQUENCIES = 7 / 10, 2 / 8
MEDIAN = [np.mean(FREQUENCIES) / FREQUENCIES[0], np.mean(FREQUENCIES) / FREQUENCIES[1]]
EXPECTED = {
    "median_frequency": [*MEDIAN, 1],
    "log": [1 / np.log(1.02 + 7 / 9), 1 / np.log(1.02 + 2 / 9), 1 / np.log(1.02)],
}


class ListDataset:
    """Examples in memory; records which are read."""

    info = INFO

    def __init__(self):
        self.read = []

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        self.read.append(index)
        labels = np.uint8(LABELS[index][0])
        return Example(np.zeros((*labels.shape, 3), np.uint8), labels, str(index))


def config_of(rule):
    config = default()
    config.total_steps = 1
    config.loss.class_balance = rule
    return config


@pytest.mark.parametrize("rule", EXPECTED)
def test_weights_are_those_worked_out_by_hand(rule, tmp_path, caplog):
    caplog.set_level(logging.INFO, "encnet_jax")
    dataset = ListDataset()
    weights = create_weights(config_of(rule), dataset, tmp_path, resumes=False)
    np.testing.assert_allclose(weights, EXPECTED[rule], rtol=1e-12)
    assert sorted(dataset.read) == [0, 1, 2]
    assert f"class_balance={rule}: class weights sky {weights[0]:.4g}" in caplog.text


def test_weights_are_none_unless_asked_for(tmp_path):
    dataset = ListDataset()
    assert create_weights(config_of(""), dataset, tmp_path, resumes=False) is None
    save_weights(None, config_of(""), dataset, tmp_path)
    assert not dataset.read and not list(tmp_path.iterdir())


def test_log_weights_of_no_pixel_are_finite():
    assert np.isfinite(log_weights(Statistics.empty(2))).all()


def test_counts_of_the_check_are_not_taken_again(tmp_path):
    dataset = ListDataset()
    dataset.statistics = summarize(dataset, range(3))
    dataset.read.clear()
    weights = create_weights(config_of("log"), dataset, tmp_path, resumes=False)
    np.testing.assert_allclose(weights, EXPECTED["log"], rtol=1e-12)
    assert not dataset.read


def test_resumed_run_keeps_its_weights_without_reading(tmp_path):
    config, dataset = config_of("log"), ListDataset()
    stored = (0.1, 1 / 3, 7e-9)
    save_weights(stored, config, dataset, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["class_weights.json"]
    assert create_weights(config, dataset, tmp_path, resumes=True) == stored
    assert not dataset.read
    # Not before there is something to resume, nor with another rule.
    for rule, resumes in (("log", False), ("median_frequency", True)):
        weights = create_weights(config_of(rule), dataset, tmp_path, resumes=resumes)
        np.testing.assert_allclose(weights, EXPECTED[rule], rtol=1e-12)
    path = tmp_path / "class_weights.json"
    path.write_text('{"class_balance": "log", "class_weights": {"sky": 1}}')
    with pytest.raises(UserError, match="class_weights.json: not the class weights"):
        create_weights(config, dataset, tmp_path, resumes=True)
    stored = {name: 1.0 for name in INFO.class_names}
    stored["sky"] = -1.0
    text = {"class_balance": "log", "class_weights": stored}
    path.write_text(json.dumps(text))
    with pytest.raises(UserError, match="class_weights.json: not the class weights"):
        create_weights(config, dataset, tmp_path, resumes=True)
    path.unlink()
    weights = create_weights(config, dataset, tmp_path, resumes=True)
    np.testing.assert_allclose(weights, EXPECTED["log"], rtol=1e-12)


def test_hosts_share_the_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    sums = []
    monkeypatch.setattr(
        class_balance, "sum_over_hosts", lambda x: sums.append(x.tolist()) or x
    )
    dataset = ListDataset()
    create_weights(config_of("log"), dataset, tmp_path, resumes=False)
    assert sorted(dataset.read) == [0, 2]
    assert [6, 1, 0] in sums


def test_images_of_files_are_not_decoded_for_it(tmp_path):
    pairs = []
    for index, (labels,) in enumerate(LABELS):
        image, label = (tmp_path / f"{kind}{index}.png" for kind in ("image", "label"))
        Image.fromarray(np.uint8(labels)).save(label)
        Image.new("RGB", (40, 40)).save(image)  # of another size than the labels
        pairs.append((image, label))
    dataset = FileDataset(INFO, pairs)
    weights = create_weights(config_of("log"), dataset, tmp_path, resumes=False)
    np.testing.assert_allclose(weights, EXPECTED["log"], rtol=1e-12)
    Image.fromarray(np.full((2, 2), 255, np.uint8)).save(pairs[0][1])
    dataset.pairs = pairs[:1]
    with pytest.raises(UserError, match="class_balance: no pixel of hand has a class"):
        create_weights(config_of("log"), dataset, tmp_path, resumes=False)


def test_classes_of_whole_images_are_not_weighted():
    config = config_of("log")
    config.model.name = "resnet14"
    with pytest.raises(UserError, match="loss.class_balance='log'.* is ''"):
        check_task(config, CIFAR10)


def test_training_computes_uses_and_keeps_the_weights(tmp_path, monkeypatch):
    images, labels = squares(2)
    config = tiny(small_config(images, labels))
    config.loss.class_balance = "log"
    used = []
    make = trainer.make_train_step

    def spy(*arguments, loss_settings, **settings):
        used.append(loss_settings["class_weights"])
        return make(*arguments, loss_settings=loss_settings, **settings)

    def save_one_step(self, start):
        self.checkpoints.save(self.state, 1)
        self.checkpoints.close()

    monkeypatch.setattr(trainer, "make_train_step", spy)
    monkeypatch.setattr(trainer.Trainer, "_take_steps", save_one_step)
    counts = np.bincount(labels[labels != 255])
    expected = (1 / np.log(1.02 + counts / counts.sum())).tolist()
    for _ in range(2):  # trained, then resumed without computing them
        with pytest.raises(UserError, match="SIGTERM"):
            encnet_jax.fit(images, labels, config, workdir=tmp_path)
        stored = json.loads((tmp_path / "class_weights.json").read_text())
        np.testing.assert_allclose(used[0], expected, rtol=1e-12)
        assert stored == {
            "class_balance": "log",
            "class_weights": dict(zip(("class 0", "class 1"), used[0])),
        }
        monkeypatch.setattr(class_balance, "CLASS_BALANCES", {})
    assert used == [used[0]] * 2
