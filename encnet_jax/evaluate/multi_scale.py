"""PyTorch-Encoding's multi-scale evaluation of one image, for any network."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from encnet_jax.inference.predict_fn import check_size
from encnet_jax.inference.score_map import ScoreMapPool, ScoreMapSharding
from encnet_jax.inference.sliding_window import (
    add_hflip,
    merge_hflip,
    run_sliding_window,
)
from encnet_jax.inference.tta import PyTorchEncodingProtocol
from encnet_jax.run.sharding import mesh_of, replicated


def multi_scale_scores(
    predict: Callable[[Float32[np.ndarray, "b s s 3"]], Array | np.ndarray],
    image: Float32[np.ndarray, "h w 3"],
    *,
    num_classes: int,
    base_size: int,
    crop_size: int,
    scales: Sequence[float],
    flip: bool,
    mean: Sequence[float],
    std: Sequence[float],
    stride_rate: float = 2 / 3,
    align_corners: bool = True,
    batch_size: int = 8,
) -> Float[np.ndarray, "h w n"]:
    """Returns class scores of an image, summed over scales.

    At each scale the long side is resized to `base_size` times the scale, and windows
    of `crop_size` pass through the network, with `flip` also mirrored. The exponential
    of the summed logits is averaged where windows overlap, resized to the image, and
    summed over the scales. There is no softmax: the scores are not probabilities.

    Source: `MultiEvalModule` of PyTorch-Encoding, encoding/models/base.py.

    Args:
        predict: Maps normalized images (b, crop_size, crop_size, 3) to logits
            (b, crop_size, crop_size, n); always called with one shape. Its b is
            `batch_size`; with `flip`, which puts a window and its mirror image into the
            same batch, the even number below an odd one, and at least 2.
        image: Normalized by `mean` and `std`.
        num_classes: Number of classes n.
        base_size: Long side at scale 1, in pixels.
        crop_size: Height and width of a window, in pixels.
        scales: Factors of `base_size`.
        flip: Whether to add the logits of the mirrored window.
        mean: Channel means on the scale 0 to 1; padding is black, that is -mean / std.
        std: Channel standard deviations on the same scale.
        stride_rate: Stride of the windows as a fraction of their size.
        align_corners: How the image and its scores are resized.
        batch_size: Windows per call of `predict`, mirrored ones included; at least 1.

    Returns:
        float32 scores.

    Raises:
        ValueError: No scale, or one that is not above 0; a `base_size`, `crop_size`, or
            `batch_size` below 1; a `stride_rate` outside (0, 1]; or logits of another
            number of classes.
    """
    check_size("base_size", base_size, 1)
    check_size("crop_size", crop_size, 1)
    if not len(scales) or not all(scale > 0 for scale in scales):
        raise ValueError(f"scales={scales!r}: must be one or more numbers above 0")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if not 0 < stride_rate <= 1:
        raise ValueError(f"stride_rate={stride_rate}: must be above 0, at most 1")
    protocol = PyTorchEncodingProtocol(
        base_size=base_size,
        crop_size=crop_size,
        scales=tuple(scales),
        flip=flip,
        stride=max(int(crop_size * stride_rate), 1),
        align_corners=align_corners,
        mean=tuple(mean),
        std=tuple(std),
    )
    mesh = mesh_of(jax.local_devices()[:1])
    sharding = ScoreMapSharding(num_classes, protocol.softmax, mesh)

    def apply(windows: np.ndarray) -> tuple[jax.Array, None, None]:
        logits = predict(add_hflip(windows, flip))
        logits = jax.device_put(logits, replicated(mesh))
        return _merge_hflip(logits, None, flip, sharding)[0], None, None

    windows_per_batch = max(batch_size // 2, 1) if flip else batch_size
    (result,) = run_sliding_window(
        [(None, image)], apply, protocol, ScoreMapPool(sharding), windows_per_batch
    )
    return result.score_map.scores()


_merge_hflip = jax.jit(merge_hflip, static_argnames=("mirror", "sharding"))
