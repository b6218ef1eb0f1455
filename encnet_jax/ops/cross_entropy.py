"""Cross-entropy of logits that are resized to the labels, without their full size.

The resized logits, (b, H, W, n), are the largest array of a training with 150 classes.
No form holds them in float32: `"scan"` takes a few rows at a time, and `"one_pass"`
interpolates inside the reductions and writes the gradient once, in the dtype of the
logits.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from encnet_jax.ops import cross_entropy_one_pass as one_pass
from encnet_jax.ops import cross_entropy_scan as scan


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def resized_cross_entropy_sum(
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
    weights: Float[Array, "b H W"],
    align_corners: bool = True,
    impl: str = "auto",
) -> Float[Array, ""]:
    """Returns the sum of weights times cross-entropy, float32.

    The gradient by the logits is computed in one go with the sum. There is none by the
    weights.

    Args:
        logits: Resized bilinearly to the labels.
        labels: 0 to n - 1, or any other number where the weight is 0.
        weights: float32.
        align_corners: See `resize_bilinear`.
        impl: `"scan"`: products in float32, a few rows at a time, for CPU and TPU.
            `"one_pass"`: for GPU; see `cross_entropy_one_pass`. `"auto"`: that of the
            platform that the function is lowered for.

    Raises:
        ValueError: An unknown `impl`.
    """
    return _sum_forward(logits, labels, weights, align_corners, impl)[0]


def _sum_forward(logits, labels, weights, align_corners, impl):
    forms = {"scan": scan.total_and_gradient, "one_pass": one_pass.total_and_gradient}
    return _apply(forms, impl, align_corners, logits, labels, weights)


def _sum_backward(align_corners, impl, gradient, change):
    return (change * gradient).astype(gradient.dtype), None, None


resized_cross_entropy_sum.defvjp(_sum_forward, _sum_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def resized_cross_entropy(
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
    align_corners: bool = True,
    impl: str = "auto",
) -> Float[Array, "b H W"]:
    """Returns the cross-entropy of every pixel, float32.

    For costs that are chosen or weighted by what they are; where only their sum counts,
    `resized_cross_entropy_sum` is quicker on CPU.

    Args:
        logits: Resized bilinearly to the labels.
        labels: 0 to n - 1, or any other number for a pixel that costs 0.
        align_corners: See `resize_bilinear`.
        impl: As of `resized_cross_entropy_sum`.

    Raises:
        ValueError: An unknown `impl`.
    """
    return _costs_forward(logits, labels, align_corners, impl)[0]


def _costs_forward(logits, labels, align_corners, impl):
    forms = {"scan": scan.norm_and_own, "one_pass": one_pass.norm_and_own}
    norm, own = _apply(forms, impl, align_corners, logits, labels)
    costs = jnp.where(_known(logits, labels), norm - own, 0)
    return costs, (logits, labels, norm)


def _costs_backward(align_corners, impl, kept, change):
    logits, labels, norm = kept
    forms = {"scan": scan.gradient, "one_pass": one_pass.gradient}
    change = jnp.where(_known(logits, labels), change, 0)
    return _apply(forms, impl, align_corners, logits, labels, norm, change), None


resized_cross_entropy.defvjp(_costs_forward, _costs_backward)


def _known(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Which pixels have a class."""
    return (labels >= 0) & (labels < logits.shape[-1])


def _apply(
    forms: Mapping[str, Callable[..., Any]],
    impl: str,
    align_corners: bool,
    *arrays: jax.Array,
) -> Any:
    """Calls the form asked for, or the platform's."""
    if impl != "auto" and impl not in forms:
        raise ValueError(f"impl={impl!r}: allowed are 'auto', {str([*forms])[1:-1]}")
    ready = {name: partial(form, align_corners) for name, form in forms.items()}
    if impl != "auto":
        return ready[impl](*arrays)
    # TPU: not measured; the products of the scan are what its units are for.
    return jax.lax.platform_dependent(
        *arrays,
        cuda=ready["one_pass"],
        rocm=ready["one_pass"],
        default=ready["scan"],
    )
