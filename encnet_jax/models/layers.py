"""Layers that all networks share: convolution with batch norm, pooling, linear.

Feature maps are (b, h, w, c) throughout. Parameters and statistics are float32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from encnet_jax.ops.conv import Conv

# PyTorch's default for convolution and linear weights: uniform in +-1/sqrt(fan_in).
uniform_fan_in = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
Linear = functools.partial(nnx.Linear, kernel_init=uniform_fan_in)
_Vector = Float[Array | np.ndarray, " c"]


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
            statistics, encodings and linear layers stay float32.
        unbiased_running_var: Feed n/(n-1) times the batch variance into the running
            variance, as torch.nn.BatchNorm2d and with it mmsegmentation. The default is
            the biased variance of PyTorch-Encoding since v1.0.
    """
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, Conv):
            layer.dtype = dtype
        elif isinstance(layer, BatchNorm):
            layer.unbiased_running_var = unbiased_running_var


class BatchNorm(nnx.BatchNorm):
    """Batch normalization with the originals' momentum 0.9 and epsilon 1e-5.

    Under `jax.jit` the statistics are those of the global batch on any mesh: the
    paper's synchronized batch normalization (section 4.1). Arithmetic is float32, and
    the result has the dtype of the input.

    Over channels the variance is computed in one pass, relative to the running mean.
    Once that is close to the batch mean nothing cancels, however large the mean is
    against the deviation.

    Args:
        num_features: Size of the normalized axis.
        axis: The axis that keeps separate statistics.
        rngs: Advanced as for any layer; scale and bias start at one and zero.
    """

    def __init__(self, num_features: int, *, axis: int = -1, rngs: nnx.Rngs):
        super().__init__(num_features, axis=axis, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.unbiased_running_var = False

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Normalizes over all axes but `axis`; updates the statistics in training."""
        axis = self.axis % x.ndim
        reduced = tuple(i for i in range(x.ndim) if i != axis)
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        dtype, x = x.dtype, x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._batch_statistics(x, reduced, shape)
            self._update_statistics(mean, var, x.size // x.shape[axis])
        assert self.scale is not None and self.bias is not None  # always made above
        factor = jax.lax.rsqrt(var + self.epsilon) * self.scale[...]
        y = (x - mean.reshape(shape)) * factor.reshape(shape)
        return (y + self.bias[...].reshape(shape)).astype(dtype)

    def affine(self) -> tuple[_Vector, _Vector]:
        """Returns factor and offset of each channel in eval mode.

        NumPy in, NumPy out.
        """
        assert self.scale is not None and self.bias is not None  # always made above
        factor = (self.var[...] + self.epsilon) ** -0.5 * self.scale[...]
        return factor, self.bias[...] - self.mean[...] * factor

    def _batch_statistics(
        self, x: Float[Array, "..."], reduced: tuple[int, ...], shape: list[int]
    ) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        if self.axis != -1:
            # The batch mean of an encoding can be many deviations away from the running
            # mean. Encodings are small, so two passes cost nothing.
            mean = x.mean(reduced)
            return mean, jnp.square(x - mean.reshape(shape)).mean(reduced)
        shift = self.mean[...]
        shifted = x - shift.reshape(shape)
        offset = shifted.mean(reduced)
        var = jnp.square(shifted).mean(reduced) - jnp.square(offset)
        return shift + offset, jnp.maximum(var, 0.0)

    def _update_statistics(
        self, mean: Float[Array, " c"], var: Float[Array, " c"], count: int
    ) -> None:
        if self.unbiased_running_var:
            # A single value per channel has no unbiased variance; torch raises there.
            var = var * (count / max(count - 1, 1))
        keep = self.momentum
        self.mean[...] = jax.lax.stop_gradient(
            keep * self.mean[...] + (1 - keep) * mean
        )
        self.var[...] = jax.lax.stop_gradient(keep * self.var[...] + (1 - keep) * var)


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
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            in_features,
            out_features,
            kernel_size,
            stride=stride,
            dilation=dilation,
            rngs=rngs,
        )
        self.norm: BatchNorm | None = nnx.data(BatchNorm(out_features, rngs=rngs))
        self.relu = relu

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        """Maps (b, h, w, in_features) to (b, h/stride, w/stride, out_features)."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return jax.nn.relu(x) if self.relu else x

    def fold(self) -> None:
        """Folds the norm, as it is in eval mode, into the convolution, for good."""
        assert self.norm is not None  # folded once
        self.conv.fold(*self.norm.affine())
        self.norm = nnx.data(None)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
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
