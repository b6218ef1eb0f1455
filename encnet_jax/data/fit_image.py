"""Images brought to the size of a network, as classifiers and exports take them."""

import numpy as np
from PIL import Image, ImageOps

from encnet_jax.data.band_image import of_each_band
from encnet_jax.data.bands import Pixels


def fit_image(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resizes an image to cover a height and width, and crops the center.

    Args:
        pixels: RGB uint8 (h, w, 3), or bands uint16 (h, w, c).
        size: Height and width of the result.
    """
    if pixels.shape[:2] == size:
        return pixels
    if pixels.dtype == np.uint8:
        return np.asarray(_fitted(Image.fromarray(pixels), size))
    fitted = of_each_band(pixels, lambda band: _fitted(band, size))
    return fitted.round().astype(np.uint16)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
