"""Tests of training batches by tf.data."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.classes import SCENES
from encnet_jax.data.sources import Example
from encnet_jax.errors import UserError
from tests.data import geometry

tf = pytest.importorskip("tensorflow")
pipeline = pytest.importorskip("encnet_jax.data.pipeline")
transforms = pytest.importorskip("encnet_jax.data.transforms")

PLAIN = Augmentation(base_size=24, crop_size=24, scale_range=(1.0, 1.0), flip=False)


def stored(image, kind="PNG", **settings):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **settings)
    return file.getvalue()


class ListSource:
    """A source of given examples, stored as PNG; remembers what was read."""

    info = SCENES

    def __init__(self, pairs):
        self.pairs = pairs
        self.read = []

    def __len__(self):
        return len(self.pairs)

    def encoded(self, number):
        self.read.append(number)
        image, labels = self.pairs[number]
        return stored(image) if isinstance(image, np.ndarray) else image, labels

    def example(self, number):
        if not isinstance(self.pairs[number][0], np.ndarray):
            raise UserError(f"picture {number} is bad")
        return Example(*self.pairs[number], f"picture {number}")


def batches(count, pairs, how=PLAIN, *, batch_size=4, seed=0, **settings):
    found = pipeline.train_batches(
        ListSource(pairs), how, batch_size=batch_size, seed=seed, **settings
    )
    return list(itertools.islice(found, count))


def joined(found):
    """Returns the images and labels of some batches, one after the other."""
    return tuple(
        np.concatenate([b[key] for b in found]) for key in ("images", "labels")
    )


def pictures(count):
    rng = np.random.default_rng(0)
    return [geometry.labelled_by_color(rng) for _ in range(count)]


def squares(count):
    """Returns pictures of 24x24 random pixels that tell their number by label 0, 0."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        labels = rng.integers(0, 12, (24, 24)).astype(np.uint8)
        labels[0, 0] = number
        pairs.append((rng.integers(0, 256, (24, 24, 3), np.uint8), labels))
    return pairs


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys() == {"images", "labels"}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_identity_settings_return_every_example_once_an_epoch():
    pairs = squares(6)
    images, labels = joined(batches(3, pairs))
    assert images.dtype == labels.dtype == np.uint8
    numbers = labels[:, 0, 0]
    assert sorted(numbers[:6]) == sorted(numbers[6:]) == list(range(6))
    for row, number in enumerate(numbers):
        np.testing.assert_array_equal(images[row], pairs[number][0])
        np.testing.assert_array_equal(labels[row], pairs[number][1])


def test_labels_and_colors_agree_to_the_pixel():
    found = batches(8, pictures(4), geometry.GEOMETRY)
    geometry.check_labels_follow_colors(*joined(found))


def test_label_values_survive():
    rng = np.random.default_rng(0)
    values = np.array([0, 7, 150, 254, 255], np.uint8)
    labels = rng.choice(values, (36, 44))
    image = np.zeros((36, 44, 3), np.uint8)
    _, found = joined(batches(4, [(image, labels)], geometry.GEOMETRY))
    assert set(np.unique(found)) == set(values)


@pytest.mark.parametrize("step", [1, 3])
def test_resumed_batches_are_those_of_an_uninterrupted_run(step):
    pairs = pictures(5)
    whole = batches(5, pairs, geometry.GEOMETRY, seed=7)
    resumed = batches(5 - step, pairs, geometry.GEOMETRY, seed=7, start_step=step)
    assert_equal(whole[step:], resumed)


def test_two_hosts_read_the_same_global_batch():
    pairs, settings = pictures(5), dict(how=geometry.GEOMETRY, seed=7)
    whole = batches(3, pairs, **settings)
    shares = [
        batches(3, pairs, **settings, process_index=i, process_count=2)
        for i in range(2)
    ]
    put_together = [
        {key: np.concatenate([one[key], other[key]]) for key in one}
        for one, other in zip(*shares)
    ]
    assert_equal(whole, put_together)


def test_seeds_and_epochs_augment_differently():
    pair = [geometry.ramp()]
    how = geometry.DIFFERENT
    images, _ = joined(batches(2, pair, how) + batches(2, pair, how, seed=1))
    for one, other in itertools.combinations(images.astype(float), 2):
        assert np.abs(one - other).mean() > 1


def augmented(how, count=400):
    """Returns what `augment` makes of the ramp with many seeds."""
    image, labels = map(tf.constant, geometry.ramp())
    dataset = tf.data.Dataset.range(count).map(
        lambda n: transforms.augment(
            image, labels, tf.stack([5, tf.cast(n, tf.int32)]), how
        )
    )
    images, labels = next(dataset.batch(count).as_numpy_iterator())
    return images, labels


def test_scales_and_mirroring_are_distributed_as_promised():
    geometry.check_scales(*augmented(geometry.SCALES))


def test_crops_are_distributed_as_promised():
    geometry.check_crops(*augmented(geometry.CROPS))


def test_color_jitter_changes_colors_and_no_labels():
    settings = dict(base_size=44, crop_size=44, scale_range=(1.0, 1.0), flip=False)
    plain, expected = augmented(Augmentation(**settings), 20)
    images, labels = augmented(Augmentation(**settings, color_jitter=0.4), 20)
    np.testing.assert_array_equal(labels, expected)
    assert (np.abs(images.astype(float) - plain).mean((1, 2, 3)) > 2).any()
    # Padding stays black.
    assert not images[labels == 255].any()


@pytest.mark.parametrize("size", [(64, 48), (37, 53), (1, 1), (8, 200)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_jpeg_is_decoded_as_by_pil(size, subsampling):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (*(-(-s // 8) for s in size), 3))
    image = coarse.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
    image = np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)
    data = stored(image, "JPEG", quality=75, subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pipeline.decode(tf.constant(data)), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_is_decoded_into_three_channels(kind):
    data = stored(np.arange(64, dtype=np.uint8).reshape(8, 8), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pipeline.decode(tf.constant(data)), expected)


def test_bad_example_is_named():
    pairs = squares(3)
    pairs[1] = b"no image", pairs[1][1]
    with pytest.raises(UserError, match="picture 1 is bad"):
        batches(3, pairs)
