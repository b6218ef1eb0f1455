"""2-D convolution of feature maps (b, h, w, c) with PyTorch's symmetric padding.

An implementation decides how fast a convolution is, and its rounding in float32; not
what it computes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from encnet_jax.ops.chunks import BACKWARD_CHUNK_ELEMENTS, chunk_size, split_chunks
from encnet_jax.ops.dispatch import auto_impl, check_impl
from encnet_jax.ops.resize import AnyArray
from encnet_jax.ops.winograd import winograd_conv, winograd_transformed

# What may be asked for of a whole model; see `select_conv_impl`.
CONV_IMPLS = ("auto", "lax", "space_to_batch", "winograd")
# With fewer channels the transforms take what the smaller GEMMs save.
_WINOGRAD_CHANNELS = 32


def conv2d(
    x: Float[Array, "b h w in"],
    kernel: Float[AnyArray, "k k in out"],
    *,
    stride: int = 1,
    dilation: int = 1,
    impl: str = "auto",
) -> Float[Array, "b H W out"]:
    """Convolves features with a kernel of odd size, padded to keep theirs.

    Args:
        x: Features.
        kernel: Of the dtype of x.
        stride: Distance of the results in pixels: H = ceil(h / stride).
        dilation: Distance of the kernel's taps in pixels.
        impl: `"lax"`: as the compiler does it. `"gemm"`: a 1x1 convolution as one
            matrix product. `"space_to_batch"`: a dilated convolution as a plain one of
            the d x d interleaved phases. `"winograd"`: 3x3 by fewer multiplications,
            dilated ones on their phases. `"im2col"`: 3x3 as one matrix product, in
            chunks of the batch. `"auto"`: what `select_conv_impl` selects.

    Raises:
        ValueError: An unknown `impl`, or one that is not for such a convolution.
    """
    if impl == "auto":
        impl = select_conv_impl(
            impl, kernel.shape, stride=stride, dilation=dilation, dtype=x.dtype
        )
    check_impl(impl, _IMPLS)
    size = kernel.shape[0]
    if not {
        "lax": True,
        "gemm": size == 1,
        "space_to_batch": stride == 1,
        "winograd": size == 3 and stride == 1,
        "im2col": size == 3 and dilation == 1,
    }[impl]:
        raise ValueError(
            f"impl={impl!r}: not for kernels of size {size}, stride {stride}, and "
            f"dilation {dilation}"
        )
    return _IMPLS[impl](x, kernel, stride, dilation)


def select_conv_impl(
    preferred: str,
    kernel_shape: Sequence[int],
    *,
    stride: int,
    dilation: int,
    dtype: DTypeLike,
) -> str:
    """Returns an implementation for one convolution of a model.

    Args:
        preferred: One of `CONV_IMPLS`. `"space_to_batch"` is for compilers whose
            dilated convolutions, or the gradients of these, are slow: it applies
            where there is dilation and no stride. `"winograd"` applies to 3x3 in
            float32 between 32 channels or more; strided ones without dilation take
            `"im2col"`, whose gradients are faster than those of `"lax"`. 1x1
            convolutions are always `"gemm"`: gradients are 3.5 to 6 times faster on
            CPU, and no slower on accelerators. Where it does not apply: `"lax"`.
        kernel_shape: (k, k, in, out).
        stride: See `conv2d`.
        dilation: See `conv2d`.
        dtype: Of the computation.
    """
    size, _, *features = kernel_shape
    if size == 1:
        return "gemm"
    if preferred == "auto":
        preferred = auto_impl("conv")
    if preferred == "space_to_batch" and dilation > 1 and stride == 1:
        return preferred
    # In bfloat16 the transforms would lose digits.
    exact = jnp.dtype(dtype) == jnp.float32
    if preferred == "winograd" and size == 3 and exact:
        wide = min(features) >= _WINOGRAD_CHANNELS
        if wide and stride == 1:
            return preferred
        if wide and dilation == 1:
            return "im2col"
    return "lax"


def winograd_conv2d(
    x: Float[Array, "b h w in"],
    transformed: Float[AnyArray, "n n in out"],
    *,
    dilation: int = 1,
) -> Float[Array, "b h w out"]:
    """As `conv2d` with `"winograd"`, of a kernel transformed by `transform_kernel`."""
    y = winograd_transformed(space_to_batch(x, dilation), transformed)
    return batch_to_space(y, dilation, (x.shape[1], x.shape[2]))


def _lax(
    x: jax.Array, kernel: AnyArray, stride: int = 1, dilation: int = 1
) -> jax.Array:
    pad = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,  # type: ignore[arg-type]  # takes NumPy arrays, too
        (stride, stride),
        [(pad, pad), (pad, pad)],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _gemm(x: jax.Array, kernel: AnyArray, stride: int, dilation: int) -> jax.Array:
    # Two-dimensional operands: the compiler finds faster gradients for them.
    x = strided_slice(x, stride)
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _space_to_batch(
    x: jax.Array, kernel: AnyArray, stride: int, dilation: int
) -> jax.Array:
    y = _lax(space_to_batch(x, dilation), kernel)
    return batch_to_space(y, dilation, (x.shape[1], x.shape[2]))


def _winograd(x: jax.Array, kernel: AnyArray, stride: int, dilation: int) -> jax.Array:
    y = winograd_conv(space_to_batch(x, dilation), kernel)
    return batch_to_space(y, dilation, (x.shape[1], x.shape[2]))


def _im2col(x: jax.Array, kernel: AnyArray, stride: int, dilation: int) -> jax.Array:
    """3x3 convolution with stride: rows of nine neighbors times the kernel.

    The forward pass is no faster than that of `"lax"`, but the gradients are.
    """
    _, h, w, c = x.shape

    @jax.checkpoint  # the backward pass gathers again: kept, they are nine times x
    def convolve(images: jax.Array) -> jax.Array:
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        neighbors = [
            strided_slice(padded[:, i : i + h, j : j + w], stride)
            for i in range(3)
            for j in range(3)
        ]
        return jnp.concatenate(neighbors, -1) @ kernel.reshape(9 * c, -1)

    # Both passes share the chunks, and it is the gradients that are to be fast.
    size = chunk_size(x, kernel, BACKWARD_CHUNK_ELEMENTS)
    y = jax.lax.map(convolve, split_chunks(x, size))
    return y.reshape(-1, *y.shape[2:])


_IMPLS = {
    "lax": _lax,
    "gemm": _gemm,
    "space_to_batch": _space_to_batch,
    "winograd": _winograd,
    "im2col": _im2col,
}


def space_to_batch(
    x: Float[Array, "b h w c"], block: int
) -> Float[Array, "phases H W c"]:
    """Returns the block x block phases of images as images of their own.

    Phase (i, j) has every block-th row from i on and every block-th column from j on. A
    size that is no multiple is filled up with zeros below and right, as a convolution
    pads. The phases of an image are next to each other in the result, (b block block,
    ceil(h / block), ceil(w / block), c): a batch over several devices stays put.
    """
    if block == 1:
        return x
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % block), (0, -w % block), (0, 0)))
    x = x.reshape(b, -(-h // block), block, -(-w // block), block, c)
    x = x.transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(b * block * block, *x.shape[3:])


def batch_to_space(
    x: Float[Array, "phases H W c"], block: int, size: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """Undoes `space_to_batch` of images of the given height and width."""
    if block == 1:
        return x
    n, h, w, c = x.shape
    x = x.reshape(n // block**2, block, block, h, w, c).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(n // block**2, h * block, w * block, c)[:, : size[0], : size[1]]


def strided_slice(x: Float[Array, "b h w c"], stride: int) -> Float[Array, "b H W c"]:
    """Returns every `stride`-th row and column.

    Written so that free sizes (export) come out as those of a strided convolution do;
    NumPy's notation would give them other expressions, and a gather.
    """
    if stride == 1:
        return x
    for axis in (1, 2):
        end = (x.shape[axis] - 1) // stride * stride + 1
        x = jax.lax.slice_in_dim(x, 0, end, stride, axis)
    return x
