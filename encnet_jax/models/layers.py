"""Layers that all networks share: convolution, batch normalization, pooling, linear.

Feature maps are (b, h, w, c) throughout. Parameters and statistics are float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from encnet_jax.ops.batch_norm import batch_norm, normalize_features
from encnet_jax.ops.conv import conv2d, select_conv_impl, winograd_conv2d
from encnet_jax.ops.conv_bias import add_bias
from encnet_jax.ops.resize import AnyArray
from encnet_jax.ops.winograd import PREDICTION_TILE, transform_kernel

# He initialization by fan-out, as the residual networks of both originals.
he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's default for convolution and linear weights: uniform in +-1/sqrt(fan_in).
uniform_fan_in = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
Initializer = Callable[..., jax.Array]  # (key, shape, dtype) -> initial values
_Vector = Float[AnyArray, " c"]


def uniform_bias(fan_in: int) -> Initializer:
    """Returns PyTorch's default for biases: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: Any, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a linear layer with PyTorch's default initialization."""
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=uniform_fan_in,
        bias_init=uniform_bias(in_features),
        rngs=rngs,
    )


class Conv(nnx.Module):
    """2-D convolution with PyTorch's symmetric padding.

    A bias starts as PyTorch's default, whatever `kernel_init` is.

    Attributes:
        impl: See `conv2d`; `set_conv_impl` sets it for all of a model.
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
        kernel_init: Initializer = he_normal,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.data(None)
        if use_bias:
            bias_init = uniform_bias(kernel_size**2 * in_features)
            self.bias = nnx.Param(bias_init(rngs.params(), (out_features,)))
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.dtype = dtype
        self.set_impl("lax")

    def __call__(self, x: Float[AnyArray, "b h w in"]) -> Float[Array, "b H W out"]:
        """Convolves features; H = ceil(h / stride), W likewise."""
        y = conv2d(
            jnp.asarray(x, self.dtype),
            self.kernel[...].astype(self.dtype),
            stride=self.stride,
            dilation=self.dilation,
            impl=self.impl,
        )
        return y if self.bias is None else add_bias(y, self.bias[...], self.dtype)

    def set_impl(self, preferred: str) -> None:
        """Sets the implementation; where `preferred` does not apply, another."""
        self.impl = select_conv_impl(
            preferred,
            self.kernel.shape,
            stride=self.stride,
            dilation=self.dilation,
            dtype=self.dtype,
        )


class FoldedConv(nnx.Module):
    """Convolution for prediction: batch normalization and bias folded in.

    The kernel has the dtype of the computation; Winograd's is transformed already, for
    larger tiles than those of training.

    Args:
        conv: The convolution as trained.
        factor: Multiplies each channel of the convolution's output.
        offset: Is added to each channel of that product.
    """

    def __init__(self, conv: Conv, factor: _Vector, offset: _Vector):
        kernel = conv.kernel[...] * factor
        # The other implementations have faster gradients, no more.
        self.impl = conv.impl if conv.impl in ("gemm", "winograd") else "lax"
        if self.impl == "winograd":
            kernel = transform_kernel(kernel, PREDICTION_TILE)
        if conv.bias is not None:
            offset = conv.bias[...] * factor + offset
        self.kernel = nnx.Param(kernel.astype(conv.dtype))
        self.bias = nnx.Param(offset)
        self.stride = conv.stride
        self.dilation = conv.dilation
        self.dtype = conv.dtype

    def __call__(self, x: Float[AnyArray, "b h w in"]) -> Float[Array, "b H W out"]:
        """Convolves features; H = ceil(h / stride), W likewise."""
        x, kernel = jnp.asarray(x, self.dtype), self.kernel[...]
        if self.impl == "winograd":
            y = winograd_conv2d(x, kernel, dilation=self.dilation)
        else:
            y = conv2d(
                x, kernel, stride=self.stride, dilation=self.dilation, impl=self.impl
            )
        return add_bias(y, self.bias[...], self.dtype)


def set_conv_impl(model: nnx.Module, impl: str) -> None:
    """Sets how the convolutions of a model are computed.

    Args:
        model: The model; every `Conv` in it is set.
        impl: One of `CONV_IMPLS`; each convolution takes it where it applies, see
            `select_conv_impl`. `"auto"`: the fastest here.
    """
    for _, conv in nnx.iter_modules(model):
        if isinstance(conv, Conv):
            conv.set_impl(impl)


def set_layer_options(
    model: nnx.Module,
    *,
    dtype: DTypeLike = jnp.float32,
    unbiased_running_var: bool = False,
) -> None:
    """Sets the dtype policy and the batch-norm convention of a finished model.

    Args:
        model: Every convolution and batch norm in it is set; a fresh layer has the
            defaults.
        dtype: Dtype of convolutions and of the features between them. Parameters,
            statistics, encodings and the linear layers of heads stay float32. A
            backbone with a `set_dtype` of its own is given the dtype.
        unbiased_running_var: Whether the running variance takes n/(n-1) times the batch
            variance, as in torch.nn.BatchNorm2d and therefore mmsegmentation. The
            default is the biased variance, as in PyTorch-Encoding since v1.0.
    """
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, Conv):
            layer.dtype = dtype
        elif isinstance(layer, BatchNorm):
            layer.unbiased_running_var = unbiased_running_var
        elif hasattr(layer, "set_dtype"):  # a backbone of layers of its own
            layer.set_dtype(dtype)


class BatchNorm(nnx.BatchNorm):
    """Batch normalization with the originals' momentum 0.9 and epsilon 1e-5.

    Under `jax.jit` the statistics are those of the global batch on any mesh: the
    paper's synchronized batch normalization (section 4.1). Arithmetic is float32, and
    the result has the dtype of the input.

    Over channels, the variance is computed in one pass, relative to the running mean.
    Once that is close to the batch mean, no digits cancel, however large the mean is
    compared with the deviation.

    Args:
        num_features: Size of the normalized axis.
        axis: The axis that keeps separate statistics.
        rngs: Advanced as by any layer; scale and bias start at one and zero.
    """

    def __init__(self, num_features: int, *, axis: int = -1, rngs: nnx.Rngs):
        super().__init__(num_features, axis=axis, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.unbiased_running_var = False

    def __call__(  # type: ignore[override]
        self, x: Float[AnyArray, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Normalizes over all axes but `axis`; updates the statistics in training."""
        assert self.scale is not None and self.bias is not None  # always made above
        x = jnp.asarray(x)
        axis = self.axis % x.ndim
        options: dict[str, Any] = dict(epsilon=self.epsilon, dtype=x.dtype)
        if not self.use_running_average and axis == x.ndim - 1:
            y, mean, var = batch_norm(
                x, self.scale[...], self.bias[...], self.mean[...], **options
            )
            self._update_statistics(mean, var, x.size // x.shape[axis])
            return y
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            # The batch mean of an encoding can be many deviations away from the running
            # mean. Encodings are small, so two passes cost nothing.
            x = x.astype(jnp.float32)
            reduced = tuple(i for i in range(x.ndim) if i != axis)
            mean = x.mean(reduced)
            var = jnp.square(x - mean.reshape(shape)).mean(reduced)
            self._update_statistics(mean, var, x.size // x.shape[axis])
        vectors = (mean, var, self.scale[...], self.bias[...])
        return normalize_features(x, *(v.reshape(shape) for v in vectors), **options)

    def affine(self) -> tuple[_Vector, _Vector]:
        """Returns factor and offset of each channel in eval mode.

        NumPy in, NumPy out.
        """
        assert self.scale is not None and self.bias is not None  # always made above
        factor = (self.var[...] + self.epsilon) ** -0.5 * self.scale[...]
        return factor, self.bias[...] - self.mean[...] * factor

    def _update_statistics(
        self, mean: Float[Array, " c"], var: Float[Array, " c"], count: int
    ) -> None:
        if self.unbiased_running_var:
            # A single value per channel has no unbiased variance; torch raises there.
            var = var * (count / max(count - 1, 1))
        keep = self.momentum
        # Not `self.mean[...] =`: Flax then asks for the sharding of a traced array, and
        # JAX goes through all operations traced so far to say that it has none.
        for running, batch in ((self.mean, mean), (self.var, var)):
            value = keep * running[...] + (1 - keep) * batch
            running.set_value(jax.lax.stop_gradient(value))


class ConvBN(nnx.Module):
    """Convolution without bias, batch normalization and, by default, ReLU."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
        kernel_init: Initializer = he_normal,
        rngs: nnx.Rngs,
    ):
        self.conv: Conv | FoldedConv = Conv(
            in_features,
            out_features,
            kernel_size,
            stride=stride,
            dilation=dilation,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.norm: BatchNorm | None = nnx.data(BatchNorm(out_features, rngs=rngs))
        self.relu = relu

    def __call__(self, x: Float[AnyArray, "b h w in"]) -> Float[Array, "b H W out"]:
        """Convolves, normalizes and rectifies; H = ceil(h / stride), W likewise."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return jax.nn.relu(x) if self.relu else x

    def fold(self) -> None:
        """Folds the norm, as it is in eval mode, into the convolution, for good."""
        assert self.norm is not None and isinstance(self.conv, Conv)  # folded once
        self.conv = FoldedConv(self.conv, *self.norm.affine())
        self.norm = nnx.data(None)


# PyTorch-Encoding initializes its backbones, and leaves its heads at PyTorch's default.
HeadConvBN = functools.partial(ConvBN, kernel_init=uniform_fan_in)


def max_pool(x: Float[AnyArray, "b h w c"]) -> Float[Array, "b H W c"]:
    """3x3 max pooling with stride 2 and padding 1.

    Computed as the maximum of nine shifted slices. On CPU this is 9 times faster with
    its gradient than `reduce_window`, whose gradient is a select-and-scatter.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        last = (x.shape[axis] - 3) // 2 * 2 + 1  # past the start of the last window
        first, second, third = (
            jax.lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x
