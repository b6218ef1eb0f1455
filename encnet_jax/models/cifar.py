"""The 14-layer classifiers of the paper's CIFAR-10 experiments.

A 3x3 convolution, three stages of two blocks of two 3x3 convolutions, the mean over the
image, a linear layer. Layers, their order and biases are those of the authors' code
(PyTorch-Encoding v0.4.3, experiments/recognition/model); the names of the paper, such
as 16k64d, give the codewords and the width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.models.encoding import Encoding
from encnet_jax.models.layers import BatchNorm, Conv, uniform_fan_in

CIFAR_MODELS = ("resnet14", "se_resnet14", "encnet14")
SE_REDUCTION = 16
ENCODING_REDUCTION = 4
BLOCKS = 2  # in each of the three stages


class ClassifierOutput(NamedTuple):
    """What a classifier returns.

    Attributes:
        logits: (b, n), float32, before the softmax.
    """

    logits: jax.Array


class DropEncoding(Encoding):
    """Encoding whose scales are not learned but drawn anew in every training step.

    Each codeword's scale is uniform in [-1, 0), and -0.5 in eval mode. The authors'
    published weights are of this variant. Their layer draws a second time between the
    forward and the backward pass; here both see the same scales.

    Args: as `Encoding`; there is no parameter `scale`.
    """

    def __init__(self, features: int, num_codes: int, *, rngs: nnx.Rngs):
        super().__init__(features, num_codes, rngs=rngs)
        del self.scale
        # A stream of this name, whatever those of `rngs`: training reseeds it by step.
        self.rngs = nnx.Rngs(dropout=rngs.dropout())
        self.deterministic = False

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the mode; for `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic

    def _scales(self) -> jax.Array:
        num_codes = self.codewords.shape[0]
        if self.deterministic:
            return jnp.full(num_codes, -0.5)
        key = self.rngs.dropout()
        return jax.random.uniform(key, (num_codes,), minval=-1.0, maxval=0.0)


class EncodingAttention(nnx.Module):
    """Channel attention from an encoding: features times a gate.

    1x1 convolution to a quarter of the channels, batch norm, ReLU, encoding; all the
    codewords' residuals as one vector of length 1, a linear layer, sigmoid. Unlike the
    `ContextEncoding` of segmentation there is no mean over the codewords, and no
    identity beside the product.

    Args:
        features: Number of channels c.
        num_codes: Number of codewords k.
        drop: Draw the scales: `DropEncoding`.
        rngs: Source of the initial weights and of drawn scales.
        **options: `unbiased_running_var` and `dtype` of the layers; see `BatchNorm`.
    """

    def __init__(
        self,
        features: int,
        *,
        num_codes: int,
        drop: bool,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        norm, conv = _layers(rngs=rngs, **options)
        reduced = features // ENCODING_REDUCTION
        self.conv = conv(features, reduced, use_bias=True)
        self.norm = norm(reduced)
        create = DropEncoding if drop else Encoding
        self.encoding = create(reduced, num_codes, rngs=rngs)
        self.linear = _linear(num_codes * reduced, features, rngs=rngs)

    def gate(self, x: jax.Array) -> jax.Array:
        """Returns the factors (b, c), float32, in 0 to 1."""
        encoded = self.encoding(jax.nn.relu(self.norm(self.conv(x))))
        vector = encoded.reshape(encoded.shape[0], -1)
        # Never divides by less than 1e-10, and has a gradient at zero.
        squares = jnp.maximum(jnp.square(vector).sum(-1, keepdims=True), 1e-20)
        return jax.nn.sigmoid(self.linear(vector * jax.lax.rsqrt(squares)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, c) to the same shape."""
        return x * self.gate(x).astype(x.dtype)[:, None, None, :]


class SqueezeExcitation(nnx.Module):
    """Channel attention from the mean over the image (Hu et al. 2018)."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.squeeze = _linear(features, features // SE_REDUCTION, rngs=rngs)
        self.excite = _linear(features // SE_REDUCTION, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, c) to the same shape."""
        mean = x.mean((1, 2), dtype=jnp.float32)
        gate = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(mean))))
        return x * gate.astype(x.dtype)[:, None, None, :]


class PreActivationBlock(nnx.Module):
    """Batch norm, ReLU, convolution, twice, and the input as it came."""

    def __init__(self, features_in: int, features: int, stride: int, **options: Any):
        norm, conv = _layers(**options)
        self.norm1 = norm(features_in)
        self.conv1 = conv(features_in, features, 3, stride=stride)
        self.norm2 = norm(features)
        self.conv2 = conv(features, features, 3)
        self.shortcut = nnx.data(_shortcut(conv, features_in, features, stride))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, features_in) to (b, h/stride, w/stride, features)."""
        y = self.conv1(jax.nn.relu(self.norm1(x)))
        y = self.conv2(jax.nn.relu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nnx.Module):
    """Post-activation block with channel attention before the sum and the last ReLU."""

    def __init__(
        self,
        features_in: int,
        features: int,
        stride: int,
        attention: nnx.Module,
        **options: Any,
    ):
        norm, conv = _layers(**options)
        self.conv1 = conv(features_in, features, 3, stride=stride)
        self.norm1 = norm(features)
        self.conv2 = conv(features, features, 3)
        self.norm2 = norm(features)
        self.attention = attention
        self.shortcut = nnx.data(_shortcut(conv, features_in, features, stride))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, features_in) to (b, h/stride, w/stride, features)."""
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.attention(self.norm2(self.conv2(y)))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class CifarResNet14(nnx.Module):
    """The 14-layer residual network of the CIFAR-10 table.

    Args:
        name: One of `CIFAR_MODELS`:

            - `"resnet14"`: the baseline, of pre-activation blocks.
            - `"encnet14"`: `EncodingAttention` in post-activation blocks, as the code.
            - `"se_resnet14"`: `SqueezeExcitation` in the same blocks; its code was not
              published.
        num_classes: Classes n.
        width: Channels of the first stage, doubled in each of the other two: 64 or 128
            in the paper (64d, 128d). At least 16 for `se_resnet14`, 4 for `encnet14`.
        num_codes: Codewords of `encnet14`, 16 or 32 in the paper (16k, 32k).
        scale_drop: Draw the scales of `encnet14` instead of learning them; see
            `DropEncoding`.
        unbiased_running_var: See `BatchNorm`.
        dtype: Dtype of convolutions and features.
        rngs: Source of initial weights and of drawn scales.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        width: int = 64,
        num_codes: int = 16,
        scale_drop: bool = False,
        unbiased_running_var: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(
            unbiased_running_var=unbiased_running_var, dtype=dtype, rngs=rngs
        )
        norm, conv = _layers(**options)

        def block(features_in: int, features: int, stride: int) -> nnx.Module:
            if name == "resnet14":
                return PreActivationBlock(features_in, features, stride, **options)
            attention: nnx.Module
            if name == "se_resnet14":
                attention = SqueezeExcitation(features, rngs=rngs)
            else:
                attention = EncodingAttention(
                    features, num_codes=num_codes, drop=scale_drop, **options
                )
            return AttentionBlock(features_in, features, stride, attention, **options)

        self.stem = conv(3, width, 3, use_bias=True)
        self.stem_norm = norm(width)
        blocks, features = [], width
        for stage in range(3):
            for i in range(BLOCKS):
                stride = 2 if stage and i == 0 else 1
                blocks.append(block(features, width * 2**stage, stride))
                features = width * 2**stage
        self.blocks = nnx.List(blocks)
        self.norm = norm(features)
        self.linear = _linear(features, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> ClassifierOutput:
        """Classifies normalized images (b, h, w, 3) of any size, 32x32 in the paper."""
        x = jax.nn.relu(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        x = jax.nn.relu(self.norm(x))
        return ClassifierOutput(self.linear(x.mean((1, 2), dtype=jnp.float32)))


def _layers(
    *, unbiased_running_var: bool, dtype: DTypeLike, rngs: nnx.Rngs
) -> tuple[Callable[..., BatchNorm], Callable[..., Conv]]:
    norm = functools.partial(
        BatchNorm, unbiased_running_var=unbiased_running_var, dtype=dtype, rngs=rngs
    )
    # PyTorch's default, as the authors' code.
    conv = functools.partial(Conv, kernel_init=uniform_fan_in, dtype=dtype, rngs=rngs)
    return norm, conv


def _shortcut(
    conv: Callable[..., Conv], features_in: int, features: int, stride: int
) -> Conv | None:
    """Returns the 1x1 projection, with bias and no norm, where the shape changes."""
    if stride == 1 and features_in == features:
        return None
    return conv(features_in, features, stride=stride, use_bias=True)


def _linear(features_in: int, features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(features_in, features, kernel_init=uniform_fan_in, rngs=rngs)
