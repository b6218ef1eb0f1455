"""Resizing and pooling to a grid as matrix products, for sizes known or free."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Size = Any  # an int, or in export an expression of free sizes
AnyArray = jax.Array | np.ndarray


def adaptive_average_pool(
    x: Float[AnyArray, "b h w c"], bins: int
) -> Float[Array, "b {bins} {bins} c"]:
    """Averages over a grid of cells.

    Cell i has the rows from floor(i h / bins) up to, not including,
    ceil((i + 1) h / bins), and columns alike, as in PyTorch: cells overlap where the
    size is no multiple of `bins`, and repeat pixels where it is smaller.
    """
    rows, columns = (_cells(size, bins) for size in x.shape[1:3])
    # Sums by zeros and ones, which are exact in bfloat16; then one division in float32.
    sums: dict[str, Any] = dict(precision="highest", preferred_element_type=jnp.float32)
    total = jnp.einsum("ih,bhwc->biwc", jnp.asarray(rows, x.dtype), x, **sums)
    total = jnp.einsum(
        "jw,biwc->bijc", jnp.asarray(columns, jnp.float32), total, **sums
    )
    area = rows.sum(1)[:, None] * columns.sum(1)
    return (total / area[:, :, None]).astype(x.dtype)


def _cells(size: Size, bins: int) -> AnyArray:
    """Which cell (bins, size) has which pixel; NumPy where the size is known."""
    xp = np if isinstance(size, int) else jnp
    pixel = _index(size)
    return xp.stack(
        [
            (pixel >= i * size // bins) & (pixel < ((i + 1) * size + bins - 1) // bins)
            for i in range(bins)
        ]
    )


def resize_bilinear(
    x: Float[AnyArray, "b h w c"],
    size: tuple[Size, Size],
    *,
    align_corners: bool = True,
    antialias: bool = False,
) -> Float[Array, "b H W c"]:
    """Resizes features bilinearly by two small matrix products.

    Args:
        x: Floating point features or images.
        size: Output height and width.
        align_corners: Put the centers of the corner pixels on each other
            (PyTorch-Encoding); otherwise the corners of the images (mmsegmentation's
            published configs, PIL).
        antialias: Widen the kernel where the image shrinks, as PIL does; only with
            `align_corners=False`.
    """
    if antialias and align_corners:
        raise ValueError("antialias needs align_corners=False")
    height, width = x.shape[1:3]
    out = jnp.asarray(x)
    # The smaller intermediate result first.
    if height != size[0]:
        rows = interpolation_matrix(height, size[0], align_corners, antialias)
        out = _product("oh,bhwc->bowc", rows, out)
    if width != size[1]:
        columns = interpolation_matrix(width, size[1], align_corners, antialias)
        out = _product("ow,bhwc->bhoc", columns, out)
    return out


def resize_bicubic(
    x: Float[AnyArray, "b h w c"], size: tuple[Size, Size]
) -> Float[Array, "b H W c"]:
    """Resizes features bicubically, pixels at half-pixel centers, antialiased.

    As PIL, and `torch.nn.functional.interpolate` with `antialias=True`: Keys' kernel
    with a = -0.5, widened where the image shrinks.

    Args:
        x: Floating point features.
        size: Output height and width.
    """
    height, width = x.shape[1:3]
    out = jnp.asarray(x)
    if height != size[0]:
        out = _product("oh,bhwc->bowc", _bicubic_matrix(height, size[0]), out)
    if width != size[1]:
        out = _product("ow,bhwc->bhoc", _bicubic_matrix(width, size[1]), out)
    return out


def pad_with_zeros(
    x: Float[Array, "b h w c"], size: tuple[Size, Size]
) -> Float[Array, "b H W c"]:
    """Pads features or images below and to the right up to a size."""
    height, width = x.shape[1:3]
    if all(isinstance(length, int) for length in (height, width, *size)):
        widths = ((0, 0), (0, size[0] - height), (0, size[1] - width), (0, 0))
        return jnp.pad(x, widths)
    # By zeros and ones: jax2onnx pads free sizes by nothing else.
    x = _product("oh,bhwc->bowc", _index(size[0])[:, None] == _index(height), x)
    return _product("ow,bhwc->bhoc", _index(size[1])[:, None] == _index(width), x)


def _bicubic_matrix(source: int, target: Size) -> AnyArray:
    """Weights (target, source), float32; NumPy where both sizes are known."""
    xp = np if isinstance(target, int) else jnp
    shrunk = source / target
    reach = max(shrunk, 1.0) if isinstance(target, int) else jnp.maximum(shrunk, 1.0)
    position = source_positions(source, target, align_corners=False, clip=False)
    d = xp.abs(position[:, None] - _index(source)[None, :]) / reach
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = xp.where(d < 1, near, xp.where(d < 2, far, 0.0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _product(equation: str, matrix: AnyArray, x: AnyArray) -> jax.Array:
    # Weights such as 0.625 are exact in bfloat16, others are not: full precision keeps
    # float32 features right on units that multiply in less by default.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, jnp.asarray(matrix, x.dtype), x, precision=precision)


def interpolation_matrix(
    source: Size,
    target: Size,
    align_corners: bool = True,
    antialias: bool = False,
    count: Size | None = None,
) -> AnyArray:
    """Returns weights (target, source), float32, of 1-D linear interpolation.

    NumPy where both sizes are known. With `count`, only those of the first `count`
    target pixels, (count, source).
    """
    # Float64 on the host where the sizes are known (always but in export with free
    # sizes): positions near 1000 in float32 would cost the weights four digits.
    known = isinstance(source, int) and isinstance(target, int)
    xp = np if known else jnp
    position = source_positions(
        source, target, align_corners, clip=not antialias, count=count
    )
    reach = max(source / target, 1.0) if antialias else 1.0
    distance = xp.abs(position[:, None] - _index(source)[None, :])
    weights = xp.maximum(0.0, 1.0 - distance / reach)
    weights = weights / weights.sum(1, keepdims=True)
    return weights.astype(np.float32)


def source_positions(
    source: Size,
    target: Size,
    align_corners: bool,
    clip: bool = True,
    count: Size | None = None,
) -> AnyArray:
    """Returns where target pixels lie among source pixels along an axis, (target,).

    NumPy, float64, where both sizes are known. With `clip`, no position is outside the
    first and last pixel. With `count`, only those of the first `count`, (count,).
    """
    i = _index(target if count is None else count)
    if align_corners:
        return i * ((source - 1) / max(target - 1, 1))
    position = (i + 0.5) * (source / target) - 0.5
    return position.clip(0, source - 1) if clip else position


def _index(size: Size) -> AnyArray:
    """Numbers from 0 to size - 1; NumPy where the size is known."""
    if isinstance(size, int):
        return np.arange(size)
    # Not `jnp.arange`: jax2onnx makes no array of a free size of it.
    return jax.lax.iota(np.int32, size)
