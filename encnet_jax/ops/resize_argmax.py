"""Largest channel of resized logits, in the form that is quickest where it runs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from encnet_jax.models.resizing import interpolation_matrix
from encnet_jax.ops.taps import interpolate_grid, taps_of

Matrix = np.ndarray | jax.Array
Size = Any  # an int, or in export an expression of free sizes


def resize_argmax(
    x: Float[Array, "b h w n"],
    sizes: Sequence[tuple[Size, Size]],
    align_corners: Sequence[bool],
    impl: str = "auto",
) -> UInt8[Array, "b H W"]:
    """Resizes logits bilinearly, once or several times; returns the largest channels.

    The forms round differently, by a few units in the last place of the logits.

    Args:
        x: Logits of at most 256 channels.
        sizes: Heights and widths, one after the other. They and those of x may be
            unknown (`jax.export.symbolic_shape`).
        align_corners: For each size; see `resize_bilinear`.
        impl: `"matmul"`: two products, then the arg max of the resized array. `"scan"`:
            one channel after the other is resized and compared with the best so far; a
            third of the time on CPU, and the array, which for 150 classes is the
            largest of a prediction, is never held. `"lerp"`: columns are interpolated
            from their neighbors inside the arg max, for GPU, where the products would
            run without tensor cores and the array, again, is not written; where a size
            is unknown, as `"matmul"`. `"auto"`: the quickest of the platform that the
            function is lowered for.

    Returns:
        Labels (b, *sizes[-1]); of equal channels the first.

    Raises:
        ValueError: An unknown `impl`.
    """
    if impl != "auto" and impl not in _FORMS:
        raise ValueError(f"impl={impl!r}: allowed are 'auto', {str([*_FORMS])[1:-1]}")
    rows = _composed(x.shape[1], [size[0] for size in sizes], align_corners)
    columns = _composed(x.shape[2], [size[1] for size in sizes], align_corners)

    def form(name: str) -> Any:
        return lambda x: _FORMS[name](x, rows, columns)

    if impl != "auto":
        return form(impl)(x)
    return jax.lax.platform_dependent(
        x,
        cpu=form("scan"),
        cuda=form("lerp"),
        rocm=form("lerp"),
        default=form("matmul"),
    )


def _composed(source: Size, targets: Sequence[Size], aligned: Sequence[bool]) -> Matrix:
    """Returns the weights (targets[-1], source) of resizes one after the other."""
    weights = interpolation_matrix(source, targets[0], aligned[0])
    for before, target, align in zip(targets, targets[1:], aligned[1:]):
        step = interpolation_matrix(before, target, align)
        if isinstance(step, np.ndarray) and isinstance(weights, np.ndarray):
            weights = step @ weights
        else:
            weights = jnp.matmul(step, weights, precision="highest")
    return weights


def _product(
    equation: str, matrix: Matrix, x: Float[Array, "..."]
) -> Float[Array, "..."]:
    return jnp.einsum(equation, jnp.asarray(matrix), x, precision="highest")


def _matmul(
    x: Float[Array, "b h w n"], rows: Matrix, columns: Matrix
) -> UInt8[Array, "b H W"]:
    x = _product("oh,bhwc->bowc", rows, x.astype(jnp.float32))
    return _product("ow,bhwc->bhoc", columns, x).argmax(-1).astype(jnp.uint8)


def _scan(
    x: Float[Array, "b h w n"], rows: Matrix, columns: Matrix
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
    x: Float[Array, "b h w n"], rows: Matrix, columns: Matrix
) -> UInt8[Array, "b H W"]:
    if not (isinstance(rows, np.ndarray) and isinstance(columns, np.ndarray)):
        return _matmul(x, rows, columns)  # who is a neighbor is not known yet
    resized = interpolate_grid(x, taps_of(rows), taps_of(columns))
    return resized.argmax(-1).astype(jnp.uint8)


_FORMS = {"matmul": _matmul, "scan": _scan, "lerp": _lerp}
