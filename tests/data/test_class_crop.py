"""Crops centered by class on every path: host, device, and cached on the device."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encnet_jax.data.augment_device import augmented_batch
from encnet_jax.data.augmentation import Augmentation, sample_crop
from encnet_jax.data.class_crop import center_on_class
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.run.sharding import batch_sharded, create_mesh, replicated
from tests.data import geometry

test_loader = pytest.importorskip("tests.data.test_loader")

SHAPE = 36, 44
IGNORED = 255
CLASSES = np.append(np.arange(255), IGNORED).astype(np.int16)
always = functools.partial(Augmentation, class_crop_rate=1.0)


def on_host(labels, augmentation, count, padded_size=None, image=None):
    """Returns the crops of an image in its first epochs."""
    image = np.zeros((*labels.shape, 3), np.uint8) if image is None else image
    found = test_loader.batches(
        1, [(image, labels)], augmentation, batch_size=count, padded_size=padded_size
    )
    return found[0]["images"], found[0]["labels"]


def on_device(labels, augmentation, count, image=None):
    return on_host(labels, augmentation, count, 0, image)


def cached(labels, augmentation, count, image=None):
    image = np.zeros((*labels.shape, 3), np.uint8) if image is None else image
    batch = {"index": np.zeros(count, np.int32), "epoch": np.arange(count)}
    arrays = {"images": image[None], "labels": labels[None]}
    made = augmented_batches(arrays, batch, np.uint32(0), augmentation=augmentation)
    return tuple(map(np.asarray, made))


augmented_batches = jax.jit(augmented_batch, static_argnames="augmentation")
ALL_PATHS = pytest.mark.parametrize("path", [on_host, on_device, cached])
PATHS = pytest.mark.parametrize("path", [on_host, cached])  # the others' are the host's


def one_pixel(row, column, shape=SHAPE):
    """Returns labels of which only one pixel has a class, 5."""
    labels = np.full(shape, IGNORED, np.uint8)
    labels[row, column] = 5
    return labels


@ALL_PATHS
@pytest.mark.parametrize(
    ("pixel", "start"),
    [
        ((17, 20), (13, 16)),
        ((0, 0), (0, 0)),
        ((35, 43), (28, 36)),
        ((3, 41), (0, 36)),
        ((4, 39), (0, 35)),
        ((33, 4), (28, 0)),
    ],
)
def test_crop_is_centered_as_far_as_the_image_allows(path, pixel, start):
    labels, augmentation = one_pixel(*pixel), always(44, 8, (1.0, 1.0))
    image, _ = geometry.ramp()
    window = tuple(slice(first, first + 8) for first in start)
    pixels, found = path(labels, augmentation, 16, image=image)
    flipped = pixels[:, 0, 0, 1] > pixels[:, 0, -1, 1]
    assert 0 < flipped.sum() < 16
    for index, mirrored in enumerate(flipped):
        columns = slice(None, None, -1 if mirrored else 1)
        np.testing.assert_array_equal(pixels[index], image[window][:, columns])
        np.testing.assert_array_equal(found[index], labels[window][:, columns])


@PATHS
@pytest.mark.parametrize("crop_size", [1, 8])
@pytest.mark.parametrize("pixel", [(0, 0), (35, 43), (20, 11)])
def test_enlarged_crop_contains_the_only_labeled_pixel(path, crop_size, pixel):
    augmentation = always(44, crop_size, (1.0, 3.0))
    _, found = path(one_pixel(*pixel), augmentation, 40)
    assert (found == 5).any((1, 2)).all()


@PATHS
def test_crop_larger_than_the_image_is_padded(path):
    augmentation = always(44, 60, (0.5, 1.0))
    labels = np.full(SHAPE, 3, np.uint8)
    plain = path(labels, Augmentation(44, 60, (0.5, 1.0)), 8)
    for made, expected in zip(path(labels, augmentation, 8), plain):
        np.testing.assert_array_equal(made, expected)


@PATHS
@pytest.mark.parametrize("corner", [(0, 0), (28, 36), (12, 3)])
def test_reduced_crop_contains_the_object(path, corner):
    labels = np.full(SHAPE, IGNORED, np.uint8)
    labels[corner[0] : corner[0] + 8, corner[1] : corner[1] + 8] = 5
    _, found = path(labels, always(44, 5, (0.25, 1.0)), 40)
    assert (found == 5).any((1, 2)).all()


@ALL_PATHS
def test_crop_of_a_rotated_image_contains_the_pixel(path):
    # 13 pixels from the center: no angle turns it out of the frame.
    augmentation = always(44, 7, (2.0, 3.0), rotation=179)
    _, found = path(one_pixel(10, 12), augmentation, 60)
    assert (found == 5).any((1, 2)).all()
    # Far from the borders it is in the middle, enlarged to a square of 2 to 3 pixels.
    assert (found[:, 2:5, 2:5] == 5).any((1, 2)).all()


@PATHS
def test_pixel_out_of_the_rotated_frame_is_not_drawn(path):
    augmentation = always(44, 7, (2.0, 3.0), rotation=179)
    labels = one_pixel(10, 12)
    labels[0, 0] = labels[-1, -1] = 3
    _, found = path(labels, augmentation, 60)
    # Corners stay in the frame only within a degree of 0 or 180.
    assert (found == 5).any((1, 2)).sum() >= 57


@PATHS
@pytest.mark.parametrize("rotation", [0, 90])
def test_image_without_a_labeled_pixel_is_cropped_uniformly(path, rotation):
    settings = dict(base_size=44, crop_size=20, rotation=rotation)
    labels, (image, _) = np.full(SHAPE, IGNORED, np.uint8), geometry.ramp()
    if rotation:
        labels[0, 0] = 5  # no longer in the frame
    plain = path(labels, Augmentation(**settings), 16, image=image)
    made = path(labels, always(**settings), 16, image=image)
    for crops, expected in zip(made, plain):
        np.testing.assert_array_equal(crops, expected)


@PATHS
def test_rate_is_the_share_of_moved_crops(path):
    settings = dict(base_size=44, crop_size=12)
    labels, (image, _) = one_pixel(18, 20), geometry.ramp()
    uniform, every, some = (
        path(labels, Augmentation(**settings, class_crop_rate=rate), 400, image=image)
        for rate in (0.0, 1.0, 0.3)
    )
    # Scale and mirroring are the same: crops differ by their start alone.
    moved = np.array([(a == b).all() for a, b in zip(every[0], some[0])])
    still = np.array([(a == b).all() for a, b in zip(uniform[0], some[0])])
    assert (moved | still).all() and (moved & still).mean() < 0.1
    assert abs(moved.mean() - 0.3) < 0.1


@PATHS
def test_classes_and_their_pixels_are_drawn_uniformly(path):
    labels = np.zeros((20, 30), np.uint8)
    labels[:2], labels[12:, 7:] = IGNORED, 254
    places = [(2, 0), (9, 29), (9, 28), (19, 3)]
    for place in places:
        labels[place] = 31
    labels[5, 5] = 32
    number = np.arange(600).reshape(20, 30)
    image = np.stack([number % 256, number // 256, 0 * number], -1).astype(np.uint8)
    augmentation = always(30, 1, (1.0, 1.0), flip=False)
    if path is not cached:  # where raw labels are classes 0 to 11 and 7
        labels = np.array([0, 3, 4, 11, IGNORED])[
            np.searchsorted([0, 31, 32, 254, 255], labels)
        ].astype(np.uint8)
    rare, single = labels[2, 0], labels[5, 5]
    pixels, found = path(labels, augmentation, 2000, image=image)
    drawn = pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1].astype(int)
    np.testing.assert_array_equal(labels.ravel()[drawn.astype(int)], found[:, 0, 0])
    values, counts = np.unique(found, return_counts=True)
    np.testing.assert_array_equal(values, np.setdiff1d(labels, [IGNORED]))
    np.testing.assert_allclose(counts / 2000, 0.25, atol=0.04)
    assert (drawn[found[:, 0, 0] == single] == 5 * 30 + 5).all()
    shares = [
        (drawn[found[:, 0, 0] == rare] == 30 * row + column).mean()
        for row, column in places
    ]
    np.testing.assert_allclose(shares, 0.25, atol=0.08)
    rows, columns = np.divmod(drawn[found[:, 0, 0] == labels[-1, -1]], 30)
    np.testing.assert_allclose([rows.mean(), columns.mean()], [15.5, 18], atol=1)


def test_raw_labels_of_one_class_are_one_class():
    class Merged(test_loader.ListDataset):
        info = DatasetInfo(
            "merged",
            ("several", "last"),
            ((0, 0, 0),) * 2,
            {},
            {10: 0, 20: 0, 30: 0, 255: 1, 7: IGNORED},
        )

        def encoded(self, index, *, raw_labels):
            image, labels = self.pairs[index]
            return test_loader.stored(image), labels

    labels = np.repeat(np.uint8([10, 20, 7, 255]), 8).reshape(4, 8)
    dataset = Merged([(np.stack([labels] * 3, -1), labels)])
    made = test_loader.loader.train_batches(
        dataset, always(8, 1, (1.0, 1.0)), batch_size=1000, seed=0
    )
    batch = next(made)
    made.close()
    raw, counts = np.unique(batch["images"][..., 0], return_counts=True)
    np.testing.assert_array_equal(raw, [10, 20, 255])
    np.testing.assert_allclose(counts / 1000, [0.25, 0.25, 0.5], atol=0.06)
    assert batch["labels"].mean() == counts[2] / 1000


@functools.partial(jax.jit, static_argnames="augmentation")
def augmented(arrays, draws, augmentation):
    """Returns `augmented_batch` of one image for given draws, by their shape."""
    zero = {"index": jnp.zeros(1, int), "epoch": jnp.zeros(1, int)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", lambda key, shape, **_: draws[sum(shape)])
        return augmented_batch(arrays, zero, 0, augmentation)


@pytest.mark.parametrize("rotation", [0, 30])
def test_host_and_device_move_a_crop_alike(rotation):
    augmentation = always(60, 24, (0.4, 2.0), rotation=rotation)
    rng, moved = np.random.default_rng(0), 0
    for seed in range(24):
        shape = [SHAPE, (70, 25), (36, 44)][seed % 3]
        labels = rng.choice(
            [0, 1, 2, 11, IGNORED], shape, p=[0.7, 0.2, 0.05, 0.01, 0.04]
        )
        labels = labels.astype(np.uint8)
        host, same = (np.random.default_rng(seed) for _ in range(2))
        plain = sample_crop(augmentation, shape, host)
        params = center_on_class(plain, labels, CLASSES, augmentation, host)
        assert params.flipped == plain.flipped and params.angle == plain.angle
        moved += (params.rows, params.columns) != (plain.rows, plain.columns)
        draws = {7: same.random(7), 0: 2 * same.random() - 1 if rotation else 0.0}
        draws[3] = same.random(3, np.float32)
        arrays = {"images": np.zeros((1, *shape, 3), "u1"), "labels": labels[None]}
        _, found = augmented(arrays, draws, augmentation)
        visible = params.crop_labels(labels)
        if rotation:
            visible[~params.covered()] = IGNORED
        crop = np.full((24, 24), IGNORED)
        crop[params.inside(24)] = visible
        # Single precision decides a few ties between labels.
        assert (found[0] == crop).mean() > 0.98
    assert moved > 12


@pytest.mark.parametrize("padded_size", [None, 0])
def test_crops_depend_on_seed_epoch_and_example_alone(padded_size):
    pairs = test_loader.labeled_images(5)
    settings = dict(
        augmentation=always(44, 16), seed=7, padded_size=padded_size, batch_size=4
    )
    whole = test_loader.batches(4, pairs, **settings)
    test_loader.assert_equal(
        whole[2:], test_loader.batches(2, pairs, start_step=2, **settings)
    )
    shares = [
        test_loader.batches(4, pairs, **settings, process_index=i, process_count=2)
        for i in range(2)
    ]
    for batch, *halves in zip(whole, *shares):
        for key in batch:
            joined = np.concatenate([half[key] for half in halves])
            np.testing.assert_array_equal(joined, batch[key])


def test_devices_share_a_batch_of_cached_images():
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (5, *SHAPE, 3), np.uint8),
        "labels": rng.integers(0, 12, (5, *SHAPE), np.uint8),
    }
    batch = {"index": np.arange(16) % 5, "epoch": np.arange(16) // 5}
    batch = {key: value.astype(np.int32) for key, value in batch.items()}
    augmentation = always(60, 16, (0.5, 2.0), rotation=10)
    made = []
    for devices in (1, 8):
        mesh = create_mesh(devices)
        images, labels = augmented_batches(
            jax.device_put(arrays, replicated(mesh)),
            jax.device_put(batch, batch_sharded(mesh)),
            np.uint32(3),
            augmentation=augmentation,
        )
        assert len(labels.sharding.device_set) == devices
        made.append((np.asarray(images), np.asarray(labels)))
    for one, other in itertools.pairwise(zip(*made)):
        np.testing.assert_array_equal(one[1], one[0])
        np.testing.assert_array_equal(other[1], other[0])
