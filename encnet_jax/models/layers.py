"""Layers that several models share: convolution, normalisation, pooling, resizing.

Feature maps are (b, h, w, c) throughout. Parameters and statistics are float32;
`dtype` is the dtype of the computation and of the result.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

# He initialisation by fan-out, as the residual networks of both originals.
he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's default for convolution and linear weights: uniform in +-1/sqrt(fan_in).
uniform_fan_in = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nnx.Module):
    """2-D convolution with PyTorch's symmetric padding.

    A 1x1 convolution is computed as a matrix product over channels: the gradients of
    that form are 3.5 to 6 times faster on CPU, and no slower on accelerators. With
    `phases` one of dilation d, without stride, is computed as a plain one on the d x d
    interleaved phases of the image: to the rounding of float32 the same numbers, for
    compilers whose dilated convolutions, or the gradients of these, are slow.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        phases: bool = False,
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
        self.phases = phases and dilation > 1 and stride == 1
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, in_features) to (b, ceil(h/stride), ..., out_features)."""
        x = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        if self.kernel_size == 1:
            # Two-dimensional operands: the compiler finds faster gradients for them.
            x = _every(x, self.stride)
            y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
            y = y.reshape(*x.shape[:-1], kernel.shape[-1])
        elif self.phases:
            y = _convolution(split_phases(x, self.dilation), kernel)
            y = join_phases(y, self.dilation, (x.shape[1], x.shape[2]))
        else:
            y = _convolution(x, kernel, self.stride, self.dilation)
        if self.bias is None:
            return y
        # In float32: so is the sum over the pixels that is the gradient of the bias.
        return (y.astype(jnp.float32) + self.bias[...]).astype(self.dtype)


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


def split_phases(x: jax.Array, d: int) -> jax.Array:
    """Returns the d x d phases of (b, h, w, c) as images of their own.

    Phase (i, j) has every d-th row from i on and every d-th column from j on. A size
    that is no multiple of d is filled up with zeros below and right, as a convolution
    pads. The result is (b d d, ceil(h / d), ceil(w / d), c), the phases of an image
    next to each other: a batch over several devices stays where it is.
    """
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % d), (0, -w % d), (0, 0)))
    x = x.reshape(b, -(-h // d), d, -(-w // d), d, c).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(b * d * d, *x.shape[3:])


def join_phases(x: jax.Array, d: int, size: tuple[int, int]) -> jax.Array:
    """Undoes `split_phases` of images of the given height and width."""
    n, h, w, c = x.shape
    x = x.reshape(n // d**2, d, d, h, w, c).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(n // d**2, h * d, w * d, c)[:, : size[0], : size[1]]


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation with the originals' momentum, epsilon and one-pass variance.

    Under `jax.jit` the statistics are those of the global batch on any mesh, which is
    the paper's synchronised batch normalisation. Over channels the variance is taken in
    one pass over the features minus the running mean, so nothing cancels once the
    running mean is near the mean, however large the mean is against the deviation.

    Args:
        num_features: Size of the normalised axis.
        axis: The axis that keeps its own statistics.
        unbiased_running_var: Feed n/(n-1) times the batch variance into the running
            variance, as torch.nn.BatchNorm2d and with it mmsegmentation. By default the
            biased variance, as PyTorch-Encoding since v1.0.
        dtype: Dtype of the result; the arithmetic is float32.
        rngs: Not drawn from in effect; the parameters start at one and zero.
    """

    def __init__(
        self,
        num_features: int,
        *,
        axis: int = -1,
        unbiased_running_var: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            num_features, axis=axis, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs
        )
        self.unbiased_running_var = unbiased_running_var

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Normalises x over all axes but `axis`; updates the statistics in training."""
        axis = self.axis % x.ndim
        reduced = tuple(i for i in range(x.ndim) if i != axis)
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        x = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._batch_statistics(x, reduced, shape)
            self._update_statistics(mean, var, x.size // x.shape[axis])
        assert self.scale is not None and self.bias is not None  # always made above
        factor = jax.lax.rsqrt(var + self.epsilon) * self.scale[...]
        y = (x - mean.reshape(shape)) * factor.reshape(shape)
        return (y + self.bias[...].reshape(shape)).astype(self.dtype or jnp.float32)

    def _batch_statistics(
        self, x: jax.Array, reduced: tuple[int, ...], shape: list[int]
    ) -> tuple[jax.Array, jax.Array]:
        if self.axis != -1:
            # Encodings are few numbers, and their mean over a batch can be many
            # deviations from the running mean: two passes.
            mean = x.mean(reduced)
            return mean, jnp.square(x - mean.reshape(shape)).mean(reduced)
        shift = self.mean[...]
        shifted = x - shift.reshape(shape)
        offset = shifted.mean(reduced)
        var = jnp.square(shifted).mean(reduced) - jnp.square(offset)
        return shift + offset, jnp.maximum(var, 0.0)

    def _update_statistics(self, mean: jax.Array, var: jax.Array, count: int) -> None:
        if self.unbiased_running_var:
            # One value per channel has no unbiased variance; torch refuses it too.
            var = var * (count / max(count - 1, 1))
        keep = self.momentum
        self.mean[...] = jax.lax.stop_gradient(
            keep * self.mean[...] + (1 - keep) * mean
        )
        self.var[...] = jax.lax.stop_gradient(keep * self.var[...] + (1 - keep) * var)


class ConvNorm(nnx.Module):
    """Convolution without bias, batch normalisation and, by default, ReLU."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        phases: bool = False,
        relu: bool = True,
        unbiased_running_var: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            in_features,
            out_features,
            kernel_size,
            stride=stride,
            dilation=dilation,
            phases=phases,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(
            out_features,
            unbiased_running_var=unbiased_running_var,
            dtype=dtype,
            rngs=rngs,
        )
        self.relu = relu

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, in_features) to (b, h/stride, w/stride, out_features)."""
        x = self.norm(self.conv(x))
        return jax.nn.relu(x) if self.relu else x


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max pooling with stride 2 and padding 1 of (b, h, w, c).

    A maximum of nine shifted slices: on CPU 9 times faster with its gradient than
    `reduce_window`, whose gradient is a select-and-scatter.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        last = (x.shape[axis] - 3) // 2 * 2 + 1  # behind the start of the last window
        first, second, third = (
            jax.lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


def _every(x: jax.Array, stride: int) -> jax.Array:
    """Returns every `stride`-th row and column of (b, h, w, c).

    Written so that free sizes (export) come out as those of a strided convolution do;
    NumPy's notation would give them another form, and a gather.
    """
    if stride == 1:
        return x
    for axis in (1, 2):
        end = (x.shape[axis] - 1) // stride * stride + 1
        x = jax.lax.slice_in_dim(x, 0, end, stride, axis)
    return x


def adaptive_average_pool(x: jax.Array, bins: int) -> jax.Array:
    """Averages (b, h, w, c) over a grid of cells: (b, bins, bins, c).

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


def _cells(size: int, bins: int) -> np.ndarray | jax.Array:
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
    x: jax.Array,
    size: tuple[int, int],
    *,
    align_corners: bool = True,
    antialias: bool = False,
) -> jax.Array:
    """Resizes (b, h, w, c) bilinearly to (b, *size, c) by two small matrix products.

    Args:
        x: Floating point features or images.
        size: Output height and width.
        align_corners: Put the centres of the corner pixels on each other
            (PyTorch-Encoding); otherwise the corners of the images (mmsegmentation's
            published configs, PIL).
        antialias: Widen the kernel where the image shrinks, as PIL does; only with
            `align_corners=False`.
    """
    if antialias and align_corners:
        raise ValueError("antialias needs align_corners=False")
    height, width = x.shape[1:3]
    out = x
    # The smaller intermediate result first.
    if height != size[0]:
        rows = interpolation_matrix(height, size[0], align_corners, antialias)
        out = _product("oh,bhwc->bowc", rows, out)
    if width != size[1]:
        columns = interpolation_matrix(width, size[1], align_corners, antialias)
        out = _product("ow,bhwc->bhoc", columns, out)
    return out


def _product(equation: str, matrix: np.ndarray | jax.Array, x: jax.Array) -> jax.Array:
    # Weights such as 0.625 are exact in bfloat16, others are not: full precision keeps
    # float32 features right on units that multiply in less by default.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, jnp.asarray(matrix, x.dtype), x, precision=precision)


def interpolation_matrix(
    source: int, target: int, align_corners: bool = True, antialias: bool = False
) -> np.ndarray | jax.Array:
    """Weights (target, source), float32, of one-dimensional linear interpolation.

    NumPy where both sizes are known.
    """
    # Float64 on the host where the sizes are known (always but in export with free
    # sizes): positions near 1000 in float32 would cost the weights four digits.
    known = isinstance(source, int) and isinstance(target, int)
    xp = np if known else jnp
    i, j = _index(target)[:, None], _index(source)[None, :]
    if align_corners:
        step = (source - 1) / max(target - 1, 1)
        position = i * step
    else:
        step = source / target
        position = xp.clip((i + 0.5) * step - 0.5, 0, source - 1)
        if antialias:
            position = (i + 0.5) * step - 0.5
    reach = max(step, 1.0) if antialias else 1.0
    weights = xp.maximum(0.0, 1.0 - abs(position - j) / reach)
    weights = weights / weights.sum(1, keepdims=True)
    return weights.astype(np.float32)


def _index(size: int) -> np.ndarray | jax.Array:
    """Numbers from 0 to size - 1; NumPy where the size is known."""
    if isinstance(size, int):
        return np.arange(size)
    # Not `jnp.arange`: jax2onnx makes no array of a free size of it.
    return jax.lax.iota(np.int32, size)
