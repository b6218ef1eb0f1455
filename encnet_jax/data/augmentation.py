"""Settings of the augmentation, and sampling of its parameters on the host."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64, Num, Shaped

from encnet_jax.data.rotation import Frame, Rotation, Window, rotate
from encnet_jax.errors import UserError
from encnet_jax.ops.normalize import white_level


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training examples are augmented (PyTorch-Encoding v1.0, paper section 4).

    Attributes:
        base_size: The long side is resized to this many pixels times a random scale.
        crop_size: Height and width of the crop; smaller images are padded at the bottom
            and the right, with black pixels and ignored labels.
        scale_range: Bounds of the scale, which is uniform between them.
        flip: Flip horizontally with probability 1/2.
        color_jitter: Brightness, contrast and saturation are multiplied by factors
            uniform in 1 - color_jitter to 1 + color_jitter.
        rotation: The scaled image is rotated about its center by up to so many degrees,
            in either direction; what it does not cover is as padding.
        class_crop_rate: Probability that the crop is centered at a pixel of a class
            drawn from those in the image (`class_crop.py`); else it is uniform.
        pad: For classification, the width of a black border, in pixels; the crop is
            taken from the padded image, which is not scaled (4 in the CIFAR recipes).
    """

    base_size: int
    crop_size: int
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    color_jitter: float = 0.0
    rotation: float = 0.0
    class_crop_rate: float = 0.0
    pad: int = 0


class CropAxis(NamedTuple):
    """Position of a crop along one axis of an image.

    Attributes:
        length: Pixels of the stored image.
        size: Pixels of the scaled image.
        start: First scaled pixel inside the crop.
        visible: Scaled pixels inside the crop; the rest of the crop is padding.
    """

    length: int
    size: int
    start: int
    visible: int

    @property
    def step(self) -> float:
        """Stored pixels per scaled pixel."""
        return self.length / self.size

    def source_range(self, margin: int) -> tuple[int, int]:
        """Returns the first and end stored pixels that bilinear resampling reads.

        When downscaling, the kernel is widened to the step (antialiasing).

        Args:
            margin: Pixels to add on both sides.
        """
        first = (self.start + 0.5) * self.step
        last = first + (self.visible - 1) * self.step
        reach = max(self.step, 1.0)
        return (
            max(math.floor(first - reach) - margin, 0),
            min(math.ceil(last + reach) + margin, self.length),
        )

    def nearest(self) -> Int64[np.ndarray, " n"]:
        """Returns the stored pixel nearest to the center of each visible pixel."""
        return self.nearest_to(np.arange(self.visible) + 0.5)

    def nearest_to(
        self, positions: Num[np.ndarray, "*shape"]
    ) -> Int64[np.ndarray, "*shape"]:
        """Returns the stored pixels at positions, in scaled pixels from `start`."""
        nearest = ((self.start + positions) * self.step).astype(np.int64)
        return nearest.clip(0, self.length - 1)

    def part(self, window: Window) -> "CropAxis":
        """Returns the window of a rotated crop along this axis."""
        return self._replace(start=int(window.first), visible=int(window.length))


class CropParams(NamedTuple):
    """Augmentation parameters sampled for one example.

    Attributes:
        rows: The crop along the vertical axis.
        columns: The crop along the horizontal axis.
        flipped: Whether the crop is flipped horizontally.
        colors: Draws in 0-1 for brightness, contrast and saturation; see `jitter`.
        angle: Degrees by which the image is rotated, counterclockwise before the flip.
    """

    rows: CropAxis
    columns: CropAxis
    flipped: bool
    colors: Float32[np.ndarray, "3"]
    angle: float = 0.0

    def inside(self, crop_size: int) -> tuple[slice, slice]:
        """Returns the region of the crop that shows the image; the rest is padding.

        Of a rotated image `covered` says which of these pixels it covers.
        """
        width = self.columns.visible  # padding is on the right before the flip
        columns = slice(crop_size - width, None) if self.flipped else slice(width)
        return slice(self.rows.visible), columns

    def box(
        self, origin: tuple[int, int], size: tuple[int, ...]
    ) -> tuple[float, float, float, float]:
        """Returns left, top, right and bottom of the crop in the pixels of a region.

        Args:
            origin: Row and column of the stored image where the region starts.
            size: Height and width of the region.
        """

        def bounds(axis: CropAxis, first: int, length: int) -> tuple[float, float]:
            start = axis.start * axis.step - first
            end = (axis.start + axis.visible) * axis.step - first
            return start, min(end, length)  # rounding can exceed the image

        y0, y1 = bounds(self.rows, origin[0], size[0])
        x0, x1 = bounds(self.columns, origin[1], size[1])
        return x0, y0, x1, y1

    def crop_labels(
        self, labels: Shaped[np.ndarray, "h w"]
    ) -> Shaped[np.ndarray, "rows columns"]:
        """Returns the nearest label of each pixel inside the image."""
        if self.angle:
            down, right = self._positions()
            _, *window = self.rotated()
            return labels[window[0].nearest_to(down), window[1].nearest_to(right)]
        columns = self.columns.nearest()
        if self.flipped:
            columns = columns[::-1]
        return labels[self.rows.nearest()].take(columns, axis=1)

    def rotated(self) -> tuple[Rotation, CropAxis, CropAxis]:
        """Returns how the crop lies in its window, and the axes of the window."""
        frames = (Frame(a.size, a.start, a.visible) for a in (self.rows, self.columns))
        rotation, (rows, columns) = rotate(self.angle, frames, np)
        return rotation, self.rows.part(rows), self.columns.part(columns)

    def covered(self) -> Bool[np.ndarray, "rows columns"]:
        """Returns which of the pixels `inside` a rotated image covers."""
        down, right = self._positions()
        _, rows, columns = self.rotated()
        return (
            (down >= 0)
            & (down < rows.visible)
            & (right >= 0)
            & (right < columns.visible)
        )

    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions in the window of the pixels `inside`."""
        rows = np.arange(self.rows.visible)[:, None]
        columns = np.arange(self.columns.visible)
        return self.rotated()[0].positions(
            rows, columns[::-1] if self.flipped else columns
        )


def sample_crop(
    augmentation: Augmentation, image_size: tuple[int, int], rng: np.random.Generator
) -> CropParams:
    """Samples scale, position, flip and colors for an image.

    `augment_device.py` samples from the same distribution on the device.

    Args:
        augmentation: Settings of the augmentation.
        image_size: Height and width of the stored image.
        rng: Source of randomness.
    """
    draws = rng.random(7).tolist()
    low, high = augmentation.scale_range
    long_side = round((low + (high - low) * draws[0]) * augmentation.base_size)

    def axis(length: int, draw: float) -> CropAxis:
        size = max(round(length * long_side / max(image_size)), 1)
        max_start = max(size - augmentation.crop_size, 0)
        start = min(int(draw * (max_start + 1)), max_start)
        return CropAxis(length, size, start, min(size, augmentation.crop_size))

    return CropParams(
        rows=axis(image_size[0], draws[1]),
        columns=axis(image_size[1], draws[2]),
        flipped=augmentation.flip and draws[3] < 0.5,
        colors=np.array(draws[4:], np.float32),
        angle=augmentation.rotation and augmentation.rotation * (2 * rng.random() - 1),
    )


def max_offsets(
    augmentation: Augmentation, image_size: tuple[int, ...]
) -> tuple[int, int]:
    """Returns the largest row and column at which a crop of the padded image starts.

    Args:
        augmentation: Settings of the augmentation.
        image_size: Height and width of the image without its border.

    Raises:
        UserError: The crop is larger than the padded image.
    """
    height, width = (
        length + 2 * augmentation.pad - augmentation.crop_size
        for length in image_size[:2]
    )
    if min(height, width) < 0:
        raise UserError(
            f"data.crop_size={augmentation.crop_size}: an image is {image_size[1]}x"
            f"{image_size[0]} pixels, with a border of data.pad={augmentation.pad} on "
            "every side"
        )
    return height, width


def padded_crop(
    image: Num[np.ndarray, "h w c"],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> Num[np.ndarray, "crop crop c"]:
    """Pads an image with black, then crops, flips and jitters it at random.

    `augment_device.py` samples from the same distribution on the device.
    """
    draws = rng.random(6, np.float32)
    limits = max_offsets(augmentation, image.shape)
    top, left = (min(int(d * (limit + 1)), limit) for d, limit in zip(draws, limits))
    border = (augmentation.pad, augmentation.pad)
    padded = np.pad(image, (border, border, (0, 0)))
    size = augmentation.crop_size
    crop = padded[top : top + size, left : left + size]
    flipped = augmentation.flip and draws[2] < 0.5
    if flipped:
        crop = crop[:, ::-1]
    if augmentation.color_jitter:
        inside = np.pad(np.ones(image.shape[:2], bool), augmentation.pad)
        inside = inside[top : top + size, left : left + size]
        pixels = jitter(
            crop.astype(np.float32),
            draws[3:],
            augmentation.color_jitter,
            inside[:, ::-1] if flipped else inside,
        )
        white = white_level(image.dtype)
        crop = np.clip(pixels, 0, white).round().astype(image.dtype)
    return crop


# Any: NumPy arrays on the host, JAX arrays on the device.
def jitter(pixels: Any, draws: Any, strength: float, inside: Any = None) -> Any:
    """Multiplies brightness, then contrast, then saturation by random factors.

    Contrast is relative to the mean over the image without its padding, which stays
    black. Only images of three channels, taken for RGB, have a saturation.

    Args:
        pixels: float32 (h, w, c), black 0; a NumPy or JAX array.
        draws: float32 (3,), uniform in 0-1.
        strength: Factors lie within 1 - strength and 1 + strength.
        inside: bool (h, w), which pixels are the image's, the others being 0; None:
            all.

    Returns:
        float32 (h, w, c), which may exceed white.
    """
    factors = 1 + strength * (2 * draws - 1)
    pixels = pixels * factors[0]
    if inside is None:
        mean = pixels.mean()
    else:
        count = pixels.shape[-1] * inside.sum(dtype=np.float32)
        mean = pixels.sum() / count.clip(1)
    pixels = (pixels - mean) * factors[1] + mean
    if pixels.shape[-1] != 3:
        return pixels if inside is None else pixels * inside[..., None]
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    gray = (pixels * luma).sum(-1, keepdims=True)
    pixels = (pixels - gray) * factors[2] + gray
    return pixels if inside is None else pixels * inside[..., None]
