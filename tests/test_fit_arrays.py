"""Training from arrays, as in a notebook."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import encnet_jax
from encnet_jax import fit_arrays
from encnet_jax.errors import UserError
from encnet_jax.fit_arrays import small_config
from encnet_jax.run.preemption import SigtermHandler
from encnet_jax.train.class_balance import warn_of_unlabeled_classes
from tests.commands import ROOT, environment, trained_arrays

RNG = np.random.default_rng(0)


def squares(count=12, size=32):
    """Returns images of a bright square on dark ground, and their labels."""
    images = RNG.integers(0, 60, (count, size, size, 3), np.uint8)
    labels = np.zeros((count, size, size), np.uint8)
    for index in range(count):
        top, left = RNG.integers(0, size // 2, 2)
        box = np.s_[index, top : top + size // 2, left : left + size // 2]
        images[box] += 150
        labels[box] = 1
    labels[:, 0, 0] = 255
    return images, labels


def tiny(config):
    config.model.update(
        dict(backbone="tiny", stem="plain", width=8, head_channels=16, num_codes=4)
    )
    config.mesh.data = 1
    config.total_steps = config.eval_every = config.checkpoint_every = 40
    config.batch_size = 8
    config.optimizer.warmup_steps = 5
    config.data.scale_range = (1.0, 1.0)
    return config


@pytest.mark.slow
def test_three_lines_from_images_to_predictions(tmp_path):
    images, labels = squares()
    config = tiny(small_config(images, labels))
    segmenter = encnet_jax.fit(
        images, labels, config, class_names=("ground", "square"), workdir=tmp_path
    )
    found = np.stack([segmenter(image).labels for image in images])
    known = labels != 255
    assert (found == labels)[known].mean() > 0.9
    assert segmenter.info.class_names == ("ground", "square")
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), int), "images: float64"),
        (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8), int), "images: uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 9), int), "labels: "),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8)), "labels: float64"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.full((2,), -1), "labels: int64, -1"),
        (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((0,), int), "images: .*empty"),
        (np.zeros((2, 0, 8, 3), np.uint8), np.zeros((2, 0, 8), int), "images: .*empty"),
        ([], [], "images: float64 .0,.; must be uint8"),
    ],
)
def test_arrays_that_do_not_fit_are_named(images, labels, message, tmp_path):
    with pytest.raises(UserError, match=message):
        encnet_jax.fit(images, labels, workdir=tmp_path / "run")
    good = squares(2)
    with pytest.raises(UserError, match=message):
        encnet_jax.fit(*good, validation=(images, labels), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name",
    ["classes.json", "class_weights.json", "metrics.jsonl", "predictions.png"],
)
def test_files_of_the_user_are_not_replaced_by_a_run(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: exists; choose another workdir"):
        encnet_jax.fit(*squares(2), workdir=tmp_path)
    with pytest.raises(UserError, match=f"workdir=.*{name}: is a file"):
        encnet_jax.fit(*squares(2), workdir=tmp_path / name)
    assert (tmp_path / name).read_text() == "mine" and len([*tmp_path.iterdir()]) == 1


def test_folder_of_the_user_is_not_that_of_the_checkpoints(tmp_path):
    path = tmp_path / "checkpoints" / "resnet.tmp_keep" / "weights"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match="checkpoints: exists; choose another workdir"):
        encnet_jax.fit(*squares(2), workdir=tmp_path)
    assert path.read_text() == "mine" and len([*tmp_path.iterdir()]) == 1
    (tmp_path / "checkpoints" / "40").mkdir()  # of a run, without its settings
    message = "config.json: is missing beside the checkpoints of a run; copy it there"
    with pytest.raises(UserError, match=message):
        encnet_jax.fit(*squares(2), workdir=tmp_path)


@pytest.mark.parametrize("where", ["training", "validation"])
def test_class_without_a_name_is_refused(where, tmp_path):
    images, labels = squares(2)
    other = labels.copy()
    other[0, 5, 5] = 2
    pair = [labels, other] if where == "validation" else [other, labels]
    with pytest.raises(UserError, match="class 2; there are 2 names"):
        encnet_jax.fit(
            images,
            pair[0],
            class_names=("a", "b"),
            validation=(images, pair[1]),
            workdir=tmp_path,
        )


@pytest.fixture
def untrained(monkeypatch):
    """Fails at once where arrays are not refused."""
    monkeypatch.setattr(fit_arrays, "train", lambda *_, **settings: pytest.fail())


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("where", ["labels", "validation labels"])
@pytest.mark.usefixtures("untrained")
def test_masks_of_0_and_255_are_refused_with_both_remedies(where, dtype, tmp_path):
    images, labels = squares(2)
    mask = np.where(labels == 1, 255, 0).astype(dtype)
    first, second = (mask, None) if where == "labels" else (labels, (images, mask))
    message = f"^{where}: nothing but 0 and 255;.* labels == 255.* ignore_label=255"
    with pytest.raises(UserError, match=message):
        encnet_jax.fit(images, first, validation=second, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("untrained")
def test_arrays_that_do_not_fit_are_named_by_their_argument(tmp_path):
    images, labels = squares(2)
    uneven = [images[0], images[0][:-1]]
    first = np.moveaxis(images, -1, 1)
    for given, message in [
        ((uneven, labels, None), "^images: .* inhomogeneous .* pass dataset="),
        ((images, labels, (uneven, labels)), "^validation images: .*pass dataset="),
        (
            (images, labels, (first, labels)),
            "^validation images: .*channels must be th",
        ),
        (
            (images, labels, (images * 1.0, labels)),
            "^validation images: float64 .*uint8",
        ),
        ((images, labels, (images[:0], labels[:0])), "^validation images: .* is empty"),
    ]:
        *arrays, validation = given
        with pytest.raises(UserError, match=message):
            encnet_jax.fit(*arrays, validation=validation, workdir=tmp_path)


@pytest.fixture
def trained_on(monkeypatch):
    """Replaces training; returns what it is called with."""
    calls = []
    monkeypatch.setattr(
        fit_arrays, "train", lambda config, workdir, datasets: calls.append(datasets)
    )

    def call(*arguments, **settings):
        with pytest.raises(UserError, match="stopped by SIGTERM"):
            encnet_jax.fit(*arguments, **settings)
        return calls.pop()

    return call


def test_remedies_for_masks_work(trained_on):
    images, labels = squares(2)
    mask = np.where(labels == 1, 255, 0)
    dataset, _ = trained_on(images, mask == 255)
    np.testing.assert_array_equal(dataset.labels, (labels == 1).astype(np.uint8))
    assert dataset.statistics.pixels.tolist() == [*np.bincount((mask > 0).ravel())]
    dataset, _ = trained_on(images, mask, ignore_label=255)
    np.testing.assert_array_equal(dataset.labels, mask)
    assert dataset.statistics.pixels.tolist() == [(mask == 0).sum(), 0]


@pytest.mark.parametrize(
    ("ignore_label", "values"),
    [
        (None, {0: 0, 1: 1, 2: 2, 255: 255}),
        (255, {0: 0, 1: 1, 2: 2, 255: 255}),
        (-1, {0: 0, 1: 1, 2: 2, -1: 255}),
        (0, {0: 255, 1: 1, 2: 2, 254: 254}),
        (1000, {0: 0, 1: 1, 2: 2, 1000: 255}),
        (np.int16(-1), {0: 0, 1: 1, -1: 255}),
    ],
)
def test_ignored_label_is_the_one_named(ignore_label, values, trained_on):
    images = squares(4)[0]
    labels = RNG.choice([*values], images.shape[:3])
    expected = np.vectorize(values.get)(labels)
    dataset, scored = trained_on(
        images, labels, ignore_label=ignore_label, validation=(images, labels[::-1])
    )
    np.testing.assert_array_equal(dataset.labels, expected)
    np.testing.assert_array_equal(scored.labels, expected[::-1])
    assert dataset.labels.dtype == np.uint8
    classes = {value for value in values.values() if value < 255}
    assert dataset.info.num_classes == max(classes) + 1
    assert dataset.statistics.void == (expected == 255).sum()


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (
            [0, 1, 255],
            dict(ignore_label=-1),
            "0 to 255; .* 0 to 254, or ignore_label=-1",
        ),
        (
            [0, 255, 255],
            dict(ignore_label=0),
            "0 to 255; .* 0 to 254, or ignore_label=0",
        ),
        ([0, 1, -1], {}, "-1 to 1; .* 0 to 254, or ignore_label=255"),
        ([0, 1, 300], {}, "0 to 300; must be integers from 0 to 254"),
        ([0, 1, 1], dict(ignore_label="255"), "ignore_label='255': must be an integer"),
        ([0, 1, 1], dict(ignore_label=255.0), "ignore_label=255.0: must be an integer"),
        ([7, 7, 7], dict(ignore_label=7), "no pixel has a class; all are ignored"),
        ([255] * 3, dict(ignore_label=255), "no pixel has a class; all are ignored"),
        ([255] * 3, {}, "nothing but 0 and 255"),
        ([0, 1, 1], dict(class_names=map(str, range(256))), "256 names; .* 255"),
        ([0, 1, 1], dict(class_names="leaf"), "class_names='leaf': must be a list"),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_labels_without_meaning_are_named(labels, settings, message, tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    labels = np.broadcast_to(np.reshape(labels, (3, 1, 1)), (3, 8, 8))
    with pytest.raises(UserError, match=message):
        encnet_jax.fit(images, labels, workdir=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["images", "labels"])
@pytest.mark.usefixtures("untrained")
def test_masked_values_are_not_brought_back(where, tmp_path):
    arrays = dict(zip(("images", "labels"), squares(3)))
    hidden = np.ma.masked_array(arrays[where], arrays[where] == 1)
    remedy = " and ignore_label=value" if where == "labels" else ""
    masked = {**arrays, where: hidden}
    message = rf"{where}: masked values; pass .filled\(value\){remedy}$"
    with pytest.raises(UserError, match=f"^{message}"):
        encnet_jax.fit(**masked, workdir=tmp_path / "run")
    with pytest.raises(UserError, match=f"^validation {message}"):
        validation = tuple(masked.values())
        encnet_jax.fit(**arrays, validation=validation, workdir=tmp_path / "run")


def test_whole_images_cannot_be_ignored():
    images = np.zeros((3, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="labels: images without a class"):
        encnet_jax.fit(images, np.array([0, 1, 255]))
    with pytest.raises(UserError, match="labels == 255"):
        encnet_jax.fit(images, np.array([0, 255, 255]))


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_classes_without_a_training_example_are_named(task, trained_on, caplog):
    images, labels = squares(3)
    kind, arrays = "pixel", (images, labels)
    if task == "classification":
        kind, arrays = "image", (images, np.array([0, 1, 1]))
    dataset, _ = trained_on(*arrays, class_names=("a", "b", "c", "d"))
    warn_of_unlabeled_classes(dataset)
    (record,) = caplog.records
    assert f"no training {kind} of 2 of 4 classes" in record.message
    assert record.message.endswith(": c, d")


@pytest.mark.slow
def test_interrupted_fit_resumes_to_the_same_weights(tmp_path, monkeypatch):
    images, labels = squares()
    config = tiny(small_config(images, labels))
    config.total_steps = config.eval_every = config.checkpoint_every = 12
    config.data.scale_range = (0.5, 2.0)
    config.data.color_jitter = 0.2
    whole = tmp_path / "whole"
    encnet_jax.fit(images, labels, config, workdir=whole)
    # JAX arrays are accepted too.
    arrays = jnp.asarray(images), jnp.asarray(labels)
    folder = tmp_path / "interrupted"
    monkeypatch.setattr(SigtermHandler, "due", lambda self, step: step == 5)
    with pytest.raises(UserError, match="stopped by SIGTERM; call fit again to resume"):
        encnet_jax.fit(*arrays, config, workdir=folder)
    monkeypatch.undo()
    encnet_jax.fit(*arrays, config, workdir=folder)
    pairs = zip(trained_arrays(whole), trained_arrays(folder), strict=True)
    for expected, found in pairs:
        np.testing.assert_array_equal(expected, found)
    # Other arrays must not resume what was learned from these.
    images[0, 0, 0] += 1
    with pytest.raises(UserError, match="data.name='arrays .*another --workdir"):
        encnet_jax.fit(images, labels, config, workdir=folder)


THREE_LINES = """
import sys
sys.modules.update(dict.fromkeys({missing}))  # as if they were not installed
import numpy as np
import encnet_jax
from tests.test_fit_arrays import small_config, squares, tiny
images, labels = squares()
config = tiny(small_config(images, labels))
config.total_steps = config.eval_every = 6
segmenter = encnet_jax.fit(images, labels, config, workdir="{workdir}")
print(segmenter(images[0]).labels.shape)
"""


@pytest.mark.slow
def test_bare_installation_is_enough(tmp_path):
    missing = ["tensorflow", "tensorflow_datasets", "matplotlib"]
    missing += ["tensorboardX", "tqdm"]
    lines = THREE_LINES.format(missing=missing, workdir=tmp_path / "run")
    result = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "(32, 32)"


def test_images_in_classes_get_a_classifier_config():
    images, labels = squares(4)
    config = small_config(images, np.arange(4))
    assert config.model.name == "encnet14" and config.data.pad == 4
    segments = small_config(images, labels).model
    assert segments.name == "encnet" and segments.pad_to_stride


def test_resumed_with_reordered_class_names_is_refused(tmp_path):
    images, labels = squares()
    config = tiny(small_config(images, labels))
    config.total_steps, config.optimizer.warmup_steps = 1, 0
    encnet_jax.fit(
        images, labels, config, class_names=("ground", "square"), workdir=tmp_path
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    config.total_steps = 2
    with pytest.raises(UserError, match="class 0 is 'ground' there and 'square' here"):
        encnet_jax.fit(
            images, labels, config, class_names=("square", "ground"), workdir=tmp_path
        )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before


@pytest.mark.parametrize("labels", [np.arange(4) % 2, np.zeros((4, 32, 32), int)])
def test_channels_first_is_refused(labels, tmp_path):
    images = np.zeros((4, 3, 32, 32), np.uint8)
    for call in (fit_arrays.small_config, encnet_jax.fit):
        with pytest.raises(UserError, match="channels must be the last axis"):
            call(images, labels)
    # A configuration says which axis it is: these have fewer rows than channels.
    fit_arrays._check_axes("images", (4, 24, 32, 40), 40)
    with pytest.raises(UserError, match="channels must be the last axis"):
        fit_arrays._check_axes("images", (4, 24, 32, 40), 3)
    # Patches of many channels.
    assert (
        fit_arrays.small_config(np.zeros((4, 9, 9, 200)), labels).data.channels == 200
    )
