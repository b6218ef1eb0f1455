"""Any image that a predictor takes, as an array: RGB, or scaled bands."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from encnet_jax.data.bands import RGB_INFO, Pixels, decode_pixels, scale_bands
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.image_io import decoding, to_rgb_array
from encnet_jax.data.input_files import read_file
from encnet_jax.data.object_example import raw_bands, unmasked
from encnet_jax.files import user_path

ImageInput = (
    str | os.PathLike[str] | Image.Image | UInt8[np.ndarray | jax.Array, "h w 3"]
)


def read_image(image: ImageInput, info: DatasetInfo = RGB_INFO) -> Pixels:
    """Returns any supported image as a model takes it; see `Segmenter.__call__`.

    Args:
        image: A file (a string may start with `~`), a PIL image, or an RGB array,
            0-255; for models of bands an array (h, w, c) of the values that files hold.
        info: What the model was trained on.

    Raises:
        UserError: It cannot be read or decoded; also a PIL image, which is decoded on
            first use, if it is truncated or its file was closed before.
        TypeError: Another type, or an array of another dtype or shape.
    """
    value_range: Any = info.value_range
    opened = isinstance(image, Image.Image)
    if info.banded and not isinstance(image, str | os.PathLike):
        with decoding("image") if opened else contextlib.nullcontext():
            raw = raw_bands(image, info.channels, "image", value_range)
        return scale_bands(raw.copy(), value_range, "image")  # as `_check_array`
    if isinstance(image, Image.Image):
        if not image.width * image.height:
            raise TypeError(f"image: an image without pixels, {image.size}")
        with decoding("image"):
            return to_rgb_array(image, value_range)
    if not isinstance(image, str | os.PathLike):
        return _check_array(image)
    # A `Path` is of a command, which has found the file: `~a.jpg` may be its name.
    path = user_path(image) if isinstance(image, str) else Path(image)
    return decode_pixels(read_file(path), str(path), info)


def _check_array(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an array of any library in NumPy; raises `TypeError` for others."""
    allowed = "allowed are a file, a PIL image and a uint8 array (h, w, 3), RGB"
    if not hasattr(image, "__array__"):
        raise TypeError(f"image: {type(image).__name__}; {allowed}")
    # A copy: results keep it, while a caller may use its buffer for the next image.
    array = unmasked(image, "image").copy()
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise TypeError(f"image: an array of {array.dtype} {array.shape}; {allowed}")
    if not array.size:
        raise TypeError(f"image: an array without pixels, {array.shape}; {allowed}")
    return array
