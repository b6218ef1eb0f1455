"""Batch normalization over channels, in training."""

from collections.abc import Callable
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
        impl: `"autodiff"`: gradients as JAX derives them. `"fused_grad"`: one reduction
            for both sums over the pixels that the gradients need, so that features and
            cotangents are read only once; on accelerators, reading them is what takes
            the time. `"sharded_grad"`: the same gradients from two sums, for features
            that are spread over devices: two sums share one all-reduce, whereas a
            reduction of pairs gathers one partial result of each device twice.
            `"auto"`: for results of 16 bits `"fused_grad"` where JAX sees one device
            and `"sharded_grad"` where it sees several, otherwise `"autodiff"`.

    Returns:
        The result, the mean and the biased variance. Gradients are those of the result:
        mean and variance have none of their own.
    """
    if impl == "auto":
        impl = _auto_impl(dtype)
    check_impl(impl, _IMPLS)
    y, mean, var = _IMPLS[impl](x, scale, bias, shift, epsilon, dtype)
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


def _auto_impl(dtype: DTypeLike) -> str:
    if jnp.dtype(dtype).itemsize > 2:
        return "autodiff"
    return "fused_grad" if jax.device_count() == 1 else "sharded_grad"


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


def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    epsilon: float,
    dtype: DTypeLike,
) -> tuple[_Arrays, _Arrays]:
    y, mean, var = _autodiff(x, scale, bias, shift, epsilon, dtype)
    return (y, mean, var), (x, scale, mean, jax.lax.rsqrt(var + epsilon))


def _backward(
    add_up: Callable[[jax.Array, jax.Array], _Arrays],
    epsilon: float,
    dtype: DTypeLike,
    residuals: _Arrays,
    cotangents: _Arrays,
) -> _Arrays:
    x, scale, mean, inverse_std = residuals
    cotangent = cotangents[0].astype(jnp.float32)
    centered = x.astype(jnp.float32) - mean
    count = x.size // x.shape[-1]
    bias_grad, product = add_up(cotangent, cotangent * centered)
    scale_grad = product * inverse_std
    x_grad = (inverse_std * scale) * (
        cotangent - bias_grad / count - centered * (inverse_std * scale_grad / count)
    )
    return x_grad.astype(x.dtype), scale_grad, bias_grad, jnp.zeros_like(mean)


def _sums_of_pairs(one: jax.Array, other: jax.Array) -> _Arrays:
    # One reduction: as two, the compiler reads both arrays twice.
    zero = jnp.zeros((), jnp.float32)
    return jax.lax.reduce((one, other), (zero, zero), _add, range(one.ndim - 1))


def _add(one: _Arrays, other: _Arrays) -> _Arrays:
    return one[0] + other[0], one[1] + other[1]


def _two_sums(one: jax.Array, other: jax.Array) -> _Arrays:
    pixels = tuple(range(one.ndim - 1))
    return one.sum(pixels), other.sum(pixels)


def _with_gradient(add_up: Callable[[jax.Array, jax.Array], _Arrays]) -> Any:
    """Returns the normalization whose `_backward` takes its two sums by `add_up`."""
    function = jax.custom_vjp(_autodiff, nondiff_argnums=(4, 5))
    function.defvjp(_forward, partial(_backward, add_up))
    return function


_IMPLS: dict[str, Any] = {
    "autodiff": _autodiff,
    "fused_grad": _with_gradient(_sums_of_pairs),
    "sharded_grad": _with_gradient(_two_sums),
}
