"""3x3 convolution by fewer multiplications: Winograd's F(m x m, 3 x 3).

Y = A^T [(G g G^T) * (B^T d B)] A (Winograd 1980; Lavin and Gray 2016, section 4.1): an
input tile d of (m + 2)^2 pixels gives m^2 outputs by (m + 2)^2 multiplications a
channel, not 9 m^2, between transforms of tiles and of the kernel g. Over channels and
tiles, each of the (m + 2)^2 elements is a matrix product. Features are (b, h, w, c).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encnet_jax.ops.chunks import (
    BACKWARD_CHUNK_ELEMENTS,
    FORWARD_CHUNK_ELEMENTS,
    chunk_size,
    split_chunks,
)

# For each m, where the polynomials of Toom and Cook's construction are evaluated,
# beside infinity. With those of 2 all coefficients are 1 or 1/2, and rounding is as in
# a direct convolution. On CPU, tiles of 4 were slower than of 3: 36 transformed kernels
# to read, not 25.
_POINTS = {2: (0.0, 1.0, -1.0), 3: (0.0, 1.0, -1.0, 0.5)}
# The larger tile takes longer to transform a kernel for. Prediction has that done once;
# training does it at every step.
PREDICTION_TILE = 3
_TRAINING_TILE = 2

# n lists of n arrays: one for each element of a transformed tile.
_Grid = list[list[jax.Array]]
_Arguments = tuple[jax.Array, jax.Array]
_AnyArray = TypeVar("_AnyArray", jax.Array, np.ndarray)
# Each traces hundreds of operations, and a network has few shapes: later convolutions
# of a shape reuse the operations of the first.
_traced_once = functools.partial(jax.jit, inline=True)


class _Transforms(NamedTuple):
    """The three matrices, for n = m + 2.

    Attributes:
        B_T: (n, n), transforms input tiles, with a border of one pixel.
        G: (n, 3), transforms kernels.
        A_T: (m, n), transforms the products into outputs.
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


def transform_kernel(kernel: _AnyArray, tile: int) -> _AnyArray:
    """Returns G g G^T of a kernel (3, 3, in, out): (n, n, in, out), n = tile + 2.

    NumPy in, NumPy out.
    """
    G = _transforms(tile).G.astype(kernel.dtype)
    n, features = len(G), kernel.shape[2:]
    rows = (G @ kernel.reshape(3, -1)).reshape(n, 3, -1)
    return (G @ rows).reshape(n, n, *features)


@_traced_once
def winograd_transformed(
    x: Float[Array, "b h w in"],
    transformed: Float[jax.Array | np.ndarray, "n n in out"] | _Grid,
) -> Float[Array, "b h w out"]:
    """3x3 convolution, padded by 1, by a kernel that is transformed already.

    In float32 the rounding error of one convolution is up to twice that of a direct one
    with tiles of 2, and up to 7 times with tiles of 3.

    Args:
        x: Features.
        transformed: Of `transform_kernel`, as an array or as n lists of n (in, out).
    """
    b, h, w, _ = x.shape
    tile = len(transformed) - 2
    products = [
        [d @ g for d, g in zip(*lines)]
        for lines in zip(transform_input(x, tile), transformed)
    ]
    outputs = _transform_grid(_transforms(tile).A_T, products)
    y = jnp.stack([jnp.stack(line, axis=1) for line in outputs], axis=1)
    rows, columns = -(-h // tile), -(-w // tile)
    y = y.reshape(b, rows, columns, tile, tile, -1).swapaxes(2, 3)
    return y.reshape(b, tile * rows, tile * columns, -1)[:, :h, :w]


@jax.custom_vjp
@_traced_once
def winograd_conv(
    x: Float[Array, "b h w in"], kernel: Float[Array, "3 3 in out"]
) -> Float[Array, "b h w out"]:
    """3x3 convolution, padded by 1, with gradients as fast as itself.

    It works in chunks of images, so that their transforms, four times the images, stay
    in the cache. Automatic differentiation would add up overlapping tiles instead.
    """
    transformed = _transform_kernel_taps(kernel)
    chunks = split_chunks(x, chunk_size(x, kernel, FORWARD_CHUNK_ELEMENTS))
    y = jax.lax.map(lambda images: winograd_transformed(images, transformed), chunks)
    return y.reshape(*x.shape[:3], -1)


def _winograd_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, _Arguments]:
    return winograd_conv(x, kernel), (x, kernel)


@_traced_once
def _winograd_backward(arguments: _Arguments, cotangent: jax.Array) -> _Arguments:
    """Returns the gradients of both arguments.

    That of x is a convolution with the kernel turned around; that of the kernel is
    G^T [sum over tiles of (B^T d B) * (A dy A^T)] G.
    """
    x, kernel = arguments
    turned = _transform_kernel_taps(kernel[::-1, ::-1].swapaxes(2, 3))

    def step(total: _Grid, chunks: _Arguments) -> tuple[_Grid, jax.Array]:
        images, cotangents = chunks
        pairs = zip(
            transform_input(images, _TRAINING_TILE),
            transform_output_grad(cotangents, _TRAINING_TILE),
        )
        products = [[d.T @ dy for d, dy in zip(*lines)] for lines in pairs]
        total = jax.tree.map(jnp.add, total, products)
        return total, winograd_transformed(cotangents, turned)

    size = chunk_size(x, kernel, BACKWARD_CHUNK_ELEMENTS)
    chunks = (split_chunks(x, size), split_chunks(cotangent, size))
    zeros = jax.tree.map(jnp.zeros_like, _transform_kernel_taps(kernel))
    total, x_grad = jax.lax.scan(step, zeros, chunks)
    taps = _transform_grid(_transforms(_TRAINING_TILE).G.T, total)
    kernel_grad = jnp.stack([jnp.stack(line) for line in taps])
    return x_grad.reshape(x.shape), kernel_grad


winograd_conv.defvjp(_winograd_forward, _winograd_backward)


def _transform_kernel_taps(kernel: jax.Array) -> _Grid:
    """As `transform_kernel`, tap by tap: compiled, that takes half of the time."""
    grid = [[kernel[i, j] for j in range(3)] for i in range(3)]
    return _transform_grid(_transforms(_TRAINING_TILE).G, grid)


def transform_input(x: Float[Array, "b h w c"], tile: int) -> _Grid:
    """Returns B^T d B of all tiles, padded by 1: each element (b tiles, c)."""
    _, h, w, c = x.shape
    padding = ((1, 1 + -h % tile), (1, 1 + -w % tile))
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    B_T = _transforms(tile).B_T
    rows = _transform_lines(B_T, _strided_lines(x, 1, tile, tile + 2))
    grid = [_transform_lines(B_T, _strided_lines(r, 2, tile, tile + 2)) for r in rows]
    return [[element.reshape(-1, c) for element in line] for line in grid]


def transform_output_grad(cotangent: Float[Array, "b h w c"], tile: int) -> _Grid:
    """Returns A dy A^T of all tiles of the cotangent: each element (b tiles, c)."""
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


def _transform_grid(matrix: np.ndarray, grid: _Grid) -> _Grid:
    """Returns M X M^T of a grid X of arrays."""
    columns = [_transform_lines(matrix, column) for column in zip(*grid)]
    return [_transform_lines(matrix, line) for line in zip(*columns)]


def _transform_lines(
    matrix: np.ndarray, arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    """Returns M x of a vector x of arrays."""
    return [_weighted_sum(row, arrays) for row in matrix.tolist()]


def _weighted_sum(weights: Sequence[float], arrays: Sequence[jax.Array]) -> jax.Array:
    total = None
    for weight, array in zip(weights, arrays):
        if weight == 0:
            continue
        part = array if abs(weight) == 1 else array * abs(weight)
        if total is None:
            total = part if weight > 0 else -part
        else:
            total = total + part if weight > 0 else total - part
    assert total is not None  # no row is all zeros
    return total
