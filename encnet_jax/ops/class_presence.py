"""Which classes an image has: the target of the semantic encoding loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from encnet_jax.ops.dispatch import dispatch
from encnet_jax.ops.resize import AnyArray


def class_presence(
    labels: Integer[AnyArray, "b h w"], num_classes: int, impl: str = "auto"
) -> Float[Array, "b n"]:
    """Returns float32 (b, num_classes): 1 where the class has at least one pixel.

    Ignored labels are no class (both originals: a histogram from 0 to n - 1).

    Args:
        labels: Any integers.
        num_classes: Number of classes n.
        impl: `"compare"`: every pixel with every class. `"scatter"`: every pixel marks
            its class, 16 times faster on CPU with 150 classes. `"auto"`: that of
            the platform lowered for.

    Raises:
        ValueError: An unknown `impl`.
    """
    impls = {
        "compare": lambda labels: _compare(labels, num_classes),
        "scatter": lambda labels: _scatter(labels, num_classes),
    }
    return dispatch("class_presence", impls, impl, jnp.asarray(labels, jnp.int32))


def _compare(labels: jax.Array, num_classes: int) -> jax.Array:
    # Not over flattened pixels: for TPU that makes a slower reduction.
    found = labels[..., None] == jnp.arange(num_classes)
    return found.any((1, 2)).astype(jnp.float32)


def _scatter(labels: jax.Array, num_classes: int) -> jax.Array:
    # Negative ones would count from the end; those beyond it are dropped.
    labels = jnp.where(labels < 0, num_classes, labels)

    def mark(labels: jax.Array) -> jax.Array:
        return jnp.zeros(num_classes).at[labels.ravel()].set(1.0, mode="drop")

    return jax.vmap(mark)(labels)
