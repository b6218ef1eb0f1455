"""Tests of augmentation on the device."""

import jax
import numpy as np
import pytest

from encnet_jax.data.array_dataset import load_arrays
from encnet_jax.data.augment_device import augmented_batch
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import SCENES
from encnet_jax.data.datasets import Example
from encnet_jax.errors import UserError
from tests.data import geometry


class ListDataset:
    """A data set of given examples."""

    info = SCENES

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return Example(*self.pairs[index], f"image {index}")


def augmented(pairs, augmentation, indices, epochs, seed=0):
    """Returns the images and labels that a compiled step receives."""
    batch = {"index": np.array(indices, np.int32), "epoch": np.array(epochs, np.int32)}
    apply = jax.jit(augmented_batch, static_argnames="augmentation")
    images, labels = apply(
        load_arrays(ListDataset(pairs)),
        batch,
        np.uint32(seed),
        augmentation=augmentation,
    )
    assert images.dtype == np.float32 and labels.dtype == np.uint8
    return np.asarray(images), np.asarray(labels)


def labeled_images(count):
    rng = np.random.default_rng(0)
    return [geometry.labeled_by_color(rng) for _ in range(count)]


def test_labels_and_colors_agree_to_the_pixel():
    images, labels = augmented(
        labeled_images(4), geometry.GEOMETRY, [0, 1, 2, 3] * 8, range(32)
    )
    geometry.check_labels_follow_colors(images, labels)


def test_scales_and_flips_follow_their_distribution():
    images, labels = augmented(
        [geometry.ramp()], geometry.SCALES, [0] * 400, range(400)
    )
    geometry.check_scales(images, labels)


def test_crops_follow_their_distribution():
    images, labels = augmented([geometry.ramp()], geometry.CROPS, [0] * 400, range(400))
    geometry.check_crops(images, labels)


def test_colors_follow_their_distribution():
    images, _ = augmented(
        [geometry.color_bands()], geometry.COLORS, [0] * 400, range(400)
    )
    geometry.check_colors(images)


def test_augmentation_is_a_function_of_seed_epoch_and_index():
    pairs = [geometry.ramp()] * 3
    arguments = pairs, geometry.DIFFERENT
    images, labels = augmented(*arguments, [0, 1, 2, 0], [5, 5, 5, 6], seed=3)
    # The same examples in other rows of another batch.
    again, same = augmented(*arguments, [2, 0, 1, 1], [5, 6, 7, 5], seed=3)
    for here, there in ((2, 0), (3, 1), (1, 3)):
        np.testing.assert_array_equal(images[here], again[there])
        np.testing.assert_array_equal(labels[here], same[there])
    other, _ = augmented(*arguments, [0, 1, 2, 0], [5, 5, 5, 6], seed=4)
    drawn = [*images, *other]
    for i, one in enumerate(drawn):
        for two in drawn[:i]:
            assert np.abs(one - two).mean() > 1


def test_identity_settings_return_the_source():
    rng = np.random.default_rng(0)
    pairs = [
        (
            rng.integers(0, 256, (24, 24, 3), np.uint8),
            rng.integers(0, 9, (24, 24), np.uint8),
        )
        for _ in range(3)
    ]
    augmentation = Augmentation(
        base_size=24, crop_size=24, scale_range=(1.0, 1.0), flip=False
    )
    images, labels = augmented(pairs, augmentation, [2, 0, 1], [0, 1, 2])
    for row, index in enumerate((2, 0, 1)):
        np.testing.assert_array_equal(images[row], pairs[index][0])
        np.testing.assert_array_equal(labels[row], pairs[index][1])


def test_color_jitter_changes_colors_but_not_labels():
    pairs = labeled_images(1)
    settings = dict(base_size=44, crop_size=44, scale_range=(1.0, 1.0), flip=False)
    plain = augmented(pairs, Augmentation(**settings), [0] * 20, range(20))
    augmentation = Augmentation(**settings, color_jitter=0.4)
    images, labels = augmented(pairs, augmentation, [0] * 20, range(20))
    np.testing.assert_array_equal(labels, plain[1])
    assert (np.abs(images - plain[0]).mean((1, 2, 3)) > 2).any()
    assert images.min() >= 0 and images.max() <= 255
    # Padding stays black.
    assert not images[labels == 255].any()


def test_images_of_two_sizes_name_an_example():
    pairs = [
        geometry.ramp(),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)),
    ]
    with pytest.raises(UserError, match=r"image 1 .*\(4, 4, 3\).*data.cache_on_device"):
        load_arrays(ListDataset(pairs))


@pytest.mark.parametrize("size", [(2, 1100), (1100, 2), (1, 1)])
def test_images_a_few_pixels_wide_are_cropped(size):
    image, labels = np.full((*size, 3), 200, np.uint8), np.full(size, 3, np.uint8)
    augmentation = Augmentation(base_size=48, crop_size=32)
    images, labels = augmented([(image, labels)], augmentation, [0] * 8, range(8))
    for pixels, mapped in zip(images, labels):
        labeled = mapped == 3
        assert labeled.any() and set(np.unique(mapped)) <= {3, 255}
        assert (pixels[labeled] == 200).all() and not pixels[~labeled].any()
