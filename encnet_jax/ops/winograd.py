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

from encnet_jax.ops.chunks import (
    BACKWARD_CHUNK_ELEMENTS,
    FORWARD_CHUNK_ELEMENTS,
    chunk_size,
    split_chunks,
)

# For each tile m, where the polynomials of Toom and Cook's construction are evaluated,
# beside infinity. With those of 2 all factors are 1 or 1/2, and rounding is as in the
# direct impl. On CPU, tiles of 4 were slower than of 3: 36 kernels to read, not 25.
_POINTS = {2: (0.0, 1.0, -1.0), 3: (0.0, 1.0, -1.0, 0.5)}
# Sums of a kernel take longer for the larger tile. Prediction has them made once;
# training makes them at every step.
PREDICTION_TILE = 3
_TRAINING_TILE = 2

_Grid = list[list[jax.Array]]
_Arguments = tuple[jax.Array, jax.Array]


class _Transforms(NamedTuple):
    """The matrices of Y = A^T [(G g G^T) * (B^T d B)] A along one axis.

    Attributes:
        B_T: (n, n), transforms an input tile d with its border, n pixels long.
        G: (n, 3), transforms a kernel g.
        A_T: (tile, n), transforms the elementwise products into outputs.
    """

    B_T: np.ndarray
    G: np.ndarray
    A_T: np.ndarray


@functools.cache
def _transforms(tile: int) -> _Transforms:
    points = np.array(_POINTS[tile])
    powers = points[:, None] ** np.arange(len(points) + 1)
    others = [np.delete(points, place) for place in range(len(points))]
    scales = [np.prod(point - rest) for point, rest in zip(points, others)]
    polynomials = [np.r_[np.poly(rest)[::-1], 0] for rest in others]
    return _Transforms(
        B_T=np.stack([*polynomials, np.poly(points)[::-1]]),
        G=np.r_[powers[:, :3] / np.c_[scales], [[0, 0, 1]]],
        A_T=np.c_[powers[:, :tile].T, np.eye(tile)[-1]],
    )


def transform_kernel(kernel: jax.Array, tile: int) -> jax.Array:
    """Returns the sums (n, n, in, out), n = tile + 2, of a kernel (3, 3, in, out).

    Also of NumPy's arrays, by NumPy.
    """
    factors = _transforms(tile).G.astype(kernel.dtype)
    size, features = len(factors), kernel.shape[2:]
    rows = (factors @ kernel.reshape(3, -1)).reshape(size, 3, -1)
    return (factors @ rows).reshape(size, size, *features)


def winograd(x: jax.Array, kernel: jax.Array | _Grid) -> jax.Array:
    """3x3 convolution of (b, h, w, in), padded by 1, from the sums of its kernel.

    Args:
        x: Features.
        kernel: Its sums, (n, n, in, out) or n lists of n (in, out), for tiles of n - 2.

    Returns:
        (b, h, w, out). In float32 the rounding error of one convolution is up to twice
        that of the direct impl with tiles of 2, and up to 7 times with tiles of 3.
    """
    b, h, w, _ = x.shape
    tile = len(kernel) - 2
    products = [
        [pixels @ weights for pixels, weights in zip(*lines)]
        for lines in zip(transform_input(x, tile), kernel)
    ]
    results = _transform_grid(_transforms(tile).A_T, products)
    y = jnp.stack([jnp.stack(line, axis=1) for line in results], axis=1)
    rows, columns = -(-h // tile), -(-w // tile)
    y = y.reshape(b, rows, columns, tile, tile, -1).swapaxes(2, 3)
    return y.reshape(b, tile * rows, tile * columns, -1)[:, :h, :w]


@jax.custom_vjp
def winograd_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `winograd`, of a kernel (3, 3, in, out), with gradients as quick as itself.

    Some images pass at a time: their sums, four times the images, stay in the cache.
    Derived by the compiler, the gradients would add up tiles that overlap.
    """
    sums = _transform_kernel_taps(kernel)
    blocks = split_chunks(x, chunk_size(x, kernel, FORWARD_CHUNK_ELEMENTS))
    y = jax.lax.map(lambda images: winograd(images, sums), blocks)
    return y.reshape(*x.shape[:3], -1)


def _winograd_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, _Arguments]:
    return winograd_conv(x, kernel), (x, kernel)


def _winograd_gradients(arguments: _Arguments, cotangent: jax.Array) -> _Arguments:
    """Returns the gradients of both arguments.

    That of x is a convolution with the kernel turned around; that of the kernel's sums,
    for each of the products, a product over all tiles.
    """
    x, kernel = arguments
    turned = _transform_kernel_taps(kernel[::-1, ::-1].swapaxes(2, 3))

    def step(total: _Grid, blocks: _Arguments) -> tuple[_Grid, jax.Array]:
        images, cotangents = blocks
        pairs = zip(
            transform_input(images, _TRAINING_TILE),
            transform_output_grad(cotangents, _TRAINING_TILE),
        )
        products = [[a.T @ b for a, b in zip(*lines)] for lines in pairs]
        return jax.tree.map(jnp.add, total, products), winograd(cotangents, turned)

    size = chunk_size(x, kernel, BACKWARD_CHUNK_ELEMENTS)
    blocks = (split_chunks(x, size), split_chunks(cotangent, size))
    zeros = jax.tree.map(jnp.zeros_like, _transform_kernel_taps(kernel))
    total, of_x = jax.lax.scan(step, zeros, blocks)
    of_kernel = _transform_grid(_transforms(_TRAINING_TILE).G.T, total)
    return of_x.reshape(x.shape), jnp.stack([jnp.stack(line) for line in of_kernel])


winograd_conv.defvjp(_winograd_forward, _winograd_gradients)


def _transform_kernel_taps(kernel: jax.Array) -> _Grid:
    """As `transform_kernel`, one by one: compiled, that takes half of the time."""
    grid = [[kernel[i, j] for j in range(3)] for i in range(3)]
    return _transform_grid(_transforms(_TRAINING_TILE).G, grid)


def transform_input(x: jax.Array, tile: int) -> _Grid:
    """Returns for each of the products the sums (b tiles, c) of pixels."""
    _, h, w, c = x.shape
    padding = ((1, 1 + -h % tile), (1, 1 + -w % tile))
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    factors = _transforms(tile).B_T
    return [
        [
            sums.reshape(-1, c)
            for sums in _transform_lines(
                factors, _strided_lines(line, 2, tile, tile + 2)
            )
        ]
        for line in _transform_lines(factors, _strided_lines(x, 1, tile, tile + 2))
    ]


def transform_output_grad(cotangent: jax.Array, tile: int) -> _Grid:
    """Returns what the cotangent (b, h, w, c) of the results is for each product."""
    _, h, w, c = cotangent.shape
    cotangent = jnp.pad(cotangent, ((0, 0), (0, -h % tile), (0, -w % tile), (0, 0)))
    grid = [
        [line.reshape(-1, c) for line in _strided_lines(rows, 2, tile, tile)]
        for rows in _strided_lines(cotangent, 1, tile, tile)
    ]
    return _transform_grid(_transforms(tile).A_T.T, grid)


def _strided_lines(x: jax.Array, axis: int, tile: int, count: int) -> list[jax.Array]:
    """Returns every `tile`-th line from the first on, from the second on, ..."""
    last = x.shape[axis] - count + 1
    return [jax.lax.slice_in_dim(x, i, i + last, tile, axis) for i in range(count)]


def _transform_grid(factors: np.ndarray, grid: _Grid) -> _Grid:
    """Returns the sums of a grid's columns by all rows of factors, then of its rows."""
    columns = [_transform_lines(factors, column) for column in zip(*grid)]
    return [_transform_lines(factors, line) for line in zip(*columns)]


def _transform_lines(
    factors: np.ndarray, arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    """Returns the sums of arrays by every row of factors."""
    return [_weighted_sum(row, arrays) for row in factors.tolist()]


def _weighted_sum(factors: Sequence[float], arrays: Sequence[jax.Array]) -> jax.Array:
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
