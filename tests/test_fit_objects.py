"""Training from data set objects, by `fit` and by `train`."""

import json

import numpy as np
import pytest
from PIL import Image

import encnet_jax
from encnet_jax import fit_arrays
from encnet_jax.config import load_config
from encnet_jax.data.object_dataset import as_datasets
from encnet_jax.errors import UserError
from encnet_jax.fit_arrays import small_config
from encnet_jax.run.preemption import SigtermHandler
from encnet_jax.train import train
from tests.commands import run, trained_arrays
from tests.test_fit_arrays import squares, tiny

NAMES = ("ground", "square")


def objects(count=12):
    """Returns pairs of images of several sizes and Pillow images of their labels."""
    return [
        (image[: 32 - 2 * (n % 3)], Image.fromarray(labels[: 32 - 2 * (n % 3)]))
        for n, (image, labels) in enumerate(zip(*squares(count)))
    ]


def config_for(pairs, steps):
    image, labels = (np.asarray(part)[None] for part in pairs[0])
    config = tiny(small_config(image, labels))
    config.evaluation.mode = "slide"
    config.total_steps = config.eval_every = config.checkpoint_every = steps
    return config


@pytest.mark.slow
def test_from_pairs_to_predictions_and_resumed_to_the_same_weights(
    tmp_path, monkeypatch
):
    pairs = objects()
    config = config_for(pairs, 40)
    settings = dict(dataset=pairs, validation=pairs[:3], class_names=NAMES)
    settings["config"] = config
    whole, folder = tmp_path / "whole", tmp_path / "interrupted"
    segmenter = encnet_jax.fit(**settings, workdir=whole)
    correct = []
    for image, labels in pairs:
        labels = np.asarray(labels)
        correct.append((segmenter(image).labels == labels)[labels != 255].mean())
    assert np.mean(correct) > 0.9
    assert segmenter.info.class_names == NAMES
    assert load_config(whole / "config.json").data.name == "objects 12"
    monkeypatch.setattr(SigtermHandler, "due", lambda self, step: step == 5)
    with pytest.raises(UserError, match="stopped by SIGTERM; call fit again to resume"):
        encnet_jax.fit(**settings, workdir=folder)
    monkeypatch.undo()
    encnet_jax.fit(**settings, workdir=folder)
    arrays = zip(trained_arrays(whole), trained_arrays(folder), strict=True)
    for expected, found in arrays:
        np.testing.assert_array_equal(expected, found)
    # The order of other examples is another.
    settings["dataset"] = pairs[1:]
    with pytest.raises(UserError, match="data.name='objects 11'.*another --workdir"):
        encnet_jax.fit(**settings, workdir=folder)


def test_split_of_hugging_face_trains_a_classifier(tmp_path):
    datasets = pytest.importorskip("datasets")
    images, _ = squares(8)
    labels = [0, 1] * 4
    images[1::2] //= 4
    split = datasets.Dataset.from_dict(
        {"image": list(map(Image.fromarray, images)), "label": labels},
        datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=["light", "dark"])
        ),
    )
    config = small_config(images, np.array(labels))
    config.model.width, config.model.num_codes, config.mesh.data = 4, 2, 1
    config.total_steps = config.eval_every = config.checkpoint_every = 2
    config.batch_size, config.optimizer.warmup_steps = 4, 0
    scores = train(config, tmp_path, datasets=(split, split))
    assert scores is not None and 0 <= scores["accuracy"] <= 1
    assert load_config(tmp_path / "config.json").data.name == "objects 8"
    assert config.data.name == ""
    classifier = encnet_jax.Classifier.from_workdir(tmp_path)
    assert classifier.info.class_names == ("light", "dark")


def test_train_takes_pairs_with_names_and_a_label_to_ignore(tmp_path):
    images, labels = squares(4)
    pairs = [*zip(images, labels % 255)]
    config = config_for(pairs, 1)
    config.batch_size, config.optimizer.warmup_steps = 4, 0
    config.data.cache_on_device = True
    config.loss.class_balance = "log"
    with pytest.raises(UserError, match="class_names: missing"):
        train(config, tmp_path / "run", datasets=(pairs, pairs))
    assert not (tmp_path / "run").exists()
    splits = as_datasets(pairs, pairs[:2], NAMES, ignore_label=0)
    assert train(config, tmp_path / "run", datasets=splits) is not None
    stored = json.loads((tmp_path / "run/class_weights.json").read_text())
    weights = [1 / np.log(1.02 + share) for share in (0, 1)]  # nothing but squares
    np.testing.assert_allclose([*stored["class_weights"].values()], weights, rtol=1e-6)


@pytest.fixture
def trained_on(monkeypatch):
    """Replaces training; returns what it is called with."""
    calls = []
    monkeypatch.setattr(
        fit_arrays,
        "train",
        lambda config, workdir, datasets: calls.append((config, *datasets)),
    )

    def call(**settings):
        with pytest.raises(UserError, match="stopped by SIGTERM"):
            encnet_jax.fit(**settings)
        return calls.pop()

    return call


def test_default_configuration_is_that_of_the_first_example(trained_on):
    pairs = objects(3)[1:]
    config, dataset, scored = trained_on(dataset=pairs, class_names=NAMES)
    assert (config.data.base_size, config.data.crop_size) == (32, 24)
    assert config.evaluation.mode == "slide" and not config.data.cache_on_device
    assert scored is dataset
    classes = [(image, 0) for image, _ in pairs]
    config, dataset, _ = trained_on(dataset=classes, class_names=NAMES)
    assert config.model.name == "encnet14" and dataset.info.task == "classification"


def test_ignored_label_reaches_both_splits(trained_on):
    labels = np.full((8, 8), -1)
    labels[:4] = 1
    pairs = [(np.zeros((8, 8, 3), np.uint8), labels)]
    settings = dict(class_names=NAMES, ignore_label=-1)
    _, *splits = trained_on(dataset=pairs, validation=pairs * 2, **settings)
    for dataset in splits:
        np.testing.assert_array_equal(dataset[0].labels, np.where(labels < 0, 255, 1))


def test_arrays_and_objects_exclude_each_other(tmp_path):
    images, labels = squares(2)
    for settings in ({}, {"images": images}, {"labels": labels}):
        with pytest.raises(UserError, match="images, labels: both must be given"):
            encnet_jax.fit(**settings, workdir=tmp_path)
    for settings in ({"images": images}, {"labels": labels}):
        with pytest.raises(UserError, match="dataset: takes the place of images"):
            encnet_jax.fit(**settings, dataset=[], workdir=tmp_path)


BARE = """
import sys
sys.modules.update(dict.fromkeys({missing}))  # as if they were not installed
from encnet_jax.config import default
from encnet_jax.data.object_dataset import as_datasets
from encnet_jax.train.input_pipeline import check_packages, create_batches
from tests.test_fit_objects import NAMES, objects
config = default()
config.batch_size, config.data.crop_size = 4, 16
pairs = objects(3)
for splits in (pairs, pairs), as_datasets(pairs, None, NAMES):
    check_packages(config, splits)
for config.data.resize in ("host", "device"):
    batches = create_batches(config, splits[0], 0)
    print(next(batches)["labels"].shape)
    batches.close()
"""


def test_batches_need_no_tensorflow():
    missing = ["tensorflow", "tensorflow_datasets", "matplotlib"]
    missing += ["tensorboardX", "tqdm", "datasets"]
    result = run("-c", BARE.format(missing=missing))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == ["(4, 16, 16)"] * 2
