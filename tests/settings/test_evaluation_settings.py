"""Each key of `evaluation`, by what the function of `train` and `evaluate` does."""

import json

import numpy as np
import pytest
from flax import nnx

from encnet_jax.config import default
from encnet_jax.data import dataset_info as infos
from encnet_jax.data.array_dataset import ArrayDataset
from encnet_jax.evaluate import evaluator
from encnet_jax.evaluate.evaluator import ImagePrediction
from encnet_jax.evaluate.run import evaluate_workdir
from encnet_jax.inference.tta import MmsegProtocol
from encnet_jax.run.model_config import check_config
from encnet_jax.train import trainer, validation
from tests.settings.test_data_settings import ToyClassifier, files, folder, numbered
from tests.settings.toy import lines, toy_config, toy_dataset

sets = pytest.mark.sets
__all__ = ["folder"]  # a fixture
IMAGE = np.full((20, 40, 3), 100, np.uint8)


@pytest.fixture
def segmenting(toys, monkeypatch, tmp_path):
    """Returns a function that trains for a step and returns how it evaluates.

    That is the protocol of windows, or the arguments for whole images; and the batch
    size. All pixels are predicted as class 0.
    """

    def run(labels=None, datasets=(), **changes):
        found = {"batch_sizes": []}

        def predict(params, batch_stats, examples, batch_size):
            found["batch_sizes"].append(batch_size)
            for index, example in examples:
                yield ImagePrediction(index, example, 0 * example.labels)

        def windows(model, info, protocol, mesh):
            found.update(protocol=protocol, devices=mesh.size)
            return predict

        def whole(model, info, base_size, align_corners, mesh):
            found.update(base_size=base_size, align_corners=align_corners)
            return predict

        monkeypatch.setattr(evaluator, "make_window_fn", windows)
        monkeypatch.setattr(evaluator, "make_whole_image_fn", whole)
        config = toy_config(total_steps=1, **changes)
        check_config(config)
        if datasets == ():
            datasets = (toy_dataset(labels),) * 2
        trainer.train(config, tmp_path / "run", datasets)
        (found["scores"],) = [x for x in lines(tmp_path / "run") if "mean_iou" in x]
        return found

    return run


@sets("mesh.data", "evaluation.batch_size")
def test_devices_and_batch_of_a_classifier(monkeypatch):
    found = {}

    def make(classify, size, mesh):
        def predict(params, batch_stats, examples, batch_size):
            found.update(devices=mesh.size, batch_size=batch_size, size=size)
            for index, example in examples:
                yield ImagePrediction(index, example, np.asarray(example.labels))

        return predict

    monkeypatch.setattr(validation, "make_class_fn", make)
    dataset = ArrayDataset(infos.CIFAR10, numbered().images, np.arange(4))
    config = default()
    config.mesh.data, config.evaluation.batch_size = 2, 3
    config.data.crop_size = 24
    model = ToyClassifier(10, rngs=nnx.Rngs(0))
    validation.make_validate_fn(config, model, dataset, infos.CIFAR10)({}, {})
    assert found == {"devices": 2, "batch_size": 3, "size": 24}


def views(found):
    return list(found["protocol"].views(IMAGE))


def shapes(found):
    return [view.pixels.shape[:2] for view in views(found)]


SLIDE = {"evaluation.mode": "slide", "data.base_size": 40, "data.crop_size": 20}
MMSEG = {"evaluation.protocol": "mmseg"}
# Key, value, the settings with it, what of the evaluation it sets, and that.
CASES = [
    ("mode", "slide", {}, lambda found: "protocol" in found, True),
    ("protocol", "mmseg", {}, lambda found: type(found["protocol"]), MmsegProtocol),
    ("batch_size", 3, {}, lambda found: found["batch_sizes"], [3]),
    ("base_size", 30, {}, lambda found: found["base_size"], 30),
    ("base_size", 32, SLIDE, lambda found: shapes(found)[0][1] >= 32, True),
    ("base_size", 30, MMSEG, shapes, [(15, 30)]),
    ("short_size", 10, MMSEG, shapes, [(10, 20)]),
    ("align_corners", True, {}, lambda found: found["align_corners"], True),
    ("align_corners", True, MMSEG, lambda found: found["protocol"].align_corners, True),
    ("scales", (0.5, 2.0), MMSEG, shapes, [(10, 20), (40, 80)]),
    ("scales", (1.0, 2.0), SLIDE, lambda found: len(views(found)), 2),
    ("flip", True, SLIDE, lambda found: found["protocol"].mirror_windows, True),
    ("flip", True, MMSEG, lambda found: len(views(found)), 2),
    ("crop_size", 40, SLIDE, lambda found: len(views(found)[0].columns), 1),
    ("stride", 5, SLIDE, lambda found: len(views(found)[0].columns), 5),
]


@pytest.mark.parametrize(
    ("key", "value", "others", "of", "expected"),
    [pytest.param(*c, id=c[0], marks=sets(f"evaluation.{c[0]}")) for c in CASES],
)
def test_protocol(key, value, others, of, expected, segmenting):
    found = segmenting(**others, **{f"evaluation.{key}": value})
    assert of(found) == expected


@sets("model.align_corners")
def test_corners_of_windows(segmenting):
    found = segmenting(**SLIDE, **{"model.align_corners": False})
    assert not found["protocol"].align_corners


@sets("data.base_size")
def test_whole_images_as_in_training(segmenting):
    assert segmenting(**{"data.base_size": 30})["base_size"] == 30


@sets("data.base_size", "data.crop_size")
def test_windows_as_in_training(segmenting):
    found = segmenting(**SLIDE)
    assert found["protocol"].base_size == 40 and found["protocol"].crop_size == 20


@sets("mesh.data")
def test_devices_of_windows(segmenting):
    assert segmenting(**SLIDE, **{"mesh.data": 2})["devices"] == 2


@sets("evaluation.absent_classes")
@pytest.mark.parametrize(("value", "expected"), [("skip", 1.0), ("zero", 0.5)])
def test_absent_classes(value, expected, segmenting):
    # Class 1 is neither in the labels nor predicted.
    labels = np.zeros((4, 4, 4), np.uint8)
    found = segmenting(labels, **{"evaluation.absent_classes": value})
    assert found["scores"]["mean_iou"] == expected


@sets("evaluation.split")
def test_split(segmenting, folder):
    changes = {"data.cache_on_device": True, "evaluation.split": "one"}
    found = segmenting(datasets=None, **files(folder, **changes))
    # Labels of the split `one` are all 0, of the others half.
    assert found["scores"]["pixel_accuracy"] == 1


@sets(
    "data.name",
    "data.data_dir",
    "evaluation.object_sizes",
    "evaluation.boundary_iou",
    "evaluation.batch_size",
    "evaluation.absent_classes",
)
def test_evaluation_of_a_workdir(segmenting, folder, tmp_path):
    changes = {"data.cache_on_device": True}
    found = segmenting(datasets=None, **files(folder, **changes))
    run = tmp_path / "run"
    changes |= {
        "evaluation.object_sizes": True,
        "evaluation.boundary_iou": True,
        "evaluation.absent_classes": "zero",
        "evaluation.batch_size": 3,
    }
    config = toy_config(total_steps=1, **files(folder, **changes))
    evaluate_workdir(config, run, "one")
    scores = json.loads((run / "evaluation" / "one.json").read_text())
    assert scores["mean_iou"] == 0.5 and "by_object_size" in scores
    assert "mean_boundary_iou" in scores
    assert all(scores["evaluation"][k] == v for k, v in config.evaluation.items() if v)
    # In training, and in the evaluation.
    assert found["batch_sizes"] == [8, 3]
