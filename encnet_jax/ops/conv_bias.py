"""The bias of a convolution, added so that the compiler can fuse the two on GPU.

cuDNN computes a convolution, its bias, a sum and a ReLU in one call, and XLA makes that
call where the bias is added in the dtype of the result. Between two casts it does not.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from encnet_jax.ops.dispatch import dispatch
from encnet_jax.ops.resize import AnyArray


def add_bias(
    y: Float[Array, "*pixels c"],
    bias: Float[AnyArray, " c"],
    dtype: DTypeLike,
    impl: str = "auto",
) -> Float[Array, "*pixels c"]:
    """Adds the bias of each channel: in float32, but on GPU in the dtype asked for.

    On GPU the bias itself is rounded to that dtype too, so that convolutions need no
    elementwise kernels of their own. Its gradient is summed in float32 everywhere.

    Args:
        y: What a convolution returned.
        bias: float32.
        dtype: Of the result.
        impl: `"float32"`, `"compute_dtype"` or `"auto"`: by platform as said above.
    """
    if jnp.dtype(dtype) == jnp.float32:
        impl = "float32"  # the same everywhere
    impls = {
        "float32": lambda y, bias: _add_in_float32(y, bias, dtype),
        "compute_dtype": lambda y, bias: _add_in_its_dtype(y.astype(dtype), bias),
    }
    return dispatch("add_bias", impls, impl, y, bias)


def _add_in_float32(y: jax.Array, bias: AnyArray, dtype: DTypeLike) -> jax.Array:
    return (y.astype(jnp.float32) + bias).astype(dtype)


@jax.custom_vjp
def _add_in_its_dtype(y: jax.Array, bias: AnyArray) -> jax.Array:
    return y + bias.astype(y.dtype)


def _forward(y: jax.Array, bias: AnyArray) -> tuple[jax.Array, None]:
    return _add_in_its_dtype(y, bias), None


def _backward(_: None, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Left to JAX, the sum over the pixels would be one of the rounded dtype.
    pixels = tuple(range(cotangent.ndim - 1))
    return cotangent, cotangent.astype(jnp.float32).sum(pixels)


_add_in_its_dtype.defvjp(_forward, _backward)
