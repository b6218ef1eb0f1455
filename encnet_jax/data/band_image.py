"""Crops of images in memory of any number of channels, one channel at a time.

Pillow resamples one channel of floats, by the same filters as RGB.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt16
from PIL import Image

from encnet_jax.data.augmentation import CropParams


class BandImage:
    """An image uint16 (h, w, c), with the methods by which a crop is read.

    Args:
        pixels: The image.
    """

    def __init__(self, pixels: UInt16[np.ndarray, "h w c"]):
        self.pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def crop(self, params: CropParams) -> Float32[np.ndarray, "rows columns c"]:
        """Returns the visible part of a crop, 0 beyond a rotated image; not flipped."""
        if not params.angle:
            return self._resize(params)
        rotation, rows, columns = params.rotated()
        window = self._resize(params._replace(rows=rows, columns=columns))
        size = (params.columns.visible, params.rows.visible)
        return of_each_band(
            window,
            lambda band: band.transform(
                size,
                Image.Transform.AFFINE,
                rotation.matrix,
                Image.Resampling.BILINEAR,
            ),
        )

    def region(
        self, rows: tuple[int, int], columns: tuple[int, int], shrink: int
    ) -> UInt16[np.ndarray, "a b c"]:
        """Returns a region downscaled by `shrink`; it starts at multiples of that."""
        top, left = (first // shrink * shrink for first, _ in (rows, columns))
        part = self.pixels[top : rows[1], left : columns[1]]
        if shrink == 1:
            return part
        reduced = of_each_band(part, lambda band: band.reduce(shrink))
        return reduced.round().astype(np.uint16)

    def _resize(self, params: CropParams) -> Float32[np.ndarray, "rows columns c"]:
        axes = (params.rows, params.columns)
        (top, bottom), (left, right) = (axis.source_range(1) for axis in axes)
        part = self.pixels[top:bottom, left:right]
        box = params.box((top, left), part.shape[:2])
        size = (params.columns.visible, params.rows.visible)
        return of_each_band(
            part, lambda band: band.resize(size, Image.Resampling.BILINEAR, box)
        )


def of_each_band(
    pixels: np.ndarray, apply: Callable[[Image.Image], Image.Image]
) -> Float32[np.ndarray, "a b c"]:
    """Applies a function to each channel, as a Pillow image of floats."""
    bands = np.moveaxis(pixels, -1, 0).astype(np.float32)
    return np.stack([np.asarray(apply(Image.fromarray(band))) for band in bands], -1)
