"""From images to logits and labels: whole images, and many scales and windows."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from encnet_jax.data.classes import IMAGENET_MEAN, IMAGENET_STD
from encnet_jax.models.layers import interpolation_matrix, resize_bilinear
from encnet_jax.train_state import ModelDef, PureDict, split_model


def normalise(
    images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Returns float32 images with zero mean and unit deviation from 0-255 ones."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    return images.astype(jnp.float32) * scale - jnp.asarray(mean) / jnp.asarray(std)


def working_size(size: tuple[int, int], base_size: int) -> tuple[int, int]:
    """Returns the size with a long side of `base_size` pixels; 0 keeps the size."""
    if not base_size:
        return size
    factor = base_size / max(size)
    return (
        max(1, int(size[0] * factor + 0.5)),
        max(1, int(size[1] * factor + 0.5)),
    )


def whole_image_logits(
    model: nnx.Module,
    images: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    base_size: int = 0,
    align_corners: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Passes whole images through a model in eval mode.

    Args:
        model: A segmentation model.
        images: uint8 (b, h, w, 3), RGB 0-255.
        mean: Of the channels, on the scale 0 to 1.
        std: Likewise.
        base_size: See `working_size`.
        align_corners: How image and logits are resized: False as training here does,
            with half-pixel centres and antialiased; True as PyTorch-Encoding does in
            evaluation.

    Returns:
        Logits (b, h, w, n), float32, and class presence probabilities (b, n) or None.
    """
    size = (images.shape[1], images.shape[2])
    inputs = images.astype(jnp.float32)
    inputs = resize_bilinear(
        inputs,
        working_size(size, base_size),
        align_corners=align_corners,
        antialias=not align_corners,
    )
    output = model(normalise(inputs, mean, std))
    logits = output.logits.astype(jnp.float32)
    logits = resize_bilinear(logits, size, align_corners=align_corners)
    presence = None
    if output.presence is not None:
        presence = jax.nn.sigmoid(output.presence.astype(jnp.float32))
    return logits, presence


def make_predict_fn(
    model: nnx.Module,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    base_size: int = 0,
) -> Callable[[jax.Array], jax.Array]:
    """Returns a pure jitted function: uint8 (b, h, w, 3) -> int32 labels (b, h, w).

    Compiled once for each shape. The model is taken as it is now; later changes of it
    do not matter.
    """
    definition, params, stats = split_model(eval_copy(model))

    @jax.jit
    def apply(params: PureDict, stats: PureDict, images: jax.Array) -> jax.Array:
        model = definition.merge(params, stats)
        logits, _ = whole_image_logits(
            model, images, mean=mean, std=std, base_size=base_size
        )
        return logits.argmax(-1).astype(jnp.int32)

    return functools.partial(apply, params, stats)


def eval_copy(model: nnx.Module) -> nnx.Module:
    """Returns a copy of a model in eval mode."""
    model = nnx.clone(model)
    model.eval()
    return model


def eval_definition(model: nnx.Module) -> ModelDef:
    """Returns the definition of a model in eval mode, for arrays given later."""
    return split_model(eval_copy(model))[0]


def multi_scale_scores(
    predict: Callable[[np.ndarray], jax.Array | np.ndarray],
    image: np.ndarray,
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
) -> np.ndarray:
    """Returns the scores of PyTorch-Encoding's evaluation of one image.

    For every scale the long side becomes `base_size` times it. Windows of `crop_size`
    pass the network, as they are and, with `flip`, mirrored; the exponential of the sum
    of both is averaged where windows overlap, resized to the image, and summed over the
    scales. There is no softmax: the scores are not probabilities.

    Args:
        predict: Maps normalised images (batch_size, crop_size, crop_size, 3) to logits
            (batch_size, crop_size, crop_size, n); always called with this one shape.
        image: float32 (h, w, 3), normalised by `mean` and `std`.
        num_classes: n.
        base_size: Pixels of the long side at scale 1.
        crop_size: Pixels, height and width of a window.
        scales: Factors of `base_size`.
        flip: Add the logits of the mirrored window.
        mean: Of the channels, on the scale 0 to 1: what is padded is black, that is
            -mean/std.
        std: Likewise.
        stride_rate: Distance of windows relative to their size.
        align_corners: Of both resizings.
        batch_size: Windows that pass the network together; mirrored ones count.

    Returns:
        float32 (h, w, n).
    """
    black = (-np.asarray(mean) / np.asarray(std)).astype(np.float32)
    sizes = [_scaled_size(image.shape, math.ceil(base_size * s)) for s in scales]
    padded = [
        _padded(_resized(image, size, align_corners), crop_size, black)
        for size in sizes
    ]
    windows = [
        (number, box)
        for number, picture in enumerate(padded)
        for box in _windows(picture.shape, crop_size, int(crop_size * stride_rate))
    ]
    crops = (_padded(padded[number][box], crop_size, black) for number, box in windows)
    sums = [np.zeros((*p.shape[:2], num_classes), np.float32) for p in padded]
    counts = [np.zeros((*p.shape[:2], 1), np.float32) for p in padded]
    for (number, box), logits in zip(
        windows, _predicted(predict, crops, flip, batch_size), strict=True
    ):
        part = sums[number][box]
        part += np.exp(logits[: part.shape[0], : part.shape[1]])
        counts[number][box] += 1
    total = np.zeros((*image.shape[:2], num_classes), np.float32)
    for size, scores, count in zip(sizes, sums, counts, strict=True):
        averaged = (scores / count)[: size[0], : size[1]]
        total += _resized(averaged, image.shape[:2], align_corners)
    return total


def _scaled_size(shape: tuple[int, ...], long_side: int) -> tuple[int, int]:
    height, width = shape[:2]
    if height > width:
        return long_side, int(width * long_side / height + 0.5)
    return int(height * long_side / width + 0.5), long_side


def _resized(image: np.ndarray, size: Sequence[int], align_corners: bool) -> np.ndarray:
    rows = interpolation_matrix(image.shape[0], size[0], align_corners)
    columns = interpolation_matrix(image.shape[1], size[1], align_corners)
    image = np.tensordot(rows, image, (1, 0))
    return np.tensordot(columns, image, (1, 1)).swapaxes(0, 1).astype(np.float32)


def _padded(image: np.ndarray, least: int, color: np.ndarray) -> np.ndarray:
    """Pads below and on the right where a side is shorter than `least`."""
    height, width = image.shape[:2]
    if height >= least and width >= least:
        return image
    result = np.empty((max(height, least), max(width, least), 3), np.float32)
    result[...] = color
    result[:height, :width] = image
    return result


def _windows(
    shape: tuple[int, ...], crop: int, stride: int
) -> Iterator[tuple[slice, slice]]:
    """Yields the windows, rows first; the last ones may be smaller than `crop`."""

    def along(length: int) -> list[slice]:
        count = math.ceil((length - crop) / stride) + 1
        return [slice(i * stride, min(i * stride + crop, length)) for i in range(count)]

    for rows in along(shape[0]):
        for columns in along(shape[1]):
            yield rows, columns


def _predicted(
    predict: Callable[[np.ndarray], jax.Array | np.ndarray],
    crops: Iterator[np.ndarray],
    flip: bool,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Yields the logits of every crop, with those of its mirror image added."""
    share = max(batch_size // 2, 1) if flip else batch_size
    while batch := list(itertools.islice(crops, share)):
        images = np.stack(batch + [batch[-1]] * (share - len(batch)))
        if flip:
            both = np.asarray(predict(np.concatenate([images, images[:, :, ::-1]])))
            logits = both[:share] + both[share:, :, ::-1]
        else:
            logits = np.asarray(predict(images))
        yield from logits[: len(batch)]
