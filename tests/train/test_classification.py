"""Whole images in classes: data, augmentation, loss, and the commands end to end."""

import dataclasses
import json
import shutil
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs.cifar10 import EPOCH, get_config
from encnet_jax.config import load_config
from encnet_jax.data.bands import declare_bands
from encnet_jax.data.dataset_info import CIFAR10
from encnet_jax.data.datasets import Example
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from encnet_jax.evaluate import classification
from encnet_jax.evaluate.classification import classification_scores, make_class_fn
from encnet_jax.evaluate.evaluator import ImagePrediction, predict_dataset
from encnet_jax.evaluate.run import evaluate_workdir
from encnet_jax.inference.predict_fn import make_classify_fn
from encnet_jax.losses import classification_loss
from encnet_jax.models import create_model
from encnet_jax.models.cifar import ClassifierOutput
from encnet_jax.models.layers import Conv
from encnet_jax.predict.predictor import Classifier
from encnet_jax.predict.read_image import read_image
from encnet_jax.run.model_config import check_config
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.state import split_model
from encnet_jax.train import validation
from encnet_jax.train.settings import check_task
from tests.commands import errors, run, start_two
from tests.random_module import random_module
from tests.report.pages import check_page
from tests.small_workdir import write_workdir

SIZES = (16, 16), (16, 24), (40, 20)  # height, width
DEVICE = jax.devices()[0]
SMALL = [
    "--config.total_steps=30",
    "--config.batch_size=20",
    "--config.log_every=1",
    "--config.eval_every=30",
    "--config.checkpoint_every=30",
    "--config.learning_rate=0.05",
    "--config.evaluation.batch_size=8",
]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    made_up = pytest.importorskip("tests.fake_cifar")
    return made_up.prepare(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def workdir(cifar, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = run(
        "train.py",
        "--config=configs/cifar10.py:encnet_2k16d-drop",
        f"--config.data.data_dir={cifar}",
        f"--workdir={folder}",
        *SMALL,
    )
    assert result.returncode == 0, result.stderr
    assert "accuracy" in result.stdout
    return folder


def test_source_reads_images_and_classes(cifar):
    dataset = open_dataset("cifar10", "train", str(cifar))
    assert len(dataset) == 40 and dataset.info is CIFAR10
    examples = [dataset[index] for index in range(40)]
    assert {e.image.shape for e in examples} == {(32, 32, 3)}
    # Class 0 too, which records store as nothing.
    assert sorted(int(e.labels) for e in examples) == sorted(list(range(10)) * 4)
    for example in examples:
        index = int(example.name.split("_")[1])
        assert int(example.labels) == index % 10


def test_loss_and_error_by_hand():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    labels = jnp.asarray([0, 2], jnp.uint8)
    loss, parts = classification_loss(ClassifierOutput(logits), labels)
    assert float(loss) == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2)
    assert float(parts["error"]) == 0.5


class FourImages:
    info = CIFAR10

    def __len__(self):
        return 5

    def __getitem__(self, index):
        label = np.asarray([0, 0, 1, 9, 9][index], np.uint8)
        image = np.full((2, 2, 3), [0, 3, 1, 9, 9][index], np.uint8)
        return Example(image, label, str(index))


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_scores_by_hand_do_not_depend_on_the_batch(batch_size, devices):
    mesh = mesh_of(jax.devices()[:devices])

    def classify(params, batch_stats, images):
        assert images.shape == (batch_size * devices, 2, 2, 3)
        shards = [shard.data.shape[0] for shard in images.addressable_shards]
        assert shards == [batch_size] * devices
        return np.eye(10)[np.asarray(images)[:, 0, 0, 0]]

    predict_batches = make_class_fn(classify, 2, mesh)
    predictions = list(
        predict_dataset(predict_batches, {}, {}, FourImages(), batch_size=batch_size)
    )
    assert [p.labels.item() for p in predictions] == [0, 3, 1, 9, 9]
    results = classification_scores(predictions, 10)
    assert results["images"] == 5
    assert results["accuracy"] == pytest.approx(0.8)
    assert results["error"] == pytest.approx(0.2)
    assert results["confusion_matrix"][0, 3] == 1
    assert results["per_class_accuracy"][[0, 1, 9]].tolist() == [0.5, 1, 1]
    assert np.isnan(results["per_class_accuracy"][2])  # no image of class 2


@pytest.mark.parametrize("banded", [False, True])
def test_images_of_other_sizes_are_scored_as_they_are_predicted(banded):
    info = dataclasses.replace(CIFAR10, name="mixed")
    if banded:
        info = declare_bands(info, 3, (0, 255))
    model = random_module(create_model, name="encnet14", num_classes=10, width=4)
    model.eval()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    examples = [
        (index, Example(read_image(image, info), np.uint8(0), str(index)))
        for index, image in enumerate(images)
    ]
    classifier = Classifier(model, info, 16)
    predict = make_class_fn(
        make_classify_fn(model, mean=info.mean, std=info.std), 16, mesh_of([DEVICE])
    )
    _, params, batch_stats = split_model(model)
    found = {p.index: p for p in predict(params, batch_stats, iter(examples), 2)}
    assert len(found) == len(images)
    for index, image in enumerate(images):
        expected = classifier(image)
        np.testing.assert_allclose(
            found[index].presence, expected.probabilities, rtol=1e-4
        )
        assert found[index].labels == expected.label


def test_validation_holds_no_more_images_than_it_shows():
    alive = []

    def predictions():
        for index in range(200):
            image = np.full((2, 2, 3), index, np.uint8)
            alive.append(weakref.ref(image))
            example = Example(image, np.asarray(index % 10, np.uint8), str(index))
            yield ImagePrediction(index, example, np.asarray(index % 2, np.uint8))
            del image, example
            assert sum(ref() is not None for ref in alive) <= 70

    result = validation._score_classes(CIFAR10, predictions())
    assert result.images == 200 and result.scores["accuracy"] == pytest.approx(0.2)


def test_small_images_are_learned_and_scored(workdir, cifar):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert lines[0]["loss"] > 2 > 1 > lines[-2]["loss"]
    assert {"loss", "error", "learning_rate"} <= lines[0].keys()
    assert lines[-1].keys() == {"step", "accuracy", "error"}
    assert (workdir / "predictions.png").exists()
    result = run(
        "evaluate.py",
        "--config=configs/cifar10.py:encnet_2k16d-drop",
        f"--config.data.data_dir={cifar}",
        f"--workdir={workdir}",
        "--config.evaluation.batch_size=8",
    )
    assert result.returncode == 0, result.stderr
    scores = json.loads((workdir / "evaluation" / "test.json").read_text())
    assert scores["images"] == 20
    assert scores["accuracy"] == pytest.approx(lines[-1]["accuracy"])
    assert np.sum(scores["confusion_matrix"]) == 20
    assert "error" in result.stdout and "truck" in result.stdout
    assert (workdir / "evaluation" / "test-confusion.png").exists()


@pytest.mark.parametrize("impl", ["winograd", "lax"])
def test_convolutions_are_computed_as_a_flag_says(tmp_path, monkeypatch, impl):
    class Built(Exception):
        """Ends the evaluation before it predicts."""

    def build(model, **kwargs):
        convs = [conv for _, conv in nnx.iter_modules(model) if isinstance(conv, Conv)]
        raise Built({conv.impl for conv in convs})

    write_workdir(tmp_path, info=CIFAR10, name="resnet14", width=16)
    monkeypatch.setattr(classification, "open_dataset", lambda *_, **__: FourImages())
    monkeypatch.setattr(classification, "make_classify_fn", build)
    config = load_config(tmp_path / "config.json")
    config.model.conv_impl = impl
    with pytest.raises(Built) as built:
        evaluate_workdir(config, tmp_path, "test")
    assert ("winograd" in built.value.args[0]) == (impl == "winograd")


@pytest.mark.parametrize(
    "package, left_out",
    [("matplotlib", "test-confusion.png"), ("jinja2", "test.html")],
)
def test_scores_are_written_without_a_package(
    workdir, cifar, tmp_path, monkeypatch, caplog, package, left_out
):
    folder = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(folder / "evaluation", ignore_errors=True)
    monkeypatch.setitem(sys.modules, package, None)
    caplog.set_level("INFO", "encnet_jax")
    config = load_config(folder / "config.json")
    config.data.data_dir = str(cifar)
    assert "accuracy" in evaluate_workdir(config, folder, "test")
    written = {path.name for path in (folder / "evaluation").iterdir()}
    usual = {"test-images.jsonl", "test.html", "test.json", "test-confusion.png"}
    assert written == usual - {left_out}
    assert f"{package} is not installed" in caplog.text
    if "test.html" in written:
        check_page((folder / "evaluation" / "test.html").read_text())


@pytest.mark.slow
def test_two_processes_share_a_validation(workdir, cifar, tmp_path):
    processes = start_two(
        "train.py",
        "--config=configs/cifar10.py:encnet_2k16d-drop",
        f"--config.data.data_dir={cifar}",
        f"--workdir={tmp_path / 'run'}",
        *SMALL,
        "--config.total_steps=2",
        devices=2,
    )
    logged = []
    for process in processes:
        _, stderr = process.communicate(timeout=400)
        assert process.returncode == 0, stderr
        logged.append(stderr)
    assert "(20 images, " in logged[0] and "step 2" not in logged[1]
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last).keys() == {"step", "accuracy", "error"}


@pytest.mark.slow
def test_two_processes_share_an_evaluation(workdir, cifar, tmp_path):
    alone, shared = (shutil.copytree(workdir, tmp_path / name) for name in "ab")
    config = load_config(workdir / "config.json")
    config.data.data_dir = str(cifar)
    evaluate_workdir(config, alone, "test")
    processes = start_two(
        "evaluate.py",
        "--config=configs/cifar10.py:encnet_2k16d-drop",
        f"--config.data.data_dir={cifar}",
        f"--workdir={shared}",
        devices=2,
    )
    for process in processes:
        _, stderr = process.communicate(timeout=400)
        assert process.returncode == 0, stderr
    found = [
        json.loads((folder / "evaluation" / "test.json").read_text())
        for folder in (alone, shared)
    ]
    for key in ("images", "accuracy", "confusion_matrix"):
        assert found[0][key] == found[1][key], key
    names = [
        [json.loads(line)["name"] for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.glob("*/evaluation/test-images.jsonl"))
    ]
    assert len(names[0]) == 20 and names[0] == names[1]


@pytest.mark.slow
def test_images_that_are_not_in_memory_are_learned_too(cifar, tmp_path):
    result = run(
        "train.py",
        "--config=configs/cifar10.py:encnet_2k16d-drop",
        f"--config.data.data_dir={cifar}",
        "--config.data.cache_on_device=False",
        f"--workdir={tmp_path}",
        *SMALL,
    )
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines[:-1]]
    assert losses[0] > 2 > 1 > losses[-1]


def test_predict_classifies_images_of_any_size(workdir, cifar, tmp_path):
    example = open_dataset("cifar10", "test", str(cifar))[3]
    classifier = Classifier.from_workdir(workdir)
    expected = classifier(example.image)
    assert expected.probabilities.sum() == pytest.approx(1, abs=1e-5)
    image = Image.fromarray(example.image)
    image.resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "photo.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    output = tmp_path / "out"
    result = run(
        "predict.py",
        f"--workdir={workdir}",
        f"--output={output}",
        tmp_path / "photo.png",
        tmp_path / "broken.jpg",
    )
    assert result.returncode == 2
    assert len(errors(result)) == 1 and "broken.jpg" in errors(result)[0]
    found = json.loads((output / "classes.json").read_text())
    assert list(found) == ["photo"]
    assert found["photo"]["class"] == CIFAR10.class_names[expected.label]
    assert len(found["photo"]["probabilities"]) == 10


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("encnet_16k64d", ("encnet14", 64, 16, False)),
        ("encnet_32k128d-drop", ("encnet14", 128, 32, True)),
        ("resnet_64d", ("resnet14", 64, 32, False)),
        ("se_resnet_32d", ("se_resnet14", 32, 32, False)),
    ],
)
def test_names_of_networks_are_those_of_the_paper(name, settings):
    config = get_config(name)
    check_config(config)
    model = config.model
    assert (model.name, model.width, model.num_codes, model.scale_drop) == settings
    assert config.total_steps == 600 * EPOCH == 234_000


@pytest.mark.parametrize("name", ["encnet_64d", "resnet_16k64d", "resnet_64d-drop", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="cifar10.py:"):
        get_config(name)


def test_resize_of_images_in_classes_is_refused():
    config = get_config()
    config.data.resize = "device"
    with pytest.raises(UserError, match="data.resize='device': .* allowed is 'host'"):
        check_task(config, CIFAR10)


def test_model_of_the_other_task_is_refused():
    config = get_config()
    config.model.name = "fcn"
    with pytest.raises(UserError, match="'fcn': classifies pixels; .* classification"):
        check_task(config, CIFAR10)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.rotation", 10.0),
        ("data.class_crop_rate", 0.5),
        ("loss.lovasz_weight", 10.0),
    ],
)
def test_settings_of_segmentation_are_refused(key, value):
    config = get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"{key}={value}: only for segmentation"):
        check_task(config, CIFAR10)
