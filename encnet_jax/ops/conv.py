"""Convolution, in the impl that is quickest where it runs.

Feature maps are (b, h, w, c). A impl cotangents how fast a convolution is, and its
rounding in float32; not what it computes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.ops.chunks import BACKWARD_CHUNK_ELEMENTS, chunk_size, split_chunks
from encnet_jax.ops.winograd import (
    PREDICTION_TILE,
    transform_kernel,
    winograd,
    winograd_conv,
)

# He initialization by fan-out, as the residual networks of both originals.
he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

# `auto` takes the quicker by platform. On CPU: benchmarks/inference.py and training.py.
# On GPU: benchmarks/accelerator.py, where the gradients of the dilated stages took 0.68
# of the time of the direct impl, and the forward pass as long. TPU is not measured.
CONV_IMPLS = ("auto", "lax", "space_to_batch", "winograd")
_QUICKER = {"cpu": "winograd", "gpu": "space_to_batch", "tpu": "lax"}
# With fewer channels the sums around the products take what the products save.
_WINOGRAD_CHANNELS = 32


class Conv(nnx.Module):
    """2-D convolution with PyTorch's symmetric padding.

    A 1x1 convolution is computed as a matrix product over channels: the gradients of
    that impl are 3.5 to 6 times faster on CPU, and no slower on accelerators. Others
    have a `impl`, where it applies; see `set_conv_impl`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        use_bias: bool = False,
        kernel_init: Callable[..., jax.Array] = he_normal,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        bias = jnp.zeros(out_features, jnp.float32) if use_bias else None
        self.bias = nnx.data(None) if bias is None else nnx.Param(bias)
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.dtype = dtype
        self.impl = "lax"

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, in_features) to (b, ceil(h/stride), ..., out_features)."""
        x = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        if self.kernel_size == 1:
            # Two-dimensional operands: the compiler finds faster gradients for them.
            x = strided_slice(x, self.stride)
            y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
            y = y.reshape(*x.shape[:-1], kernel.shape[-1])
        elif self.impl == "lax":
            y = _convolution(x, kernel, self.stride, self.dilation)
        elif self.stride > 1:
            y = im2col_conv(x, kernel, self.stride)
        else:
            plain: Callable[..., jax.Array] = _convolution
            if self.impl == "winograd":  # a folded kernel is larger: it is summed
                plain = winograd_conv if len(kernel) == 3 else winograd
            y = plain(space_to_batch(x, self.dilation), kernel)
            y = batch_to_space(y, self.dilation, (x.shape[1], x.shape[2]))
        if self.bias is None:
            return y
        # In float32: so is the sum over the pixels that is the gradient of the bias.
        return (y.astype(jnp.float32) + self.bias[...]).astype(self.dtype)

    def fold(self, factor: jax.Array, offset: jax.Array) -> None:
        """Takes a factor and an offset (out_features,) of the result in, for good.

        From here on the convolution is for prediction: the kernel has its dtype, and
        that of Winograd's impl is summed, for larger tiles than those of training.
        """
        kernel = self.kernel[...] * factor
        if self.stride > 1:  # another impl has quicker gradients, no more
            self.impl = "lax"
        if self.impl == "winograd":
            kernel = transform_kernel(kernel, PREDICTION_TILE)
        if self.bias is not None:
            offset = self.bias[...] * factor + offset
        self.kernel = nnx.Param(kernel.astype(self.dtype))
        self.bias = nnx.Param(offset)

    def supports(self, impl: str) -> bool:
        """Returns whether a impl is of use here."""
        size, _, *features = self.kernel.shape
        if impl == "lax" or size == 1:
            return impl == "lax"
        if impl == "space_to_batch":
            return self.dilation > 1 and self.stride == 1
        wide = min(features) >= _WINOGRAD_CHANNELS
        if size != 3 or not wide or (self.stride > 1 and self.dilation > 1):
            return False
        return self.dtype == jnp.float32  # sums of a tile would lose digits in bfloat16


def set_conv_impl(model: nnx.Module, impl: str) -> None:
    """Sets how the 3x3 convolutions of a model are computed.

    Args:
        model: Whose every `Conv` is set.
        impl: `"lax"`, as the compiler does it. `"space_to_batch"`: one of dilation d,
            without stride, as a plain one on the d x d interleaved phases of the image,
            for compilers whose dilated convolutions, or the gradients of these, are
            slow. `"winograd"`: those in float32 between 32 channels or more. Without
            stride by fewer products (see `winograd`), dilated ones on their phases;
            in training also with stride, as one product. `"auto"`: the quickest here.
    """
    if impl == "auto":
        impl = _QUICKER.get(jax.default_backend(), "lax")
    for _, conv in nnx.iter_modules(model):
        if isinstance(conv, Conv):
            conv.impl = impl if conv.supports(impl) else "lax"


def _convolution(
    x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1
) -> jax.Array:
    pad = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def im2col_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """3x3 convolution with stride: rows of nine neighbors by the kernel.

    Forward no quicker than the direct impl; its gradients are.
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

    # Both passes have the same blocks; it is the gradients that are to be quick.
    y = jax.lax.map(
        convolve, split_chunks(x, chunk_size(x, kernel, BACKWARD_CHUNK_ELEMENTS))
    )
    return y.reshape(-1, *y.shape[2:])


def space_to_batch(x: jax.Array, d: int) -> jax.Array:
    """Returns the d x d phases of (b, h, w, c) as images of their own.

    Phase (i, j) has every d-th row from i on and every d-th column from j on. A size
    that is no multiple of d is filled up with zeros below and right, as a convolution
    pads. The result is (b d d, ceil(h / d), ceil(w / d), c), the phases of an image
    next to each other: a batch over several devices stays where it is.
    """
    if d == 1:
        return x
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % d), (0, -w % d), (0, 0)))
    x = x.reshape(b, -(-h // d), d, -(-w // d), d, c).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(b * d * d, *x.shape[3:])


def batch_to_space(x: jax.Array, d: int, size: tuple[int, int]) -> jax.Array:
    """Undoes `space_to_batch` of images of the given height and width."""
    if d == 1:
        return x
    n, h, w, c = x.shape
    x = x.reshape(n // d**2, d, d, h, w, c).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(n // d**2, h * d, w * d, c)[:, : size[0], : size[1]]


def strided_slice(x: jax.Array, stride: int) -> jax.Array:
    """Returns every `stride`-th row and column of (b, h, w, c).

    Written so that free sizes (export) come out as those of a strided convolution do;
    NumPy's notation would give them another impl, and a gather.
    """
    if stride == 1:
        return x
    for axis in (1, 2):
        end = (x.shape[axis] - 1) // stride * stride + 1
        x = jax.lax.slice_in_dim(x, 0, end, stride, axis)
    return x
