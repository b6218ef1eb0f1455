"""Tests of classification batches, cropped on the host or on the device."""

import dataclasses
import functools
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.augment_device import augmented_batch
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import CIFAR10
from encnet_jax.data.datasets import Example
from encnet_jax.data.sampler import index_batches
from encnet_jax.errors import UserError

PLAIN = Augmentation(base_size=4, crop_size=4, flip=False)
BORDER = Augmentation(base_size=4, crop_size=4, pad=1)


class Images:
    """Random images stored as PNG; image n is of class n modulo 10.

    Args:
        count: Number of images.
        shape: Height and width.
        bad: Index of an image that cannot be decoded.
    """

    info = CIFAR10

    def __init__(self, count, shape=(4, 4), bad=None):
        rng = np.random.default_rng(0)
        self.images = rng.integers(1, 256, (count, *shape, 3), np.uint8)
        self.bad = bad

    def __len__(self):
        return len(self.images)

    def label(self, index):
        return np.asarray(index % 10, np.uint8)

    def encoded(self, index, *, raw_labels=False):
        file = io.BytesIO()
        Image.fromarray(self.images[index]).save(file, "PNG")
        content = file.getvalue()
        return content[: 40 if index == self.bad else None], self.label(index)

    def __getitem__(self, index):
        if index == self.bad:
            raise UserError(f"image {index} is bad")
        return Example(self.images[index], self.label(index), str(index))


def host_batches(dataset, augmentation, *, batch_size=4, seed=0, **settings):
    loader = pytest.importorskip("encnet_jax.data.loader")
    options = dict(batch_size=batch_size, seed=seed, **settings)
    yield from loader.train_batches(dataset, augmentation, **options)


def device_batches(dataset, augmentation, *, batch_size=4, seed=0, **settings):
    labels = np.stack([dataset.label(index) for index in range(len(dataset))])
    arrays = {"images": jnp.asarray(dataset.images), "labels": jnp.asarray(labels)}
    augment = jax.jit(
        functools.partial(augmented_batch, seed=seed, augmentation=augmentation)
    )
    options = dict(batch_size=batch_size, seed=seed, **settings)
    for batch in index_batches(len(dataset), **options):
        images, labels = augment(arrays, batch)
        yield {"images": np.asarray(images), "labels": np.asarray(labels)}


BATCHES = pytest.mark.parametrize("batches", [host_batches, device_batches])


def taken(count, made):
    """Returns the images, as uint8, and the labels of the first batches."""
    found = list(itertools.islice(made, count))
    made.close()
    images, labels = (
        np.concatenate([batch[key] for batch in found]) for key in ("images", "labels")
    )
    return images.astype(np.uint8), labels


@BATCHES
def test_without_augmentation_images_come_as_they_are(batches):
    dataset = Images(10)
    images, labels = taken(5, batches(dataset, PLAIN))
    assert labels.shape == (20,) and labels.dtype == np.uint8
    # Two epochs, the images in random order.
    assert sorted(labels[:10]) == sorted(labels[10:]) == list(range(10))
    assert labels[:10].tolist() != labels[10:].tolist()
    np.testing.assert_array_equal(images, dataset.images[labels])


@BATCHES
def test_crops_of_the_padded_image_are_uniform_over_positions(batches):
    dataset, count = Images(1), 3600
    crops, labels = taken(count // 300, batches(dataset, BORDER, batch_size=300))
    assert (labels == 0).all() and labels.shape == (count,)
    padded = np.pad(dataset.images[0], ((1, 1), (1, 1), (0, 0)))
    positions = {
        (top, left, flipped): padded[top : top + 4, left : left + 4][
            :, :: -1 if flipped else 1
        ].tobytes()
        for top in range(3)
        for left in range(3)
        for flipped in (False, True)
    }
    seen = [crop.tobytes() for crop in crops]
    counts = {position: seen.count(pixels) for position, pixels in positions.items()}
    assert sum(counts.values()) == count
    # 200 each are expected, with a standard deviation of 14.
    assert min(counts.values()) > 140 and max(counts.values()) < 260


@BATCHES
def test_larger_images_are_cropped_without_a_border(batches):
    dataset = Images(1, shape=(5, 7))
    crops, _ = taken(4, batches(dataset, PLAIN, batch_size=50))
    windows = {
        dataset.images[0, top : top + 4, left : left + 4].tobytes()
        for top in range(2)
        for left in range(4)
    }
    assert {crop.tobytes() for crop in crops} == windows


@BATCHES
def test_colors_follow_the_same_distribution_on_host_and_device(batches):
    augmentation = dataclasses.replace(PLAIN, color_jitter=0.5)
    dataset = Images(1)
    crops, _ = taken(4, batches(dataset, augmentation, batch_size=500))
    # The reference samples factors uniform in 0.5 to 1.5 and clips at 255.
    image, rng = dataset.images[0].astype(np.float64), np.random.default_rng(1)
    brightness, contrast, saturation = rng.uniform(0.5, 1.5, (3, 2000, 1, 1, 1))
    expected = image * brightness
    mean = expected.mean((1, 2, 3), keepdims=True)
    expected = (expected - mean) * contrast + mean
    gray = (expected * [0.299, 0.587, 0.114]).sum(-1, keepdims=True)
    expected = ((expected - gray) * saturation + gray).clip(0, 255)
    assert abs(crops.mean() - expected.mean()) < 4
    assert abs(crops.std() - expected.std()) < 4


def test_resumed_batches_are_those_of_an_uninterrupted_run():
    dataset = Images(7)
    whole, labels = taken(4, host_batches(dataset, BORDER, seed=3))
    rest, rest_labels = taken(2, host_batches(dataset, BORDER, seed=3, start_step=2))
    np.testing.assert_array_equal(rest, whole[8:])
    np.testing.assert_array_equal(rest_labels, labels[8:])


def test_hosts_together_make_the_batches_of_one():
    dataset = Images(6)
    whole, _ = taken(1, host_batches(dataset, BORDER))
    shares = [
        taken(1, host_batches(dataset, BORDER, process_index=i, process_count=2))[0]
        for i in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(shares), whole)


@BATCHES
def test_crop_larger_than_the_padded_image_is_rejected(batches):
    augmentation = Augmentation(base_size=8, crop_size=8, pad=1)
    with pytest.raises(UserError, match="crop_size=8: an image is 7x5 pixels.*pad=1"):
        next(batches(Images(4, shape=(5, 7)), augmentation))


def test_image_that_cannot_be_read_is_named():
    with pytest.raises(UserError, match="image 2 is bad"):
        next(host_batches(Images(4, bad=2), BORDER))
