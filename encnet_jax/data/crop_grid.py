"""Where the pixels of a crop lie in the image, under `jax.jit`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Num, UInt8

from encnet_jax.data.rotation import Rotation


class Axis:
    """Source position of each crop pixel along one axis.

    Args:
        length: Source pixels.
        step: Source pixels per crop pixel.
        start: First pixel of the crop, in scaled pixels.
        visible: Crop pixels inside the image.
        crop_size: Crop pixels.
        size: Pixels of the array that holds the source pixels; default: `length`.
    """

    def __init__(
        self,
        length: jax.Array | int,
        step: jax.Array,
        start: jax.Array,
        visible: jax.Array,
        crop_size: int,
        size: int | None = None,
    ):
        self.length = length
        self.size = size or length
        self.step = step
        self.start = start
        self.visible = visible
        self.inside = jnp.arange(crop_size) < visible
        self.position = (jnp.arange(crop_size) + start + 0.5) * step

    def flip(self, flipped: Bool[Array, ""]) -> None:
        """Reverses the order of the pixels if `flipped`."""
        self.inside = jnp.where(flipped, self.inside[::-1], self.inside)
        self.position = jnp.where(flipped, self.position[::-1], self.position)

    def nearest(self) -> Int32[Array, " crop"]:
        """Returns the nearest source pixels."""
        return jnp.minimum(self.position.astype(jnp.int32), self.length - 1)

    def nearest_to(self, positions: Float[Array, "..."]) -> Int32[Array, "..."]:
        """Returns the source pixels nearest to positions, in pixels from `start`."""
        positions = (positions + self.start) * self.step
        return positions.astype(jnp.int32).clip(0, self.length - 1)

    def weights(self) -> Float32[Array, "crop size"]:
        """Bilinear weights, antialiased when downscaling; 0 outside the image."""
        pixel = jnp.arange(self.size)
        distance = jnp.abs(self.position[:, None] - 0.5 - pixel)
        weights = jnp.maximum(0.0, 1 - distance / jnp.maximum(self.step, 1.0))
        weights = jnp.where(pixel < self.length, weights, 0.0)
        weights = weights / weights.sum(1, keepdims=True)
        return jnp.where(self.inside[:, None], weights, 0.0)


class CropGrid:
    """The pixels of a crop whose rows and columns are those of the image.

    Args:
        rows: The crop along the vertical axis.
        columns: The crop along the horizontal axis.
    """

    def __init__(self, rows: Axis, columns: Axis):
        self.rows, self.columns = rows, columns

    @property
    def inside(self) -> Bool[Array, "crop crop"]:
        """Which pixels show the image; the rest is padding."""
        return self.rows.inside[:, None] & self.columns.inside[None, :]

    def flip(self, flipped: Bool[Array, ""]) -> None:
        """Flips the crop horizontally if `flipped`."""
        self.columns.flip(flipped)

    def nearest(self, labels: UInt8[Array, "h w"]) -> UInt8[Array, "crop crop"]:
        """Returns the nearest label of each pixel; any where outside."""
        return labels[self.rows.nearest()][:, self.columns.nearest()]

    def resample(self, image: Num[Array, "h w c"]) -> Float32[Array, "crop crop c"]:
        """Returns the pixels by bilinear interpolation, 0 outside the image."""
        rows, columns = self.rows.weights(), self.columns.weights()
        pixels = image.astype(jnp.float32)
        pixels = jnp.einsum("oh,hwc->owc", rows, pixels, precision="highest")
        return jnp.einsum("ow,hwc->hoc", columns, pixels, precision="highest")


class RotatedGrid(CropGrid):
    """The pixels of a crop of a rotated image.

    Args:
        rows: The window of the crop along the vertical axis.
        columns: The window along the horizontal axis.
        rotation: How the crop lies in its window.
        crop_size: Height and width of the crop.
    """

    def __init__(self, rows: Axis, columns: Axis, rotation: Rotation, crop_size: int):
        super().__init__(rows, columns)
        self.rotation = rotation
        self.pixels = jnp.arange(crop_size)[:, None], jnp.arange(crop_size)

    @property
    def inside(self) -> Bool[Array, "crop crop"]:
        """Which pixels show the rotated image."""
        down, right = self._positions()
        rows, columns = self.pixels
        return (
            ((rows < self.rotation.rows) & (columns < self.rotation.columns))
            & ((down >= 0) & (down < self.rows.visible))
            & ((right >= 0) & (right < self.columns.visible))
        )

    def flip(self, flipped: Bool[Array, ""]) -> None:
        """Flips the rotated crop horizontally if `flipped`."""
        rows, columns = self.pixels
        self.pixels = rows, jnp.where(flipped, columns[::-1], columns)

    def nearest(self, labels: UInt8[Array, "h w"]) -> UInt8[Array, "crop crop"]:
        """Returns the nearest label of each pixel; any where outside."""
        down, right = self._positions()
        return labels[self.rows.nearest_to(down), self.columns.nearest_to(right)]

    def resample(self, image: Num[Array, "h w c"]) -> Float32[Array, "crop crop c"]:
        """Returns the pixels of the window, interpolated again between four."""
        window = super().resample(image)
        axes = zip(self._positions(), (self.rows.visible, self.columns.visible))
        (above, below, down), (left, right, along) = (_pair(*axis) for axis in axes)

        def between(row: jax.Array) -> jax.Array:
            return _mix(window[row, left], window[row, right], along)

        pixels = _mix(between(above), between(below), down)
        return jnp.where(self.inside[..., None], pixels, 0.0)

    def _positions(self) -> Sequence[Float[Array, "crop crop"]]:
        return self.rotation.positions(*self.pixels)


def _pair(
    positions: Float[Array, "..."], length: jax.Array
) -> tuple[Int32[Array, "..."], Int32[Array, "..."], Float[Array, "..."]]:
    """Returns the two pixels next to each position, and how far it is between them."""
    low = jnp.floor(positions - 0.5)
    first, second = (jnp.clip(low + i, 0, length - 1) for i in (0, 1))
    share = positions - 0.5 - low
    return first.astype(jnp.int32), second.astype(jnp.int32), share


def _mix(
    one: Float[Array, "h w c"], other: Float[Array, "h w c"], share: Float[Array, "h w"]
) -> Float[Array, "h w c"]:
    return one + (other - one) * share[..., None]
