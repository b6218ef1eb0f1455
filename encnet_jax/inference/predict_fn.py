"""Jitted functions from uint8 images to logits, labels and class probabilities."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int32, Num, UInt8

from encnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from encnet_jax.errors import UserError
from encnet_jax.inference.context import MergedModel, forward_with_gate
from encnet_jax.inference.folding import eval_model_def, fold_model
from encnet_jax.ops.normalize import normalize, to_byte_scale
from encnet_jax.ops.resize import pad_with_zeros, resize_bilinear
from encnet_jax.ops.resize_argmax import resize_argmax, resize_logits
from encnet_jax.run.state import PureDict


class Prediction(NamedTuple):
    """Labels of a batch of images.

    Attributes:
        labels: The highest-scoring class of each pixel.
        presence: The probability that each class occurs in the image, from the
            semantic encoding branch; None without one.
        gate: The gate of the Context Encoding Module; None without one.
    """

    labels: UInt8[Array, "b h w"]
    presence: Float32[Array, "b n"] | None
    gate: Float32[Array, "b c"] | None = None


# (params, batch_stats, images) -> labels
LabelFn = Callable[[PureDict, PureDict, Num[ArrayLike, "b h w c"]], Prediction]
# (params, batch_stats, images) -> class probabilities of every pixel
ProbabilityFn = Callable[
    [PureDict, PureDict, Num[ArrayLike, "b h w c"]], Float32[Array, "b h w n"]
]
# (params, batch_stats, images) -> class probabilities
ClassifyFn = Callable[
    [PureDict, PureDict, Num[ArrayLike, "b h w c"]], Float[Array, "b n"]
]


def check_size(name: str, value: Any, least: int = 0) -> int:
    """Returns a number of pixels as an integer of Python.

    Args:
        name: Name of the argument, for the error.
        value: Its value; may be an integer of NumPy.
        least: The smallest that is allowed.

    Raises:
        UserError: No integer, or one below `least`.
    """
    try:
        size = operator.index(value)
    except TypeError:
        size = least - 1
    if size < least:
        raise UserError(f"{name}={value!r}: must be an integer of at least {least}")
    return size


def resized_shape(size: tuple[int, int], base_size: int) -> tuple[int, int]:
    """Returns `size` scaled to a long side of `base_size` pixels; 0 keeps it.

    Raises:
        UserError: `base_size` is no integer of at least 0.
    """
    if not check_size("base_size", base_size):
        return size
    factor = base_size / max(size)
    return (
        max(1, int(size[0] * factor + 0.5)),
        max(1, int(size[1] * factor + 0.5)),
    )


def preprocess(
    images: Num[Array | np.ndarray, "b h w c"],
    mean: Sequence[float],
    std: Sequence[float],
    base_size: int,
    align_corners: bool,
) -> Float32[Array, "b H W c"]:
    """Returns whole images as the network takes them; see `whole_image_logits`."""
    inputs = resize_bilinear(
        jnp.asarray(to_byte_scale(images), jnp.float32),
        resized_shape(_size(images), base_size),
        align_corners=align_corners,
        antialias=not align_corners,
    )
    return normalize(inputs, mean, std)


def pad_inputs(
    model: Any, inputs: Float32[Array, "b h w c"]
) -> Float32[Array, "b H W c"]:
    """Returns normalized images with zeros below and to the right, as a model needs.

    See `SegmentationModel.padded_size`; a network of the caller's need not have it.
    """
    if not hasattr(model, "padded_size"):
        return inputs
    padded = model.padded_size(_size(inputs))
    return inputs if padded == _size(inputs) else pad_with_zeros(inputs, padded)


def network_inputs(
    model: Any,
    images: Num[Array | np.ndarray, "b h w c"],
    mean: Sequence[float],
    std: Sequence[float],
    base_size: int,
    align_corners: bool,
) -> tuple[Float32[Array, "b H W c"], dict[str, Any]]:
    """Returns whole images as a model takes them, and the way back to their size.

    The latter are arguments of `resize_logits` and `resize_argmax`: padding is cut off
    before the logits are resized to the images.
    """
    inputs = preprocess(images, mean, std, base_size, align_corners)
    padded = pad_inputs(model, inputs)
    resizing = dict(
        sizes=[_size(inputs), _size(images)],
        align_corners=[model.align_corners, align_corners],
        covers=_size(padded),
    )
    return padded, resizing


def whole_image_logits(
    model: Any,
    images: Num[Array | np.ndarray, "b h w c"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    base_size: int = 0,
    align_corners: bool = False,
    impl: str = "auto",
) -> tuple[Float32[Array, "b h w n"], Float32[Array, "b n"] | None]:
    """Segments whole images with a model in eval mode.

    Args:
        model: A segmentation model, or a network with its `forward_low_res` and
            `align_corners`.
        images: 0-255; uint16: 0-65535.
        mean: Channel means on the scale 0 to 1.
        std: Channel standard deviations on the same scale.
        base_size: Long side in the network; see `resized_shape`.
        align_corners: How images and logits are resized. False: half-pixel centers,
            images antialiased, as in training here. True: as PyTorch-Encoding's
            evaluation.
        impl: See `resize_logits`.

    Returns:
        Logits at the size of `images`, and class presence probabilities or None.
    """
    inputs, resizing = network_inputs(
        model, images, mean, std, base_size, align_corners
    )
    output = model.forward_low_res(inputs)
    logits = resize_logits(output.logits, impl=impl, **resizing)
    return logits, presence_probabilities(output.se_logits)


def make_label_fn(
    model_def: MergedModel,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    base_size: int = 0,
    align_corners: bool = False,
) -> LabelFn:
    """Returns a jitted function that labels whole images.

    It takes the arrays of an `InferenceModel` and is compiled once per image shape.

    Args:
        model_def: Definition of an `InferenceModel`.
        mean: See `whole_image_logits`.
        std: See `whole_image_logits`.
        base_size: See `whole_image_logits`.
        align_corners: See `whole_image_logits`.
    """

    @jax.jit
    def label(
        params: PureDict, batch_stats: PureDict, images: Num[Array, "b h w c"]
    ) -> Prediction:
        model: Any = model_def.merge(params, batch_stats)
        inputs, resizing = network_inputs(
            model, images, mean, std, base_size, align_corners
        )
        output, gate = forward_with_gate(model, inputs)
        labels = resize_argmax(output.logits, **resizing)
        return Prediction(labels, presence_probabilities(output.se_logits), gate)

    return label


def make_probability_fn(
    model_def: MergedModel,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    base_size: int = 0,
    align_corners: bool = False,
) -> ProbabilityFn:
    """Returns a jitted function from whole images to probabilities of every pixel.

    The arguments are those of `make_label_fn`, and the logits those of its labels.
    """

    @jax.jit
    def probabilities(
        params: PureDict, batch_stats: PureDict, images: Num[Array, "b h w c"]
    ) -> Float32[Array, "b h w n"]:
        logits, _ = whole_image_logits(
            model_def.merge(params, batch_stats),
            images,
            mean=mean,
            std=std,
            base_size=base_size,
            align_corners=align_corners,
        )
        return jax.nn.softmax(logits)

    return probabilities


def make_predict_fn(
    model: nnx.Module, **settings: Any
) -> Callable[[Num[ArrayLike, "b h w c"]], Int32[Array, "b h w"]]:
    """Returns a pure jitted function from images to labels.

    Compiled once per image shape. The weights are copied: later changes to the model
    have no effect.

    Args:
        model: A segmentation model.
        **settings: Keyword arguments of `make_label_fn`.
    """
    model_def, *arrays = fold_model(model)
    label = make_label_fn(model_def, **settings)
    # The weights are arguments, so that they are no constants of the program.
    predict = jax.jit(lambda *inputs: label(*inputs).labels.astype(jnp.int32))
    return functools.partial(predict, *jax.device_put(arrays))


def make_classify_fn(
    model: nnx.Module, *, mean: Sequence[float], std: Sequence[float]
) -> ClassifyFn:
    """Returns a jitted function from images to class probabilities.

    Args:
        model: A classifier, or an abstract one.
        mean: Channel means on the scale 0 to 1.
        std: Channel standard deviations on the same scale.
    """
    model_def = eval_model_def(model)

    @jax.jit
    def classify(
        params: PureDict, batch_stats: PureDict, images: Num[Array, "b h w c"]
    ) -> Float[Array, "b n"]:
        classifier: Any = model_def.merge(params, batch_stats)
        return jax.nn.softmax(classifier(normalize(images, mean, std)).logits)

    return classify


def _size(images: Array | np.ndarray) -> tuple[int, int]:
    return images.shape[1], images.shape[2]


def presence_probabilities(
    se_logits: Float[Array, "b n"] | None,
) -> Float32[Array, "b n"] | None:
    """Returns the probability that each class occurs in the image; None of None."""
    return None if se_logits is None else jax.nn.sigmoid(se_logits.astype(jnp.float32))
