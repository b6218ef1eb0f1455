"""The settings of augmentation, and what is drawn by them for one example."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from encnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training examples vary (PyTorch-Encoding since v1.0, paper section 4).

    Attributes:
        base_size: The long side is resized to this many pixels times a random scale.
        crop_size: Height and width of the crop; smaller images are padded below and on
            the right, black and ignored.
        scale_range: Least and greatest scale, uniform between.
        flip: Mirror left and right with probability 1/2.
        color_jitter: Brightness, contrast and saturation are multiplied by factors
            uniform in 1 - color_jitter to 1 + color_jitter.
        pad: Of images in classes, pixels of black border on every side, out of which
            the crop is taken; they are not scaled (4 in the CIFAR recipes).
    """

    base_size: int
    crop_size: int
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    color_jitter: float = 0.0
    pad: int = 0


class CropAxis(NamedTuple):
    """Where a crop lies along one axis of a picture.

    Attributes:
        length: Pixels of the picture as it is stored.
        size: Pixels of it after scaling.
        start: The first of those in the crop.
        shown: How many of them are in the crop; the rest of it is padding.
    """

    length: int
    size: int
    start: int
    shown: int

    @property
    def step(self) -> float:
        """Stored pixels from one pixel of the crop to the next."""
        return self.length / self.size

    def needed(self, margin: int) -> tuple[int, int]:
        """Returns the stored pixels, first and end, that bilinear resampling reads.

        Where the picture shrinks, the kernel is as wide as the pixels are far apart.
        """
        first = (self.start + 0.5) * self.step
        last = first + (self.shown - 1) * self.step
        reach = max(self.step, 1.0)
        return (
            max(math.floor(first - reach) - margin, 0),
            min(math.ceil(last + reach) + margin, self.length),
        )

    def nearest(self) -> np.ndarray:
        """Returns the stored pixel under the center of each pixel of the crop."""
        centers = (np.arange(self.start, self.start + self.shown) + 0.5) * self.step
        return np.minimum(centers.astype(np.int64), self.length - 1)


class CropParams(NamedTuple):
    """What was drawn for one example: a crop, and three draws in 0 to 1 of color."""

    rows: CropAxis
    columns: CropAxis
    mirrored: bool
    colors: np.ndarray

    def inside(self, crop_size: int) -> tuple[slice, slice]:
        """Returns where in the crop the picture is; the rest is padding."""
        width = self.columns.shown  # with the padding on the right, and then mirrored
        columns = slice(crop_size - width, None) if self.mirrored else slice(width)
        return slice(self.rows.shown), columns

    def pick(self, labels: np.ndarray) -> np.ndarray:
        """Returns the nearest label of each pixel of the crop inside the picture."""
        columns = self.columns.nearest()
        if self.mirrored:
            columns = columns[::-1]
        return labels[self.rows.nearest()].take(columns, axis=1)


def sample_crop(
    augmentation: Augmentation, original: tuple[int, int], rng: np.random.Generator
) -> CropParams:
    """Draws scale, place, mirroring and colors for a picture of a height and width.

    `arrays.py` draws the same, in distribution, on the device.
    """
    draws = rng.random(7).tolist()
    low, high = augmentation.scale_range
    long_side = round((low + (high - low) * draws[0]) * augmentation.base_size)

    def span(length: int, draw: float) -> CropAxis:
        size = max(round(length * long_side / max(original)), 1)
        room = max(size - augmentation.crop_size, 0)
        start = min(int(draw * (room + 1)), room)
        return CropAxis(length, size, start, min(size, augmentation.crop_size))

    return CropParams(
        rows=span(original[0], draws[1]),
        columns=span(original[1], draws[2]),
        mirrored=augmentation.flip and draws[3] < 0.5,
        colors=np.array(draws[4:], np.float32),
    )


def room_in_border(
    augmentation: Augmentation, size: tuple[int, ...]
) -> tuple[int, int]:
    """Returns how many rows and columns the crop can move in an image with its border.

    Args:
        augmentation: The augmentation.
        size: Of the image in a class: height, width.

    Raises:
        UserError: The crop is larger.
    """
    height, width = (
        length + 2 * augmentation.pad - augmentation.crop_size for length in size[:2]
    )
    if min(height, width) < 0:
        raise UserError(
            f"data.crop_size={augmentation.crop_size}: an image is {size[1]}x{size[0]} "
            f"pixels, with a border of data.pad={augmentation.pad} on every side"
        )
    return height, width


def padded_crop(
    image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Takes a crop at random out of an image with a black border, and mirrors it.

    `arrays.py` draws the same, in distribution, on the device.

    Args:
        image: uint8 (h, w, 3).
        augmentation: The augmentation.
        rng: Source of the draws.

    Returns:
        uint8 (crop, crop, 3).
    """
    draws = rng.random(6, np.float32)
    rooms = room_in_border(augmentation, image.shape)
    top, left = (min(int(d * (room + 1)), room) for d, room in zip(draws, rooms))
    border = (augmentation.pad, augmentation.pad)
    padded = np.pad(image, (border, border, (0, 0)))
    crop = padded[
        top : top + augmentation.crop_size, left : left + augmentation.crop_size
    ]
    if augmentation.flip and draws[2] < 0.5:
        crop = crop[:, ::-1]
    if augmentation.color_jitter:
        pixels = jitter(crop.astype(np.float32), draws[3:], augmentation.color_jitter)
        crop = np.clip(pixels, 0, 255).round().astype(np.uint8)
    return crop


def jitter(pixels: Any, draws: Any, strength: float) -> Any:
    """Multiplies brightness, then contrast, then saturation by 1 -+ `strength`.

    Args:
        pixels: float32 (h, w, 3), a NumPy or JAX array.
        draws: float32 (3,), 0 to 1, that say where in that range the factors are.
        strength: How far from 1 they may be.
    """
    factors = 1 + strength * (2 * draws - 1)
    pixels = pixels * factors[0]
    pixels = (pixels - pixels.mean()) * factors[1] + pixels.mean()
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    gray = (pixels * luma).sum(-1, keepdims=True)
    return (pixels - gray) * factors[2] + gray
