"""Batch normalization over channels, in training."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from encnet_jax.ops.dispatch import check_impl
from encnet_jax.ops.resize import AnyArray

_Result = tuple[
    Float[Array, "*pixels c"],
    Float[Array, " c"],
    Float[Array, " c"],
]

_Arrays = tuple[jax.Array, ...]


def batch_norm(
    x: Float[Array, "*pixels c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    shift: Float[Array, " c"],
    *,
    epsilon: float,
    dtype: DTypeLike,
    impl: str = "auto",
) -> _Result:
    """Normalizes x by the mean and the variance of its pixels; arithmetic is float32.

    The variance is taken in one pass over x - shift: nothing cancels as long as the
    shift is near the mean, however large that is against the deviation.

    Args:
        x: Features.
        scale: Multiplies the normalized features.
        bias: Is added to them.
        shift: Near the means, such as the running mean; no gradient passes.
        epsilon: Is added to the variance.
        dtype: Of the result.
        impl: `"autodiff"`: gradients as JAX derives them. `"fused_grad"`: both sums
            over the pixels that the gradients need in one reduction, so that features
            and cotangents, which on accelerators cost the time that memory takes, are
            read once for them. `"auto"`: `"fused_grad"` for results of 16 bits.

    Returns:
        The result, the mean and the biased variance. Gradients are those of the result:
        mean and variance have none of their own.
    """
    if impl == "auto":
        impl = "autodiff" if jnp.dtype(dtype).itemsize > 2 else "fused_grad"
    check_impl(impl, _IMPLS)
    y, mean, var = _IMPLS[impl](x, scale, bias, shift, epsilon, dtype)
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


def normalize_features(
    x: jax.Array,
    mean: AnyArray,
    var: AnyArray,
    scale: AnyArray,
    bias: AnyArray,
    *,
    epsilon: float,
    dtype: DTypeLike,
) -> jax.Array:
    """Returns (x - mean) / sqrt(var + epsilon) * scale + bias, by float32."""
    factor = jax.lax.rsqrt(var + epsilon) * scale  # type: ignore[arg-type]
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(dtype)


def _autodiff(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    epsilon: float,
    dtype: DTypeLike,
) -> _Arrays:
    pixels = tuple(range(x.ndim - 1))
    shifted = x.astype(jnp.float32) - shift
    offset = shifted.mean(pixels)
    var = jnp.square(shifted).mean(pixels) - jnp.square(offset)
    mean, var = shift + offset, jnp.maximum(var, 0.0)
    options: dict[str, Any] = dict(epsilon=epsilon, dtype=dtype)
    return normalize_features(x, mean, var, scale, bias, **options), mean, var


_fused_grad = partial(jax.custom_vjp, nondiff_argnums=(4, 5))(_autodiff)


def _fused_grad_forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    epsilon: float,
    dtype: DTypeLike,
) -> tuple[_Arrays, _Arrays]:
    y, mean, var = _autodiff(x, scale, bias, shift, epsilon, dtype)
    return (y, mean, var), (x, scale, mean, jax.lax.rsqrt(var + epsilon))


def _fused_grad_backward(
    epsilon: float, dtype: DTypeLike, residuals: _Arrays, cotangents: _Arrays
) -> _Arrays:
    x, scale, mean, inverse_std = residuals
    cotangent = cotangents[0].astype(jnp.float32)
    centered = x.astype(jnp.float32) - mean
    count = x.size // x.shape[-1]
    zero = jnp.zeros((), jnp.float32)
    # One reduction of a pair: as two, the compiler reads both arrays twice.
    bias_grad, product = jax.lax.reduce(
        (cotangent, cotangent * centered), (zero, zero), _add, range(x.ndim - 1)
    )
    scale_grad = product * inverse_std
    x_grad = (inverse_std * scale) * (
        cotangent - bias_grad / count - centered * (inverse_std * scale_grad / count)
    )
    return x_grad.astype(x.dtype), scale_grad, bias_grad, jnp.zeros_like(mean)


def _add(one: _Arrays, other: _Arrays) -> _Arrays:
    return one[0] + other[0], one[1] + other[1]


_fused_grad.defvjp(_fused_grad_forward, _fused_grad_backward)

_IMPLS: dict[str, Any] = {"autodiff": _autodiff, "fused_grad": _fused_grad}
