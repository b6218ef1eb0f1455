"""Image normalization, the same on the host and inside compiled functions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normalize(images: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Returns float32 images with zero mean and unit deviation: NumPy in, NumPy out.

    Args:
        images: RGB, 0-255, of any real dtype, (..., 3).
        mean: Mean of the channels on the scale 0 to 1.
        std: Standard deviation likewise.
    """
    xp: Any = jnp if isinstance(images, jax.Array) else np
    center, scale = xp.asarray(mean, xp.float32), xp.asarray(std, xp.float32)
    return images.astype(xp.float32) * (1 / (255 * scale)) - center / scale
