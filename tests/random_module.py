"""Modules initialized by NumPy, as initializing them by JAX outlasts the tests."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def random_module(
    create: Callable[..., nnx.Module], *args, seed: int = 0, **settings
) -> nnx.Module:
    """Returns `create(*args, **settings)` in training mode with random weights.

    Kernels preserve the variance of their input, codewords are standard normal; biases
    and running statistics are those of a newly initialized module.
    """
    build = functools.partial(create, *args, **settings)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        keys = [str(key.key) for key in path if hasattr(key, "key")]
        if keys[-1] == "kernel":
            std = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            values = rng.normal(0, std, leaf.shape)
        elif keys[-1] == "codewords":
            values = rng.normal(0, 1, leaf.shape)
        elif keys[-1] == "scale" and keys[-2:-1] in ([], ["encoding"]):
            values = rng.uniform(-1, 0, leaf.shape)  # of an encoding layer
        else:
            values = np.full(leaf.shape, float(keys[-1] in ("scale", "var")))
        return jnp.asarray(values, leaf.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(value, state))
