"""From images to logits and labels: jitted functions of uint8 batches."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from encnet_jax.data.classes import IMAGENET_MEAN, IMAGENET_STD
from encnet_jax.models.layers import resize_bilinear
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
) -> tuple[jax.Array, jax.Array | None]:
    """Passes whole images through a model in eval mode.

    Args:
        model: A segmentation model.
        images: uint8 (b, h, w, 3), RGB 0-255.
        mean: Of the channels, on the scale 0 to 1.
        std: Likewise.
        base_size: See `working_size`. Resized as training resizes: half-pixel centres,
            antialiased.

    Returns:
        Logits (b, h, w, n), float32, and class presence probabilities (b, n) or None.
    """
    size = (images.shape[1], images.shape[2])
    inputs = images.astype(jnp.float32)
    inputs = resize_bilinear(
        inputs, working_size(size, base_size), align_corners=False, antialias=True
    )
    output = model(normalise(inputs, mean, std))
    logits = resize_bilinear(
        output.logits.astype(jnp.float32), size, align_corners=False
    )
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
