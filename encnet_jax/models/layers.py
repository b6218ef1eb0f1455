"""Layers that several models share: normalization, pooling.

Feature maps are (b, h, w, c) throughout. Parameters and statistics are float32;
`dtype` is the dtype of the computation and of the result.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.ops.conv import Conv

# PyTorch's default for convolution and linear weights: uniform in +-1/sqrt(fan_in).
uniform_fan_in = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BatchNorm(nnx.BatchNorm):
    """Batch normalization with the originals' momentum, epsilon and one-pass variance.

    Under `jax.jit` the statistics are those of the global batch on any mesh, which is
    the paper's synchronized batch normalization. Over channels the variance is taken in
    one pass over the features minus the running mean, so nothing cancels once the
    running mean is near the mean, however large the mean is against the deviation.

    Args:
        num_features: Size of the normalized axis.
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
        """Normalizes x over all axes but `axis`; updates the statistics in training."""
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

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """Returns the factor and the offset (c,) of every channel in eval mode.

        Of NumPy's arrays by NumPy.
        """
        assert self.scale is not None and self.bias is not None  # always made above
        factor = (self.var[...] + self.epsilon) ** -0.5 * self.scale[...]
        return factor, self.bias[...] - self.mean[...] * factor

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
            dtype=dtype,
            rngs=rngs,
        )
        self.norm: BatchNorm | None = nnx.data(
            BatchNorm(
                out_features,
                unbiased_running_var=unbiased_running_var,
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.relu = relu

    def __call__(self, x: jax.Array) -> jax.Array:
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
