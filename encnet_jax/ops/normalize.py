"""Image normalization, the same on the host and inside compiled functions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normalize(images: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Returns float32 images with zero mean and unit deviation: NumPy in, NumPy out.

    Args:
        images: 0-255, of any real dtype, (..., c); uint16: 0-65535.
        mean: Mean of the channels on the scale 0 to 1.
        std: Standard deviation likewise.
    """
    xp: Any = jnp if isinstance(images, jax.Array) else np
    center, scale = xp.asarray(mean, xp.float32), xp.asarray(std, xp.float32)
    white = white_level(images.dtype)
    return images.astype(xp.float32) * (1 / (white * scale)) - center / scale


def white_level(dtype: Any) -> int:
    """Returns the value of images that stands for 1: 65535 of uint16, 255 of others."""
    return 65535 if dtype == np.uint16 else 255


def to_byte_scale(images: Any) -> Any:
    """Returns images of 0-255: those of uint16 as float32, others as they are."""
    if images.dtype != np.uint16:
        return images
    xp: Any = jnp if isinstance(images, jax.Array) else np
    return images.astype(xp.float32) * xp.float32(255 / 65535)
