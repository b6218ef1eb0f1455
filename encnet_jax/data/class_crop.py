"""Crops centered at a pixel of a class that is drawn from those in the image.

First the class is drawn, then one of its pixels, both uniformly; the crop is centered
there as far as the image allows. They are drawn from the labels of the stored image,
before it is scaled. Of a rotated image, pixels that leave its frame are left out.
"""

import functools
from collections.abc import Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int16, UInt8
from PIL import Image

from encnet_jax.data.augmentation import Augmentation, CropParams
from encnet_jax.data.dataset_info import IGNORE_LABEL
from encnet_jax.data.rotation import Number, rotated_positions


def center_on_class(
    params: CropParams,
    labels: UInt8[np.ndarray, "h w"],
    classes: Int16[np.ndarray, "256"],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> CropParams:
    """Moves a crop to a pixel of a class, with probability `class_crop_rate`.

    Args:
        params: The crop, drawn uniformly.
        labels: Raw labels of the stored image.
        classes: The class of each raw label, from `label_map.label_table`.
        augmentation: Settings of the augmentation.
        rng: Source of randomness, after the draws of `params`.

    Returns:
        The moved crop; `params` if the image has no labeled pixel.
    """
    draws = rng.random(3, np.float32)
    if draws[0] >= augmentation.class_crop_rate:
        return params
    axes = params.rows, params.columns
    sizes, angle = [axis.size for axis in axes], None
    shown = mask = None
    if params.angle:
        angle = np.float32(params.angle)
        shown = _inside_frame(labels.shape, sizes, angle, np)
        mask = Image.fromarray(shown.astype(np.uint8))
    # Two to four times as fast as `np.bincount`.
    counts = np.array(Image.fromarray(labels).histogram(mask))
    labeled = (classes >= 0) & (classes != IGNORE_LABEL)
    present = np.bincount(classes[labeled & (counts > 0)], minlength=256) > 0
    if not present.any():
        return params
    drawn, _ = _draw(present, draws[1], np)
    raw = np.flatnonzero((classes == drawn) & (counts > 0))
    pixels = functools.reduce(np.logical_or, (labels == label for label in raw))
    pixel = _draw_pixel(pixels if shown is None else pixels & shown, draws[2], np)
    starts = _starts(pixel, labels.shape, sizes, angle, augmentation.crop_size, np)
    rows, columns = (a._replace(start=int(start)) for a, start in zip(axes, starts))
    return params._replace(rows=rows, columns=columns)


def class_centered_start(
    start: Float32[Array, "2"],
    size: Float32[Array, "2"],
    angle: Float32[Array, ""] | None,
    labels: UInt8[Array, "h w"],
    key: jax.Array,
    augmentation: Augmentation,
) -> Float32[Array, "2"]:
    """Returns where a crop starts that `center_on_class` would move; under `jax.jit`.

    Args:
        start: First row and column of the crop, drawn uniformly.
        size: Height and width of the scaled image.
        angle: Degrees by which the image is rotated; None: it is not.
        labels: Classes of the stored image.
        key: Key of random numbers for this alone.
        augmentation: Settings of the augmentation.
    """
    draws, sizes = jax.random.uniform(key, (3,)), (size[0], size[1])
    shown = labels != IGNORE_LABEL
    if angle is not None:
        shown &= _inside_frame(labels.shape, sizes, angle, jnp)
    present = _present(labels, shown)
    drawn, _ = _draw(present, draws[1], jnp)
    pixel = _draw_pixel(shown & (labels == drawn), draws[2], jnp)
    moved = _starts(pixel, labels.shape, sizes, angle, augmentation.crop_size, jnp)
    moves = (draws[0] < augmentation.class_crop_rate) & present.any()
    return jnp.where(moves, jnp.stack(moved), start)


def _present(
    labels: UInt8[Array, "h w"], shown: Bool[Array, "h w"]
) -> Bool[Array, "256"]:
    """Returns which labels occur; each pixel sets a bit, without gather or scatter."""
    bits = jnp.where(shown, jnp.uint32(1) << (labels & 31), jnp.uint32(0))
    words = [
        jax.lax.reduce_or(jnp.where(labels >> 5 == word, bits, 0), (0, 1))
        for word in range(8)
    ]
    return ((jnp.stack(words)[:, None] >> jnp.arange(32)) & 1).ravel() > 0


# Of NumPy on the host, of JAX on the device.


def _draw(counts: Number, draw: Number, xp: ModuleType) -> tuple[Number, Number]:
    """Draws an entry by its count; returns its index, and which of that count it is."""
    ends = xp.cumsum(counts)
    total = ends[-1]
    drawn = (draw * total.astype(xp.float32)).astype(xp.int32)
    drawn = xp.minimum(drawn, total - 1)  # the product may be rounded up
    index = (ends <= drawn).sum()
    return index, drawn - (ends[index] - counts[index])


def _draw_pixel(mask: Number, draw: Number, xp: ModuleType) -> tuple[Number, Number]:
    """Returns row and column of a pixel of a mask; any if it is empty."""
    row, before = _draw(mask.sum(1), draw, xp)
    return row, (xp.cumsum(mask[row]) <= before).sum()


def _starts(
    pixel: Sequence[Number],
    shape: Sequence[int],
    sizes: Sequence[Number],
    angle: Number | None,
    crop_size: int,
    xp: ModuleType,
) -> list[Number]:
    """Returns the first row and column of the crop around a pixel, inside the image.

    Args:
        pixel: Row and column in the stored image.
        shape: Height and width of the stored image.
        sizes: Those of the scaled image.
        angle: Degrees by which it is rotated; None: it is not.
        crop_size: Height and width of the crop.
        xp: `numpy` or `jax.numpy`.
    """
    positions: Sequence[Number] = _scaled(pixel, shape, sizes)
    if angle is not None:
        positions = rotated_positions(angle, positions, sizes, xp)
    return [
        xp.clip(xp.floor(position) - crop_size // 2, 0, xp.maximum(size - crop_size, 0))
        for position, size in zip(positions, sizes)
    ]


def _inside_frame(
    shape: Sequence[int], sizes: Sequence[Number], angle: Number, xp: ModuleType
) -> Number:
    """Returns which stored pixels, (h, w), are in the frame of the rotated image."""
    rows, columns = (xp.arange(length, dtype=xp.float32) for length in shape)
    centers = _scaled((rows[:, None], columns), shape, sizes)
    down, right = rotated_positions(angle, centers, sizes, xp)
    inside = (down >= 0) & (down < sizes[0])
    return inside & (right >= 0) & (right < sizes[1])


def _scaled(
    pixels: Sequence[Number], shape: Sequence[int], sizes: Sequence[Number]
) -> list[Number]:
    """Returns the positions of the centers of stored pixels in the scaled image."""
    return [
        (pixel + 0.5) * size / length
        for pixel, length, size in zip(pixels, shape, sizes)
    ]
