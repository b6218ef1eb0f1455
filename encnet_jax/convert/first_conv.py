"""Kernels of the first convolution for images of other channels than RGB."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from encnet_jax.errors import UserError

# What reads the image: of both stems of ResNets, of networks for classification, and of
# vision transformers.
FIRST_KERNELS = (
    "backbone.stem.0.conv.kernel",
    "stem.kernel",
    "backbone.patch_embed.kernel",
)


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
            One that is several of them gets the sum of their kernels.

    Raises:
        UserError: There is no such channel.
    """
    mean = kernel.mean(2, keepdims=True)
    if channels < 3:
        return np.repeat(mean * (3 / channels), channels, 2)
    extended = np.repeat(mean, channels, 2)
    kept = _kept(rgb_channels)
    if not all(0 <= channel < channels for channel in kept):
        raise UserError(
            f"rgb_channels={[*kept]}: must be from 0 to {channels - 1}, of {channels} "
            "channels"
        )
    extended[:, :, kept] = 0
    for color, channel in enumerate(kept):
        extended[:, :, channel] += kernel[:, :, color]
    return extended


def fits(stored: int, channels: int, rgb_channels: Sequence[int] = ()) -> bool:
    """Returns whether a kernel of `stored` channels fits the images as it is.

    A kernel of RGB images (3) does not fit three channels in another order.
    """
    return stored == channels and (channels != 3 or _kept(rgb_channels) == [0, 1, 2])


def describe_extension(channels: int, rgb_channels: Sequence[int] = ()) -> str:
    """Returns what `extend_kernel` did, in words."""
    if channels < 3:
        return (
            f"first convolution: {channels} instead of 3 channels, each with the mean "
            f"of the kernels of red, green and blue times {3 / channels:g}"
        )
    kept = ", ".join(map(str, _kept(rgb_channels)))
    if channels == 3:
        return f"first convolution: {kept} have the kernels of red, green and blue"
    return (
        f"first convolution: {channels} instead of 3 channels; {kept}"
        " have the kernels of red, green and blue, the others their mean"
    )


def _kept(rgb_channels: Sequence[int]) -> list[int]:
    return [*(rgb_channels if len(rgb_channels) == 3 else range(3))]


def fit_first_kernel(
    stored: dict[str, Any],
    wanted: Mapping[str, Any],
    rgb_channels: Sequence[int],
    *,
    banded: bool = False,
) -> str:
    """Fits the first convolution of stored weights to the channels of a model.

    Args:
        stored: Path -> array; the kernel is replaced.
        wanted: Path -> array of the model.
        rgb_channels: See `extend_kernel`.
        banded: Whether the stored weights are of bands, not of RGB images: as many
            channels are then taken for the same ones.

    Returns:
        What was done, in words; "" if nothing.

    Raises:
        UserError: The weights are of other channels, but not of 3.
    """
    path = next((p for p in FIRST_KERNELS if p in stored and p in wanted), None)
    if path is None:
        return ""
    there, channels = stored[path].shape[2], wanted[path].shape[2]
    if fits(there, channels, () if banded else rgb_channels):
        return ""
    if there != 3:
        raise UserError(
            f"takes images of {there} channels; data.channels is {channels}: must be "
            "the same, or weights of 3"
        )
    kernel = extend_kernel(np.asarray(stored[path]), channels, rgb_channels)
    stored[path] = jnp.asarray(kernel)
    return describe_extension(channels, rgb_channels)
