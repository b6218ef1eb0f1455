"""Kernels of the first convolution for images of other channels than RGB."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

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
