"""Tests of training batches that are resized on the host or on the device."""

import collections
import dataclasses
import io
import itertools
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.array_dataset import ArrayDataset
from encnet_jax.data.augment_device import resized_batch
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Example, FileDataset
from encnet_jax.data.label_map import map_labels
from encnet_jax.data.sampler import batch_indices
from encnet_jax.errors import UserError
from tests.data import geometry
from tests.data.png_files import make_png

loader = pytest.importorskip("encnet_jax.data.loader")

PLAIN = Augmentation(base_size=24, crop_size=24, scale_range=(1.0, 1.0), flip=False)
# Raw label n + 100 is class n; raw label 7 is ignored.
INFO = DatasetInfo(
    "indexed",
    tuple(map(str, range(12))),
    ((0, 0, 0),) * 12,
    {},
    {**{n + 100: n for n in range(12)}, 7: 255},
)
MODES = pytest.mark.parametrize("padded_size", [None, 0], ids=["host", "device"])


def stored(image, kind="PNG", **settings):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **settings)
    return file.getvalue()


class ListDataset:
    """A data set of given examples, stored as PNG; records what was read."""

    info = INFO

    def __init__(self, pairs):
        self.pairs = pairs
        self.read = []

    def __len__(self):
        return len(self.pairs)

    def encoded(self, index, *, raw_labels):
        assert raw_labels
        self.read.append(index)
        image, labels = self.pairs[index]
        labels = np.where(labels == 255, 7, labels + np.uint8(100)).astype(np.uint8)
        return stored(image) if isinstance(image, np.ndarray) else image, labels

    def __getitem__(self, index):
        image, labels = self.pairs[index]
        if not isinstance(image, np.ndarray):
            raise UserError(f"image {index} is bad")
        labels = map_labels(labels + np.uint8(100), INFO, f"image {index}")
        return Example(image, labels, f"image {index}")


def batches(count, pairs, augmentation=PLAIN, *, batch_size=4, seed=0, **settings):
    """Returns batches, if need be resized as on the device."""
    dataset = ListDataset(pairs) if isinstance(pairs, list) else pairs
    made = loader.train_batches(
        dataset, augmentation, batch_size=batch_size, seed=seed, **settings
    )
    found = list(itertools.islice(made, count))
    made.close()
    if "padded" not in found[0]:
        return found
    resize = jax.jit(resized_batch, static_argnames="augmentation")
    resized = [resize(batch, augmentation=augmentation) for batch in found]
    return [
        {"images": np.asarray(images).astype("u1"), "labels": np.asarray(labels)}
        for images, labels in resized
    ]


def concatenated(found):
    """Returns the images and labels of several batches."""
    return tuple(
        np.concatenate([b[key] for b in found]) for key in ("images", "labels")
    )


def labeled_images(count):
    rng = np.random.default_rng(0)
    return [geometry.labeled_by_color(rng) for _ in range(count)]


def indexed_images(count):
    """Returns random images of 24x24 pixels; label (0, 0) of each is its index."""
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(count):
        labels = rng.integers(0, 12, (24, 24)).astype(np.uint8)
        labels[0, 0] = index
        pairs.append((rng.integers(0, 256, (24, 24, 3), np.uint8), labels))
    return pairs


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys() == {"images", "labels"}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@MODES
def test_identity_settings_return_every_example(padded_size):
    pairs = indexed_images(6)
    images, labels = concatenated(batches(3, pairs, padded_size=padded_size))
    assert images.dtype == labels.dtype == np.uint8
    for row, index in enumerate(labels[:, 0, 0]):
        np.testing.assert_array_equal(images[row], pairs[index][0])
        np.testing.assert_array_equal(labels[row], pairs[index][1])


@MODES
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_every_example_exactly_once_an_epoch(hosts, padded_size):
    pairs, settings = (
        indexed_images(10),
        dict(padded_size=padded_size, process_count=hosts),
    )
    shares = [batches(5, pairs, **settings, process_index=i) for i in range(hosts)]
    assert [len(batch["labels"]) for share in shares for batch in share] == (
        [4 // hosts] * 5 * hosts
    )
    indices = [
        share[step]["labels"][row, 0, 0]
        for step in range(5)
        for share in shares
        for row in range(4 // hosts)
    ]
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))


@MODES
def test_hosts_together_make_the_batches_of_one(padded_size):
    pairs = labeled_images(5)
    settings = dict(augmentation=geometry.GEOMETRY, seed=7, padded_size=padded_size)
    whole = batches(3, pairs, **settings)
    shares = [
        batches(3, pairs, **settings, process_index=i, process_count=2)
        for i in range(2)
    ]
    merged = [
        {key: np.concatenate([one[key], other[key]]) for key in one}
        for one, other in zip(*shares)
    ]
    assert_equal(whole, merged)


@MODES
@pytest.mark.parametrize("step", [1, 3])
def test_resumed_batches_are_those_of_an_uninterrupted_run(step, padded_size):
    pairs, augmentation = labeled_images(5), geometry.GEOMETRY
    settings = dict(seed=7, padded_size=padded_size)
    whole = batches(5, pairs, augmentation, **settings)
    resumed = batches(5 - step, pairs, augmentation, start_step=step, **settings)
    assert_equal(whole[step:], resumed)


def test_resuming_reads_no_earlier_step(monkeypatch):
    monkeypatch.setattr(loader, "_available_cores", lambda: 3)
    dataset = ListDataset(indexed_images(12) * 50)
    found = batches(1, dataset, start_step=123_456, batch_size=4)
    ahead = [batch_indices(0, 600, 4, step)[0] for step in range(123_456, 123_456 + 3)]
    assert not collections.Counter(dataset.read) - collections.Counter(
        np.concatenate(ahead).tolist()
    )
    expected = [index % 12 for index in ahead[0]]
    np.testing.assert_array_equal(found[0]["labels"][:, 0, 0], expected)


@MODES
def test_labels_and_colors_agree_to_the_pixel(padded_size):
    found = batches(8, labeled_images(4), geometry.GEOMETRY, padded_size=padded_size)
    geometry.check_labels_follow_colors(*concatenated(found))


@pytest.mark.parametrize(("jitter", "rotation"), [(0.0, 0), (0.4, 0), (0.0, 30)])
def test_both_modes_make_the_same_crops(jitter, rotation):
    rng = np.random.default_rng(1)
    size = geometry.SIZE
    pairs = [
        (rng.integers(1, 256, (*size, 3), np.uint8), rng.integers(0, 12, size, "u1"))
        for _ in range(4)
    ]
    augmentation = Augmentation(
        44, 40, (0.5, 2.0), color_jitter=jitter, rotation=rotation
    )
    images, labels = concatenated(batches(8, pairs, augmentation))
    other, same = concatenated(batches(8, pairs, augmentation, padded_size=0))
    np.testing.assert_array_equal(labels, same)
    # PIL rounds after each of its two passes, the device at the end. Jitter amplifies
    # the difference by up to 1.4 each for brightness, contrast and saturation.
    error = np.abs(images.astype(int) - other)
    assert error.max() <= (1 if not jitter else 3)
    assert error.mean() < 0.5
    assert not images[labels == 255].any() and not other[labels == 255].any()
    if not jitter:  # which clips
        assert images[labels != 255].all() and other[labels != 255].all()


def test_raw_labels_become_classes():
    rng = np.random.default_rng(0)
    values = np.array([0, 7, 11, 255], np.uint8)
    labels = rng.choice(values, (36, 44))
    image = np.zeros((36, 44, 3), np.uint8)
    _, found = concatenated(batches(4, [(image, labels)], geometry.GEOMETRY))
    assert set(np.unique(found)) == set(values)


def test_seeds_and_epochs_augment_differently():
    pair = [geometry.ramp()]
    augmentation = geometry.DIFFERENT
    images, _ = concatenated(
        batches(2, pair, augmentation) + batches(2, pair, augmentation, seed=1)
    )
    for one, other in itertools.combinations(images.astype(float), 2):
        assert np.abs(one - other).mean() > 1


def test_scales_and_flips_follow_their_distribution():
    found = batches(4, [geometry.ramp()], geometry.SCALES, batch_size=100)
    geometry.check_scales(*concatenated(found))


def test_crops_follow_their_distribution():
    found = batches(4, [geometry.ramp()], geometry.CROPS, batch_size=100)
    geometry.check_crops(*concatenated(found))


@MODES
def test_colors_follow_their_distribution(padded_size):
    settings = dict(batch_size=100, padded_size=padded_size)
    found = batches(4, [geometry.color_bands()], geometry.COLORS, **settings)
    geometry.check_colors(concatenated(found)[0])


@MODES
def test_color_jitter_changes_colors_but_not_labels(padded_size):
    settings = dict(base_size=44, crop_size=44, scale_range=(1.0, 1.0), flip=False)
    pairs, mode = labeled_images(1), dict(padded_size=padded_size)
    plain, expected = concatenated(batches(5, pairs, Augmentation(**settings), **mode))
    augmentation = Augmentation(**settings, color_jitter=0.4)
    images, labels = concatenated(batches(5, pairs, augmentation, **mode))
    np.testing.assert_array_equal(labels, expected)
    assert (np.abs(images.astype(float) - plain).mean((1, 2, 3)) > 2).any()
    # Padding stays black.
    assert not images[labels == 255].any()


@pytest.mark.parametrize("problem", [b"no image", "truncated"])
@MODES
def test_bad_example_is_named(problem, padded_size):
    pairs = indexed_images(3)
    if problem == "truncated":
        problem = stored(pairs[1][0], "JPEG")[:-200]
    pairs[1] = problem, pairs[1][1]
    with pytest.raises(UserError, match="image 1 is bad"):
        batches(3, pairs, padded_size=padded_size)


def test_unknown_label_is_named():
    pairs = indexed_images(3)
    pairs[1][1][5, 5] = 12
    with pytest.raises(UserError, match="image 1: label 112; allowed are 100 to 111"):
        batches(3, pairs)


def test_labels_of_another_size_are_named():
    pairs = indexed_images(3)
    pairs[1] = pairs[1][0], pairs[1][1][:20]
    with pytest.raises(
        UserError, match="example 1 is 24x24 pixels and its label is 24x20"
    ):
        batches(3, pairs)


def test_closing_ends_the_threads():
    made = loader.train_batches(
        ListDataset(indexed_images(3)), PLAIN, batch_size=2, seed=0
    )
    next(made)
    threads = [t for t in threading.enumerate() if t.name.startswith("encnet-input")]
    assert threads
    made.close()
    assert not any(thread.is_alive() for thread in threads)


@MODES
def test_files_are_turned_and_scaled_as_when_they_are_indexed(tmp_path, padded_size):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    info = dataclasses.replace(
        INFO, label_map={n: n for n in range(12)}, value_range=(-1, 1)
    )
    pairs = []
    for index, suffix in enumerate(["tif", "png", "jpg", "png"]):
        files = tmp_path / f"{index}.{suffix}", tmp_path / f"{index}-labels.png"
        values = rng.integers(0, 256, (24, 24)).astype(np.uint8)
        if suffix == "tif":
            values = values.astype(np.float32) / 127.5 - 1
        labels = rng.integers(0, 12, (24, 24)).astype(np.uint8)
        Image.fromarray(values).save(files[0], exif=exif if index < 3 else None)
        Image.fromarray(labels).save(files[1], exif=exif if index < 3 else None)
        pairs.append(files)
    files[1].write_bytes(make_png(labels, 4))
    dataset = FileDataset(info, pairs)
    (batch,) = batches(1, dataset, padded_size=padded_size)
    indices, _ = batch_indices(0, 4, 4, 0)
    assert sorted(indices.tolist()) == [0, 1, 2, 3]
    for row, index in enumerate(indices.tolist()):
        example = dataset[index]
        np.testing.assert_array_equal(batch["labels"][row], example.labels)
        np.testing.assert_array_equal(batch["images"][row], example.image)
    np.testing.assert_array_equal(dataset[3].labels, labels)


@MODES
def test_label_255_of_a_class_is_learned_and_padding_is_not(padded_size):
    class Masks(ListDataset):
        info = DatasetInfo("masks", ("no", "yes"), ((0, 0, 0),) * 2, {}, {0: 0, 255: 1})

        def encoded(self, index, *, raw_labels):
            image, labels = self.pairs[index]
            return stored(image), labels

    labels = np.zeros((24, 12), np.uint8)  # narrower than the crop
    labels[:10] = 255
    image = np.zeros((24, 12, 3), np.uint8)
    (batch,) = itertools.islice(
        loader.train_batches(
            Masks([(image, labels)]),
            PLAIN,
            batch_size=1,
            seed=0,
            padded_size=padded_size,
        ),
        1,
    )
    expected = np.full((24, 24), 255)
    expected[:10, :12], expected[10:, :12] = 1, 0
    np.testing.assert_array_equal(batch["labels"][0], expected)


@MODES
@pytest.mark.parametrize("size", [(2, 1100), (1100, 2), (1, 1), (1, 7)])
def test_images_a_few_pixels_wide_are_cropped(padded_size, size):
    augmentation = Augmentation(base_size=48, crop_size=32)
    image, labels = np.full((*size, 3), 200, np.uint8), np.full(size, 3, np.uint8)
    found = batches(3, [(image, labels)] * 4, augmentation, padded_size=padded_size)
    for pixels, mapped in zip(*concatenated(found)):
        labeled = mapped == 3
        # Scaled to a long side of 24 to 96 pixels; the short side has at least one.
        assert labeled.sum() >= 24
        assert (pixels[labeled] == 200).all() and not pixels[~labeled].any()
        assert set(np.unique(mapped)) <= {3, 255}


@MODES
def test_arrays_are_augmented_on_the_host_too(padded_size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 24, 24, 3), np.uint8)
    labels = rng.integers(0, 12, (3, 24, 24), np.uint8)
    labels[:, 0] = 255
    dataset = ArrayDataset(INFO, images, labels)  # class indices, whatever files hold
    batches = loader.train_batches(
        dataset, PLAIN, batch_size=3, seed=0, padded_size=padded_size
    )
    batch = next(batches)
    batches.close()
    indices, _ = batch_indices(0, 3, 3, 0)
    np.testing.assert_array_equal(batch["labels"], labels[indices])
    if padded_size is None:
        np.testing.assert_array_equal(batch["images"], images[indices])
