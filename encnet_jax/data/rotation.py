"""Rotation of crops: the geometry, for NumPy on the host and JAX on the device.

The scaled image is rotated about its center, in a frame of its own size from which the
crop is taken (PyTorch-Encoding v0.4.3; paper, section 4). A crop shows a rotated square
of the scaled image: a window around that square is resampled like any other crop, and
the rotated crop is taken from the window.
"""

import math
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

# Numbers or arrays of NumPy on the host, arrays of JAX on the device.
Number = Any


class Frame(NamedTuple):
    """A crop along one axis of the scaled image.

    Attributes:
        size: Pixels of the scaled image.
        start: First of them inside the crop.
        visible: Pixels of the crop inside the image before its rotation.
    """

    size: Number
    start: Number
    visible: Number


class Rotation(NamedTuple):
    """Where in its window each pixel of a rotated crop lies.

    Attributes:
        cos: Cosine of the angle, counterclockwise.
        sin: Sine of the angle.
        top: Vertical position of the center of the crop's first pixel, in pixels below
            the upper edge of the window.
        left: Its horizontal position, in pixels from the left edge.
        rows: Rows of the crop inside the frame; the rest is padding.
        columns: Columns of the crop inside the frame.
    """

    cos: Number
    sin: Number
    top: Number
    left: Number
    rows: Number
    columns: Number

    def positions(self, rows: Number, columns: Number) -> tuple[Number, Number]:
        """Returns the vertical and horizontal positions of pixels in the window.

        Args:
            rows: Rows of the pixels in the crop.
            columns: Their columns, of a shape that broadcasts with that of `rows`.
        """
        down = self.top + self.cos * rows + self.sin * columns
        right = self.left - self.sin * rows + self.cos * columns
        return down, right

    @property
    def matrix(self) -> tuple[Number, ...]:
        """The same map as `PIL.Image.Transform.AFFINE` takes it."""
        cos, sin = self.cos, self.sin
        # PIL counts from the upper left corner of the first pixel.
        left = self.left + (sin - cos) / 2
        return cos, -sin, left, sin, cos, self.top - (sin + cos) / 2


class Window(NamedTuple):
    """The part of an axis of the scaled image that a rotated crop shows."""

    first: Number
    length: Number


def rotate(
    angle: Number, frames: Iterable[Frame], xp: ModuleType
) -> tuple[Rotation, tuple[Window, Window]]:
    """Returns how a crop lies in its window, and the window along both axes.

    Args:
        angle: Degrees, counterclockwise.
        frames: The crop along the vertical axis, and along the horizontal.
        xp: `numpy`, or `jax.numpy` under `jax.jit`.
    """
    rows, columns = frames
    cos, sin = xp.cos(angle * (math.pi / 180)), xp.sin(angle * (math.pi / 180))
    down = rows.start + 0.5 - rows.size / 2
    right = columns.start + 0.5 - columns.size / 2
    top = rows.size / 2 + cos * down + sin * right
    left = columns.size / 2 - sin * down + cos * right
    height, width = rows.visible - 1, columns.visible - 1
    vertical = _window(top, cos * height, sin * width, rows.size, xp)
    horizontal = _window(left, -sin * height, cos * width, columns.size, xp)
    rotation = Rotation(
        cos,
        sin,
        top - vertical.first,
        left - horizontal.first,
        rows.visible,
        columns.visible,
    )
    return rotation, (vertical, horizontal)


def _window(
    start: Number, first: Number, second: Number, size: Number, xp: ModuleType
) -> Window:
    """Returns the pixels that bilinear resampling of a parallelogram reads.

    It spans `first` and `second` from `start`. At least one pixel, even if the whole
    crop lies beyond the rotated image.
    """
    least = start + xp.minimum(first, 0) + xp.minimum(second, 0)
    most = start + xp.maximum(first, 0) + xp.maximum(second, 0)
    begin = xp.clip(xp.floor(least - 0.5), 0, size - 1)
    end = xp.clip(xp.floor(most - 0.5) + 2, begin + 1, size)
    return Window(begin, end - begin)


def rotated_positions(
    angle: Number, positions: Sequence[Number], sizes: Sequence[Number], xp: ModuleType
) -> tuple[Number, Number]:
    """Returns where positions of the scaled image lie in the frame after rotation.

    Args:
        angle: Degrees, counterclockwise.
        positions: Vertical and horizontal positions, from the upper left corner.
        sizes: Height and width of the scaled image.
        xp: `numpy`, or `jax.numpy` under `jax.jit`.
    """
    cos, sin = xp.cos(angle * (math.pi / 180)), xp.sin(angle * (math.pi / 180))
    down, right = (p - size / 2 for p, size in zip(positions, sizes))
    vertical = sizes[0] / 2 + cos * down - sin * right
    return vertical, sizes[1] / 2 + sin * down + cos * right


def max_window(crop_size: int, rotation: float) -> int:
    """Returns the largest height or width of a window.

    Args:
        crop_size: Height and width of the crop.
        rotation: Largest angle in degrees; 0: the window is the crop.
    """
    if not rotation:
        return crop_size
    angle = math.radians(min(rotation, 45))  # where the sum below is largest
    extent = (crop_size - 1) * (math.cos(angle) + math.sin(angle))
    return math.ceil(extent) + 3
