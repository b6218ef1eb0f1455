"""Augmentation on the host: stateless TensorFlow operations on an image and its labels.

Every random choice is a function of the seed that is passed in. `arrays.py` makes the
same choices, in distribution, on the device.
"""

import tensorflow as tf

from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.classes import IGNORE_LABEL


def augment(
    image: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, how: Augmentation
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales, crops, flips and jitters one example.

    Args:
        image: uint8 (h, w, 3).
        labels: uint8 (h, w).
        seed: int32 (2,); the same seed gives the same result.
        how: What to do.

    Returns:
        uint8 (crop, crop, 3) and uint8 (crop, crop). The image is resampled bilinearly,
        with an antialiasing kernel where it shrinks, and the labels to the nearest.
    """
    draws = tf.random.stateless_uniform((4,), seed)
    original = tf.shape(image)[:2]
    size = _scaled_size(original, draws[0], how)
    room = tf.maximum(size - how.crop_size, 0)
    start = tf.cast(tf.floor(draws[1:3] * tf.cast(room + 1, tf.float32)), tf.int32)
    start = tf.minimum(start, room)
    image = _crop_resized(image, size, start, how.crop_size)
    labels = _crop_resized_labels(labels, size, start, how.crop_size)
    if how.color_jitter:
        image = _jitter(image, seed, how.color_jitter)
    image = _black_outside(image, size - start)
    if how.flip:
        mirrored = draws[3] < 0.5
        image = tf.where(mirrored, image[:, ::-1], image)
        labels = tf.where(mirrored, labels[:, ::-1], labels)
    image = tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)
    return image, labels


def _scaled_size(original: tf.Tensor, draw: tf.Tensor, how: Augmentation) -> tf.Tensor:
    """Returns height and width with the long side at a random size, in whole pixels."""
    low, high = how.scale_range
    scale = low + (high - low) * draw
    long_side = tf.round(scale * how.base_size)
    original = tf.cast(original, tf.float32)
    size = original * long_side / tf.reduce_max(original)
    return tf.maximum(tf.cast(tf.round(size), tf.int32), 1)


def _crop_resized(
    image: tf.Tensor, size: tf.Tensor, start: tf.Tensor, crop: int
) -> tf.Tensor:
    """Resizes to `size` and crops at `start` in one pass."""
    original = tf.cast(tf.shape(image)[:2], tf.float32)
    crops = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=(crop, crop),
        scale=tf.cast(size, tf.float32) / original,
        translation=-tf.cast(start, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )
    return crops[0]


def _black_outside(image: tf.Tensor, inside: tf.Tensor) -> tf.Tensor:
    """Makes all but the first so many rows and columns black."""
    rows, columns = tf.unstack(tf.sequence_mask(inside, tf.shape(image)[0]))
    return tf.where(rows[:, None, None] & columns[None, :, None], image, 0.0)


def _crop_resized_labels(
    labels: tf.Tensor, size: tf.Tensor, start: tf.Tensor, crop: int
) -> tf.Tensor:
    for axis in (0, 1):
        place = tf.range(crop) + start[axis]
        length = tf.shape(labels)[axis]
        position = (tf.cast(place, tf.float32) + 0.5) * tf.cast(length, tf.float32)
        nearest = tf.cast(position / tf.cast(size[axis], tf.float32), tf.int32)
        labels = tf.gather(labels, tf.minimum(nearest, length - 1), axis=axis)
        inside = tf.reshape(place < size[axis], (crop, 1) if axis == 0 else (1, crop))
        labels = tf.where(inside, labels, tf.constant(IGNORE_LABEL, tf.uint8))
    return labels


def _jitter(image: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """Multiplies brightness, then contrast, then saturation of a float image."""
    factors = tf.random.stateless_uniform(
        (3,), seed + [0, 1], 1 - strength, 1 + strength
    )
    image = image * factors[0]
    image = (image - tf.reduce_mean(image)) * factors[1] + tf.reduce_mean(image)
    grey = tf.reduce_sum(image * [0.299, 0.587, 0.114], -1, keepdims=True)
    return (image - grey) * factors[2] + grey
