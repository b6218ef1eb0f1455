"""From images to logits and labels: whole images, and many scales and windows."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from encnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from encnet_jax.inference.score_map import ScoreMapPool, ScoreMapSharding
from encnet_jax.inference.sliding_window import (
    add_hflip,
    merge_hflip,
    run_sliding_window,
)
from encnet_jax.inference.tta import PyTorchEncodingProtocol
from encnet_jax.models.layers import ConvBN
from encnet_jax.models.segmentation import SegmentationOutput
from encnet_jax.ops.normalize import normalize
from encnet_jax.ops.resize import resize_bilinear
from encnet_jax.ops.resize_argmax import resize_argmax
from encnet_jax.run.sharding import mesh_of, replicated
from encnet_jax.run.state import ModelDef, PureDict, split_model


def resized_shape(size: tuple[int, int], base_size: int) -> tuple[int, int]:
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
        base_size: See `resized_shape`.
        align_corners: How image and logits are resized: False as training here does,
            with half-pixel centers and antialiased; True as PyTorch-Encoding does in
            evaluation.

    Returns:
        Logits (b, h, w, n), float32, and class presence probabilities (b, n) or None.
    """
    inputs = _inputs(images, mean, std, base_size, align_corners)
    output = model(inputs)
    logits = output.logits.astype(jnp.float32)
    logits = resize_bilinear(logits, _size(images), align_corners=align_corners)
    return logits, _presence(output)


def _inputs(
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    base_size: int,
    align_corners: bool,
) -> jax.Array:
    inputs = resize_bilinear(
        images.astype(jnp.float32),
        resized_shape(_size(images), base_size),
        align_corners=align_corners,
        antialias=not align_corners,
    )
    return normalize(inputs, mean, std)


def _size(images: jax.Array) -> tuple[int, int]:
    return images.shape[1], images.shape[2]


def _presence(output: SegmentationOutput) -> jax.Array | None:
    if output.se_logits is None:
        return None
    return jax.nn.sigmoid(output.se_logits.astype(jnp.float32))


class Prediction(NamedTuple):
    """What a model says of images.

    Attributes:
        labels: uint8 (b, h, w), the classes of highest score.
        presence: float32 (b, n), the probability that each class is in the image, of
            the semantic encoding branch; None if the model has none.
    """

    labels: jax.Array
    presence: jax.Array | None


class InferenceModel:
    """A model as prediction runs it: the same numbers, sooner.

    In eval mode, the norms folded into the convolutions (see `ConvBN.fold`), without
    the heads that only training needs.

    Args:
        model: A segmentation model, or its shapes; is left as it is.

    Attributes:
        model_def: The model without its arrays.
    """

    def __init__(self, model: nnx.Module):
        self._trained, *_ = split_model(model)
        self.model_def, *self._shapes = split_model(nnx.eval_shape(_folded, model))

    def shapes(self) -> tuple[PureDict, PureDict]:
        """Returns the shapes of `arrays`."""
        params, batch_stats = self._shapes
        return params, batch_stats

    def arrays(
        self, params: PureDict, batch_stats: PureDict
    ) -> tuple[PureDict, PureDict]:
        """Returns what `model_def` takes, of trained weights and running statistics.

        By NumPy: there is nothing to compile.
        """
        trained = self._trained.merge_abstract(*jax.device_get((params, batch_stats)))
        _, params, batch_stats = split_model(_folded(trained))
        return params, batch_stats


def fold_model(model: nnx.Module) -> tuple[ModelDef, PureDict, PureDict]:
    """Returns definition and NumPy arrays of a model, as `InferenceModel`."""
    _, params, batch_stats = split_model(model)
    folded = InferenceModel(model)
    return folded.model_def, *folded.arrays(params, batch_stats)


def _folded(model: nnx.Module) -> nnx.Module:
    model = nnx.clone(model)
    model.eval()
    for name in ("aux_head", "stage3_context"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    for layer in [m for _, m in nnx.iter_modules(model) if isinstance(m, ConvBN)]:
        layer.fold()
    return model


def make_label_fn(
    model_def: ModelDef,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    base_size: int = 0,
    align_corners: bool = False,
) -> Callable[[PureDict, PureDict, ArrayLike], Prediction]:
    """Returns a jitted function: parameters, statistics, uint8 (b, h, w, 3) -> labels.

    The one way of whole images. The model_def is that of a `InferenceModel`, whose
    `arrays` the function takes; see `whole_image_logits` for the other arguments.
    Compiled once for each shape.
    """

    @jax.jit
    def label(params: PureDict, batch_stats: PureDict, images: jax.Array) -> Prediction:
        segmenter: Any = model_def.merge(params, batch_stats)
        inputs = _inputs(images, mean, std, base_size, align_corners)
        output = segmenter.forward_low_res(inputs)
        labels = resize_argmax(
            output.logits,
            [_size(inputs), _size(images)],
            [segmenter.align_corners, align_corners],
        )
        return Prediction(labels, _presence(output))

    return label


def make_predict_fn(
    model: nnx.Module, **settings: Any
) -> Callable[[jax.Array], jax.Array]:
    """Returns a pure jitted function: uint8 (b, h, w, 3) -> int32 labels (b, h, w).

    Compiled once for each shape. The model is taken as it is now; later changes of it
    do not matter.

    Args:
        model: A segmentation model.
        **settings: Of `make_label_fn`.
    """
    model_def, *arrays = fold_model(model)
    label = make_label_fn(model_def, **settings)
    params, batch_stats = jax.device_put(arrays)

    @jax.jit
    def predict(
        params: PureDict, batch_stats: PureDict, images: jax.Array
    ) -> jax.Array:
        return label(params, batch_stats, images).labels.astype(jnp.int32)

    return functools.partial(predict, params, batch_stats)


def eval_model_def(model: nnx.Module) -> ModelDef:
    """Returns the model_def of a model in eval mode, for arrays given later."""
    model = nnx.clone(model)
    model.eval()
    return split_model(model)[0]


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
        predict: Maps normalized images (batch_size, crop_size, crop_size, 3) to logits
            (batch_size, crop_size, crop_size, n); always called with this one shape.
        image: float32 (h, w, 3), normalized by `mean` and `std`.
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

    def apply(windows: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
        logits = predict(add_hflip(windows, flip))
        return _merge_hflip(
            jax.device_put(logits, replicated(mesh)), None, flip, sharding
        )

    share = max(batch_size // 2, 1) if flip else batch_size
    (result,) = run_sliding_window(
        [(None, image)], apply, protocol, ScoreMapPool(sharding), share
    )
    return result.score_map.scores()


_merge_hflip = jax.jit(merge_hflip, static_argnames=("mirror", "sharding"))
