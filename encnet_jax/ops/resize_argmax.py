"""Resized logits to labels, without the resized logits where that is faster."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from encnet_jax.ops.dispatch import dispatch
from encnet_jax.ops.resize import AnyArray, Size, interpolation_matrix
from encnet_jax.ops.taps import interpolate, interpolate_grid, taps_of

MAX_CLASSES = 256  # of labels of 8 bits
# XLA has one GPU thread loop over a reduced axis shorter than a warp's 32; a longer one
# is shared out over a warp, whose shuffles take longer than these few comparisons.
_LOOP = 30


def resize_argmax(
    x: Float[Array, "b h w n"],
    sizes: Sequence[tuple[Size, Size]],
    align_corners: Sequence[bool],
    impl: str = "auto",
    covers: tuple[Size, Size] | None = None,
) -> UInt8[Array, "b H W"]:
    """Resizes logits bilinearly, once or several times; returns the largest channels.

    The implementations round differently, by a few units in the last place of a logit.

    Args:
        x: Logits of at most `MAX_CLASSES` channels.
        sizes: Heights and widths, one after the other. They and those of x may be
            unknown (`jax.export.symbolic_shape`).
        align_corners: For each size; see `resize_bilinear`.
        impl: `"matmul"`: two matrix products, then the arg max of the resized array.
            `"scan"`: one channel after the other is resized and compared with the best
            so far; a third of the time on CPU, and the array, which for 150 classes is
            the largest of a prediction, is never held. `"lerp"`: interpolates from the
            neighbors inside the arg max, for GPU, where float32 matrix products run
            without tensor cores and the array, again, is not written; where a size is
            unknown, as `"matmul"`. `"auto"`: the fastest of the platform lowered for.
        covers: Height and width that x covers, if larger than the first of `sizes`, as
            for padded images, whose padding is cut off.

    Returns:
        Labels (b, *sizes[-1]); of equal channels the first.

    Raises:
        ValueError: An unknown `impl`, or more channels than labels of 8 bits count.
    """
    if x.shape[-1] > MAX_CLASSES:
        raise ValueError(f"{x.shape[-1]} channels: allowed are up to {MAX_CLASSES}")
    rows, columns = _weights(x, sizes, align_corners, covers)
    impls = {
        name: lambda x, function=function: function(x, rows, columns)
        for name, function in _IMPLS.items()
    }
    return dispatch("resize_argmax", impls, impl, x)


def resize_logits(
    x: Float[Array, "b h w n"],
    sizes: Sequence[tuple[Size, Size]],
    align_corners: Sequence[bool],
    impl: str = "auto",
    covers: tuple[Size, Size] | None = None,
) -> Float32[Array, "b H W n"]:
    """Returns the resized logits whose largest channels `resize_argmax` returns.

    Logits of 16 bits are interpolated in float32, as they are there.

    The arguments are those of `resize_argmax`; `impl` is `"matmul"` or `"lerp"`.
    """
    rows, columns = _weights(x, sizes, align_corners, covers)
    impls = {
        "matmul": lambda x: _resized(x, rows, columns),
        "lerp": lambda x: _interpolated(x, rows, columns),
    }
    return dispatch("resize_logits", impls, impl, x)


def _weights(
    x: Float[Array, "b h w n"],
    sizes: Sequence[tuple[Size, Size]],
    align_corners: Sequence[bool],
    covers: tuple[Size, Size] | None,
) -> list[AnyArray]:
    """Returns the weights of rows and of columns; see `resize_argmax`."""
    return [
        _composed(x.shape[1 + i], [size[i] for size in sizes], align_corners, covered)
        for i, covered in enumerate(covers or sizes[0])
    ]


def _composed(
    source: Size, targets: Sequence[Size], aligned: Sequence[bool], covered: Size
) -> AnyArray:
    """Returns the weights (targets[-1], source) of resizes one after the other."""
    weights = interpolation_matrix(source, covered, aligned[0], count=targets[0])
    for before, target, align in zip(targets, targets[1:], aligned[1:]):
        if before == target:
            continue
        step = interpolation_matrix(before, target, align)
        if isinstance(step, np.ndarray) and isinstance(weights, np.ndarray):
            weights = step @ weights.astype(np.float64)
        else:
            weights = jnp.matmul(step, weights, precision="highest")
    return weights.astype(np.float32)


def _product(
    equation: str, matrix: AnyArray, x: Float[Array, "..."]
) -> Float[Array, "..."]:
    return jnp.einsum(equation, jnp.asarray(matrix), x, precision="highest")


def _resized(
    x: Float[Array, "b h w n"], rows: AnyArray, columns: AnyArray
) -> Float32[Array, "b H W n"]:
    x = _product("oh,bhwc->bowc", rows, x.astype(jnp.float32))
    return _product("ow,bhwc->bhoc", columns, x)


def _interpolated(
    x: Float[Array, "b h w n"], rows: AnyArray, columns: AnyArray
) -> Float32[Array, "b H W n"]:
    if not (isinstance(rows, np.ndarray) and isinstance(columns, np.ndarray)):
        return _resized(x, rows, columns)  # the neighbors are not known yet
    return interpolate_grid(x, taps_of(rows), taps_of(columns))


def _matmul(
    x: Float[Array, "b h w n"], rows: AnyArray, columns: AnyArray
) -> UInt8[Array, "b H W"]:
    return _resized(x, rows, columns).argmax(-1).astype(jnp.uint8)


def _scan(
    x: Float[Array, "b h w n"], rows: AnyArray, columns: AnyArray
) -> UInt8[Array, "b H W"]:
    def compare(best: tuple[jax.Array, ...], channel: jax.Array) -> Any:
        value, label, number = best
        resized = _product("ow,bhw->bho", columns, channel)
        better = resized > value
        value = jnp.where(better, resized, value)
        return (value, jnp.where(better, number, label), number + 1), None

    channels = _product("oh,bhwc->cbow", rows, x.astype(jnp.float32))
    shape = (x.shape[0], rows.shape[0], columns.shape[0])
    start = (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.uint8), jnp.uint8(0))
    return jax.lax.scan(compare, start, channels)[0][1]


def _lerp(
    x: Float[Array, "b h w n"], rows: AnyArray, columns: AnyArray
) -> UInt8[Array, "b H W"]:
    if not (isinstance(rows, np.ndarray) and isinstance(columns, np.ndarray)):
        return _matmul(x, rows, columns)  # the neighbors are not known yet
    b, h, w, n = x.shape
    groups = -(-n // _LOOP)
    size = -(-n // groups)
    # Half of the least: interpolated, it must stay finite.
    low = jnp.finfo(x.dtype).min / 2
    x = jnp.pad(x, ((0, 0),) * 3 + ((0, groups * size - n),), constant_values=low)
    # The two axes of the channels apart: a reduction over both is a loop as well.
    x = x.reshape(b, h, w, groups, size).transpose(3, 0, 1, 4, 2)
    resized = interpolate(interpolate(x, taps_of(rows), 2), taps_of(columns), 4)
    first, offset = (
        jax.lax.broadcasted_iota(jnp.int32, resized.shape, axis) for axis in (0, 3)
    )
    start = (jnp.float32(-jnp.inf), jnp.int32(0))
    operands = (resized, size * first + offset)
    return jax.lax.reduce(operands, start, _better, (0, 3))[1].astype(jnp.uint8)


def _better(
    one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns the larger of two values with its index, of equal ones the first."""
    (value, index), (other_value, other_index) = one, other
    equal = (value == other_value) & (index < other_index)
    take = (value > other_value) | equal
    return jnp.where(take, value, other_value), jnp.where(take, index, other_index)


_IMPLS = {"matmul": _matmul, "scan": _scan, "lerp": _lerp}
