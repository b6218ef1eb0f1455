"""Cross-entropy of logits that are resized to the labels, without their full size.

The resized logits, (b, H, W, n), are the largest array of a training with 150 classes.
No implementation holds them in float32: `"scan"` takes a few rows at a time, and
`"one_pass"` interpolates inside the reductions and writes the gradient once, in the
dtype of the logits.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from encnet_jax.ops import cross_entropy_one_pass as one_pass
from encnet_jax.ops import cross_entropy_scan as scan
from encnet_jax.ops.dispatch import dispatch
from encnet_jax.ops.pixel_labels import check_pixels, has_class


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def resized_cross_entropy_sum(
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
    weights: Float[Array, "b H W"],
    align_corners: bool = True,
    impl: str = "auto",
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Returns the sum of weights times cross-entropy, float32.

    The gradient with respect to the logits is computed together with the sum. The
    weights get no gradient.

    Args:
        logits: Resized bilinearly to the labels.
        labels: 0 to n - 1, or any other number for a pixel that costs 0.
        weights: float32, of the shape of the labels.
        align_corners: See `resize_bilinear`.
        impl: `"scan"`: products in float32, a few rows at a time, for CPU and TPU.
            `"one_pass"`: for GPU; see `cross_entropy_one_pass`. `"auto"`: the fastest
            of the platform lowered for.
        label_smoothing: Share of the target that is spread evenly over all classes
            (Szegedy et al. 2016).

    Raises:
        ValueError: An unknown `impl`, or shapes that do not fit each other.
    """
    options = (align_corners, impl, label_smoothing)
    return _sum_forward(logits, labels, weights, *options)[0]


def _sum_forward(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    align_corners: bool,
    impl: str,
    label_smoothing: float,
) -> tuple[jax.Array, jax.Array]:
    check_pixels(logits, labels)
    if weights.shape != labels.shape:
        raise ValueError(
            f"weights of {weights.shape}: must be those of the labels, {labels.shape}"
        )
    weights = jnp.where(has_class(labels, logits.shape[-1]), weights, 0)
    options, arrays = (align_corners, label_smoothing), (logits, labels, weights)
    return _dispatch(impl, "total_and_gradient", options, *arrays)


def _sum_backward(
    align_corners: bool,
    impl: str,
    label_smoothing: float,
    gradient: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, None, None]:
    del align_corners, impl, label_smoothing  # `gradient` follows them already
    return (cotangent * gradient).astype(gradient.dtype), None, None


resized_cross_entropy_sum.defvjp(_sum_forward, _sum_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def resized_cross_entropy(
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
    align_corners: bool = True,
    impl: str = "auto",
    label_smoothing: float = 0.0,
) -> Float[Array, "b H W"]:
    """Returns the cross-entropy of every pixel, float32.

    Use it where the costs decide which of them count, or how much. Where only their sum
    matters, `resized_cross_entropy_sum` is faster on CPU.

    Args:
        logits: Resized bilinearly to the labels.
        labels: 0 to n - 1, or any other number for a pixel that costs 0.
        align_corners: See `resize_bilinear`.
        impl: See `resized_cross_entropy_sum`.
        label_smoothing: See `resized_cross_entropy_sum`.

    Raises:
        ValueError: An unknown `impl`, or shapes that do not fit each other.
    """
    return _costs_forward(logits, labels, align_corners, impl, label_smoothing)[0]


def _costs_forward(
    logits: jax.Array,
    labels: jax.Array,
    align_corners: bool,
    impl: str,
    label_smoothing: float,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    check_pixels(logits, labels)
    options = (align_corners, label_smoothing)
    logsumexp, label_logit = _dispatch(
        impl, "logsumexp_and_label_logit", options, logits, labels
    )
    known = has_class(labels, logits.shape[-1])
    return jnp.where(known, logsumexp - label_logit, 0), (logits, labels, logsumexp)


def _costs_backward(
    align_corners: bool,
    impl: str,
    label_smoothing: float,
    residuals: tuple[jax.Array, ...],
    cotangent: jax.Array,
) -> tuple[jax.Array, None]:
    logits, labels, logsumexp = residuals
    weights = jnp.where(has_class(labels, logits.shape[-1]), cotangent, 0)
    options = (align_corners, label_smoothing)
    arrays = (logits, labels, logsumexp, weights)
    return _dispatch(impl, "gradient", options, *arrays), None


resized_cross_entropy.defvjp(_costs_forward, _costs_backward)


def resized_logsumexp(
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
    align_corners: bool = True,
) -> Float[Array, "b H W"]:
    """Returns logsumexp of the logits of every pixel, float32; no gradient.

    Args:
        logits: Resized bilinearly to the labels.
        labels: Of any values.
        align_corners: See `resize_bilinear`.

    Raises:
        ValueError: Shapes that do not fit each other.
    """
    check_pixels(logits, labels)
    if logits.shape[1:3] == labels.shape[1:3]:
        return jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    options, arrays = (align_corners, 0.0), (logits, labels)
    return _dispatch("auto", "logsumexp_and_label_logit", options, *arrays)[0]


def _dispatch(
    impl: str, function: str, options: tuple[bool, float], *arrays: jax.Array
) -> Any:
    """Calls a function of the implementation asked for, or of the platform's."""
    impls = {
        name: partial(getattr(module, function), *options)
        for name, module in (("scan", scan), ("one_pass", one_pass))
    }
    return dispatch("resized_cross_entropy", impls, impl, *arrays)
