"""Kernels of the first convolution for images of other channels than RGB."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from encnet_jax.errors import UserError

# What reads the image: of both stems of backbones, and of networks for classification.
FIRST_KERNEL = "backbone.stem.0.conv.kernel"
FIRST_KERNELS = (FIRST_KERNEL, "stem.kernel")


def extend_kernel(
    kernel: Float[np.ndarray, "kh kw 3 f"],
    channels: int,
    rgb_channels: Sequence[int] = (),
) -> Float[np.ndarray, "kh kw c f"]:
    """Returns the kernel of RGB images for images of `channels` channels.

    Of three or more channels, red, green and blue keep their kernels, and every other
    one gets the mean of the three. Fewer get the mean times 3 / channels each, so that
    the sum, the answer to a gray image, stays the same.

    Args:
        kernel: That of RGB images.
        channels: Channels of the images.
        rgb_channels: Which of them are red, green and blue; by default the first three.
    """
    mean = kernel.mean(2, keepdims=True)
    if channels < 3:
        return np.repeat(mean * (3 / channels), channels, 2)
    extended = np.repeat(mean, channels, 2)
    extended[:, :, list(rgb_channels if len(rgb_channels) == 3 else range(3))] = kernel
    return extended


def describe_extension(channels: int, rgb_channels: Sequence[int] = ()) -> str:
    """Returns what `extend_kernel` did, in words."""
    if channels < 3:
        return (
            f"first convolution: {channels} instead of 3 channels, each with the mean "
            f"of the kernels of red, green and blue times {3 / channels:g}"
        )
    kept = rgb_channels if len(rgb_channels) == 3 else range(3)
    rgb = ", ".join(map(str, kept))
    return (
        f"first convolution: {channels} instead of 3 channels; {rgb}"
        " have the kernels of red, green and blue, the others their mean"
    )


def fit_first_kernel(
    stored: dict[str, Any], wanted: Mapping[str, Any], rgb_channels: Sequence[int]
) -> str:
    """Extends the first convolution of stored weights to the channels of a model.

    Args:
        stored: Path -> array; the kernel is replaced.
        wanted: Path -> array of the model.
        rgb_channels: See `extend_kernel`.

    Returns:
        What was done, in words; "" if the channels are the same.

    Raises:
        UserError: The weights are of other channels, but not of 3.
    """
    path = next((p for p in FIRST_KERNELS if p in stored and p in wanted), None)
    if path is None:
        return ""
    there, channels = stored[path].shape[2], wanted[path].shape[2]
    if there == channels:
        return ""
    if there != 3:
        raise UserError(
            f"takes images of {there} channels; data.channels is {channels}: must be "
            "the same, or weights of 3"
        )
    kernel = extend_kernel(np.asarray(stored[path]), channels, rgb_channels)
    stored[path] = jnp.asarray(kernel)
    return describe_extension(channels, rgb_channels)
