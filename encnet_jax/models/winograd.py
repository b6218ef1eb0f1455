"""3x3 convolution with fewer products: Winograd's F(m x m, 3 x 3).

Tiles of (m + 2)^2 pixels give m^2 results by (m + 2)^2 products a channel, not 9 m^2,
between sums of pixels and sums of kernel weights (Winograd 1980; Lavin and Gray 2016,
section 4.1). Feature maps are (b, h, w, c).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# For each tile m, where the polynomials of Toom and Cook's construction are evaluated,
# beside infinity. With those of 2 all factors are 1 or 1/2, and rounding is as in the
# direct form. On CPU, tiles of 4 were slower than of 3: 36 kernels to read, not 25.
_POINTS = {2: (0.0, 1.0, -1.0), 3: (0.0, 1.0, -1.0, 0.5)}


class _Factors(NamedTuple):
    """Factors of the sums along one axis; n is the tile with its border.

    Attributes:
        pixels: (n, n), of the pixels of a tile.
        weights: (n, 3), of the weights of a kernel.
        products: (tile, n), of the products that make results.
    """

    pixels: np.ndarray
    weights: np.ndarray
    products: np.ndarray


@functools.cache
def _factors(tile: int) -> _Factors:
    points = np.array(_POINTS[tile])
    size = len(points) + 1
    powers = points[:, None] ** np.arange(size)
    others = [np.delete(points, place) for place in range(len(points))]
    scales = [np.prod(point - rest) for point, rest in zip(points, others)]
    polynomials = [np.r_[np.poly(rest)[::-1], 0] for rest in others]
    return _Factors(
        pixels=np.stack([*polynomials, np.poly(points)[::-1]]),
        weights=np.r_[powers[:, :3] / np.c_[scales], [[0, 0, 1]]],
        products=np.c_[powers[:, :tile].T, np.eye(tile)[-1]],
    )


def summed_kernel(kernel: jax.Array, tile: int) -> jax.Array:
    """Returns the sums (n, n, in, out), n = tile + 2, of a kernel (3, 3, in, out).

    Also of NumPy's arrays, by NumPy.
    """
    factors = _factors(tile).weights.astype(kernel.dtype)
    size, features = len(factors), kernel.shape[2:]
    rows = (factors @ kernel.reshape(3, -1)).reshape(size, 3, -1)
    return (factors @ rows).reshape(size, size, *features)


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution of (b, h, w, in), padded by 1, from the sums of its kernel.

    Args:
        x: Features.
        kernel: See `summed_kernel`, which tells the tile.

    Returns:
        (b, h, w, out). In float32 the rounding error of one convolution is up to twice
        that of the direct form with tiles of 2, and up to 7 times with tiles of 3.
    """
    b, h, w, c = x.shape
    size = len(kernel)
    tile = size - 2
    factors = _factors(tile)
    rows, columns = -(-h // tile), -(-w // tile)
    padding = ((1, 1 + -h % tile), (1, 1 + -w % tile))
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    pixels = [
        _sums(factors.pixels, _shifted(line, 2, tile))
        for line in _sums(factors.pixels, _shifted(x, 1, tile))
    ]
    products = [
        [pixels[i][j].reshape(-1, c) @ kernel[i, j] for j in range(size)]
        for i in range(size)
    ]
    lines = [_sums(factors.products, line) for line in products]
    results = [_sums(factors.products, column) for column in zip(*lines)]
    y = jnp.stack([jnp.stack(column, axis=1) for column in results], axis=2)
    y = y.reshape(b, rows, columns, tile, tile, -1).swapaxes(2, 3)
    return y.reshape(b, tile * rows, tile * columns, -1)[:, :h, :w]


def _shifted(x: jax.Array, axis: int, tile: int) -> list[jax.Array]:
    """The first, second, ... pixels of all tiles with their borders, along an axis."""
    last = x.shape[axis] - 1 - tile  # behind the start of the last tile
    return [jax.lax.slice_in_dim(x, i, i + last, tile, axis) for i in range(tile + 2)]


def _sums(factors: np.ndarray, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the sums of arrays by every row of factors."""
    return [_sum(row, arrays) for row in factors.tolist()]


def _sum(factors: Sequence[float], arrays: Sequence[jax.Array]) -> jax.Array:
    total = None
    for factor, array in zip(factors, arrays):
        if factor == 0:
            continue
        part = array if abs(factor) == 1 else array * abs(factor)
        if total is None:
            total = part if factor > 0 else -part
        else:
            total = total + part if factor > 0 else total - part
    assert total is not None  # no row is all zeros
    return total
