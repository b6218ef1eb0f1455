"""Linear interpolation by the few neighbors that have a weight, without a product.

A row of an interpolation matrix has two weights, or up to four where two resizes were
composed. On GPU the compiler can put the gathering of these few inside the reduction
that follows, so that the resized array is never written. It cannot do so with a product
of float32 at full precision, and tensor cores take no part in such a product either.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Taps(NamedTuple):
    """The neighbors that each target position is the weighted sum of.

    Attributes:
        indices: int32 (k, target), source positions, of a target ascending.
        weights: float32 (k, target); 0 where a target has fewer than k neighbors.
    """

    indices: np.ndarray
    weights: np.ndarray


def taps_of(matrix: np.ndarray) -> Taps:
    """Returns the taps of interpolation weights (target, source)."""
    used = matrix != 0
    count = int(used.sum(1).max())
    # Not one window of neighbors: those of two resizes can lie apart.
    indices = np.argsort(~used, axis=1, kind="stable")[:, :count]
    weights = np.take_along_axis(matrix, indices, axis=1)
    # What has no weight reads what is read anyway.
    indices = np.where(weights != 0, indices, indices[:, :1])
    return Taps(indices.T.astype(np.int32), weights.T.astype(np.float32))


def interpolate(x: Float[Array, "..."], taps: Taps, axis: int) -> Float[Array, "..."]:
    """Returns x with one axis interpolated, float32."""
    total = None
    for indices, weights in zip(*taps):
        # Without the checks of indices that lie outside: none does.
        neighbor = x.at[(slice(None),) * axis + (indices,)].get(
            mode="promise_in_bounds"
        )
        shape = [1] * x.ndim
        shape[axis] = len(weights)
        term = neighbor.astype(jnp.float32) * weights.reshape(shape)
        total = term if total is None else total + term
    assert total is not None  # there is at least one tap
    return total


def interpolate_grid(
    x: Float[Array, "b h w n"],
    rows: Taps,
    columns: Taps,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Float[Array, "b H W n"]:
    """Returns x interpolated to a grid, float32; rows of it are kept in `dtype`.

    The rows come first because their array, (b, H, w, n), is small enough to be written
    and is read from caches; the columns are for the compiler to put where they are
    used.
    """
    return interpolate(interpolate(x, rows, 1).astype(dtype), columns, 2)
