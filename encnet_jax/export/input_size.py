"""The size at which `encnet predict` feeds images to a model, for exports of it."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.fit_image import fit_image
from encnet_jax.evaluate.settings import protocol_from_config, whole_image_size
from encnet_jax.inference.predict_fn import resized_shape
from encnet_jax.inference.tta import MmsegProtocol, TTAProtocol
from encnet_jax.ops.resize import resize_bilinear

PrepareFn = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "H W 3"]]


def input_size(
    config: ConfigDict, model: nnx.Module, info: DatasetInfo
) -> tuple[int, int, PrepareFn]:
    """Returns `base_size`, `short_size`, and `resize` of an `ExportSpec`."""
    if info.task == "classification":
        side = config.data.crop_size
        return side, 0, crop_resizer((side, side))
    protocol = protocol_from_config(config, model, info)
    if isinstance(protocol, MmsegProtocol):
        return protocol.base_size, protocol.short_size, protocol_resizer(protocol)
    side = whole_image_size(config)
    if protocol is not None:
        return side, 0, protocol_resizer(protocol)
    return side, 0, long_side_resizer(side, config.evaluation.align_corners)


def long_side_resizer(base_size: int, align_corners: bool) -> PrepareFn:
    """Returns the resizing of `encnet predict`, but rounded to uint8.

    Args:
        base_size: Long side in the network, in pixels; 0 keeps the size of the image.
        align_corners: See `whole_image_logits`.
    """
    return lambda pixels: _resized(
        pixels,
        resized_shape(_size(pixels), base_size),
        align_corners=align_corners,
        antialias=not align_corners,
    )


def protocol_resizer(protocol: TTAProtocol) -> PrepareFn:
    """Returns the resizing of `encnet predict` for runs scored by a protocol."""
    # mmsegmentation resizes images without, whatever it does to scores.
    align = protocol.align_corners and not isinstance(protocol, MmsegProtocol)
    return lambda pixels: _resized(
        pixels, protocol.scaled_size(_size(pixels)), align_corners=align
    )


def _size(pixels: UInt8[np.ndarray, "h w 3"]) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]


def _resized(
    pixels: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], **options: bool
) -> UInt8[np.ndarray, "H W 3"]:
    if size == _size(pixels):
        return pixels
    values = jnp.asarray(pixels[None], jnp.float32)
    resized = resize_bilinear(values, size, **options)[0]
    return np.asarray(resized).round().clip(0, 255).astype(np.uint8)


def crop_resizer(size: tuple[int, int]) -> PrepareFn:
    """Returns `fit_image` to a height and width, for graphs of one size."""
    return lambda pixels: fit_image(pixels, size)
