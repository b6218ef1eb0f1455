"""The 14-layer classifiers of the paper's CIFAR-10 experiments (section 4.3, table 5).

Each is a 3x3 convolution, three stages of two blocks with two 3x3 convolutions each,
global average pooling, and a linear layer. The layers, their order, and their biases
follow the authors' code (PyTorch-Encoding v0.4.3, experiments/recognition/model).
Names in the paper such as 16k64d give the number of codewords k and the width d.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from encnet_jax.models.encoding import SCALE_INITS, Encoding, least_scale
from encnet_jax.models.layers import BatchNorm, Conv, linear, uniform_fan_in
from encnet_jax.models.settings import Check, at_least, one_of

SE_REDUCTION = 16
ENCODING_REDUCTION = 4
BLOCKS = 2  # in each of the three stages
# PyTorch's default initialization, as in the authors' code.
_Conv = functools.partial(Conv, kernel_init=uniform_fan_in)


class ClassifierOutput(NamedTuple):
    """The output of a classifier.

    Attributes:
        logits: Float32, before the softmax.
    """

    logits: Float[Array, "b n"]


class DropEncoding(Encoding):
    """Encoding with random scales, drawn anew in every training step.

    Each codeword's scale is uniform in the range of the initial scales: [-1, 0), or the
    range of another `scale_init`. In eval mode it is the mean of that range. The
    authors' published weights belong to this variant. Their layer draws new scales
    between the forward and the backward pass; here both passes see the same ones.

    Args: as `Encoding`; there is no parameter `scale`.
    """

    def __init__(
        self,
        features: int,
        num_codes: int,
        *,
        scale_init: str = "original",
        rngs: nnx.Rngs,
    ):
        super().__init__(features, num_codes, scale_init=scale_init, rngs=rngs)
        del self.scale
        self.min_scale = least_scale(scale_init, features)
        # A stream of its own, under a fixed name by which the training step reseeds it.
        self.rngs = nnx.Rngs(dropout=rngs.dropout())
        self.deterministic = False

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the mode; for `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic

    def _scales(self) -> Float[Array, " k"]:
        num_codes = self.codewords.shape[0]
        if self.deterministic:
            return jnp.full(num_codes, self.min_scale / 2)
        key = self.rngs.dropout()
        return jax.random.uniform(key, (num_codes,), minval=self.min_scale, maxval=0.0)


class EncodingAttention(nnx.Module):
    """Channel attention from an encoding.

    A 1x1 convolution to a quarter of the channels, batch norm, ReLU, and encoding. The
    residuals of all codewords, concatenated and scaled to unit length, then go through
    a linear layer and a sigmoid. Unlike `ContextEncoding`, it neither averages over the
    codewords nor adds the features to the product.

    Args:
        features: Number of channels c.
        num_codes: Number of codewords k.
        drop: Whether scales are random; see `DropEncoding`.
        scale_init: See `Encoding`.
        rngs: Source of the initial weights and of random scales.
    """

    def __init__(
        self,
        features: int,
        *,
        num_codes: int,
        drop: bool,
        scale_init: str = "original",
        rngs: nnx.Rngs,
    ):
        reduced = features // ENCODING_REDUCTION
        self.conv = _Conv(features, reduced, use_bias=True, rngs=rngs)
        self.norm = BatchNorm(reduced, rngs=rngs)
        create = DropEncoding if drop else Encoding
        self.encoding = create(reduced, num_codes, scale_init=scale_init, rngs=rngs)
        self.linear = linear(num_codes * reduced, features, rngs=rngs)

    def gate(self, x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
        """Returns the factor of each channel, float32, in 0 to 1."""
        encoded = self.encoding(jax.nn.relu(self.norm(self.conv(x))))
        vector = encoded.reshape(encoded.shape[0], -1)
        # The bound keeps value and gradient finite for a zero vector.
        squares = jnp.maximum(jnp.square(vector).sum(-1, keepdims=True), 1e-20)
        return jax.nn.sigmoid(self.linear(vector * jax.lax.rsqrt(squares)))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the features times the gate."""
        return _gated(x, self.gate(x))


def _gated(
    x: Float[Array, "b h w c"], gate: Float[Array, "b c"]
) -> Float[Array, "b h w c"]:
    # Float32, so that the gradient of the gate, a sum over all pixels, is too.
    return (x.astype(jnp.float32) * gate[:, None, None, :]).astype(x.dtype)


class SqueezeExcitation(nnx.Module):
    """Channel attention from the mean over the image (Hu et al. 2018)."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.squeeze = linear(features, features // SE_REDUCTION, rngs=rngs)
        self.excite = linear(features // SE_REDUCTION, features, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the features times the gate."""
        mean = x.mean((1, 2), dtype=jnp.float32)
        gate = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(mean))))
        return _gated(x, gate)


class PreActivationBlock(nnx.Module):
    """Batch norm, ReLU, convolution, twice, plus the input (He et al. 2016b)."""

    def __init__(self, features_in: int, features: int, stride: int, *, rngs: nnx.Rngs):
        self.norm1 = BatchNorm(features_in, rngs=rngs)
        self.conv1 = _Conv(features_in, features, 3, stride=stride, rngs=rngs)
        self.norm2 = BatchNorm(features, rngs=rngs)
        self.conv2 = _Conv(features, features, 3, rngs=rngs)
        self.shortcut = nnx.data(_shortcut(features_in, features, stride, rngs))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
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
        *,
        rngs: nnx.Rngs,
    ):
        self.conv1 = _Conv(features_in, features, 3, stride=stride, rngs=rngs)
        self.norm1 = BatchNorm(features, rngs=rngs)
        self.conv2 = _Conv(features, features, 3, rngs=rngs)
        self.norm2 = BatchNorm(features, rngs=rngs)
        self.attention: Any = attention
        self.shortcut = nnx.data(_shortcut(features_in, features, stride, rngs))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        """Maps (b, h, w, features_in) to (b, h/stride, w/stride, features)."""
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.attention(self.norm2(self.conv2(y)))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class CifarResNet14(nnx.Module):
    """The layers that the three networks share: a stem, six blocks, a classifier.

    Args:
        num_classes: Number of classes n.
        block: Creates a block from its input channels, output channels and stride.
        width: Channels of the first stage, doubled in each of the other two: 64 or 128
            in the paper (64d, 128d).
        in_channels: Channels of the images.
        rngs: Source of the initial weights.
    """

    checks: ClassVar[dict[str, Check]] = {
        "width": at_least(1),
        "in_channels": at_least(1),
    }

    def __init__(
        self,
        num_classes: int,
        block: Callable[[int, int, int], nnx.Module],
        *,
        width: int = 64,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        self.stem = _Conv(in_channels, width, 3, use_bias=True, rngs=rngs)
        self.stem_norm = BatchNorm(width, rngs=rngs)
        blocks, features = [], width
        for stage in range(3):
            for i in range(BLOCKS):
                stride = 2 if stage and i == 0 else 1
                blocks.append(block(features, width * 2**stage, stride))
                features = width * 2**stage
        self.blocks = nnx.List(blocks)
        self.norm = BatchNorm(features, rngs=rngs)
        self.linear = linear(features, num_classes, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w c"]) -> ClassifierOutput:
        """Classifies normalized images of any size, 32x32 in the paper."""
        x = jax.nn.relu(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        x = jax.nn.relu(self.norm(x))
        return ClassifierOutput(self.linear(x.mean((1, 2), dtype=jnp.float32)))


class ResNet14(CifarResNet14):
    """The baseline, of pre-activation blocks.

    Args: as `CifarResNet14`, but `block`.
    """

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs, **settings: Any):
        block = functools.partial(PreActivationBlock, rngs=rngs)
        super().__init__(num_classes, block, rngs=rngs, **settings)


class SEResNet14(CifarResNet14):
    """`SqueezeExcitation` in post-activation blocks; its code was not published.

    Args: as `CifarResNet14`, but `block`; `width` is at least 16.
    """

    checks = CifarResNet14.checks | {"width": at_least(SE_REDUCTION)}

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs, **settings: Any):
        def block(features_in: int, features: int, stride: int) -> AttentionBlock:
            attention = SqueezeExcitation(features, rngs=rngs)
            return AttentionBlock(features_in, features, stride, attention, rngs=rngs)

        super().__init__(num_classes, block, rngs=rngs, **settings)


class EncNet14(CifarResNet14):
    """`EncodingAttention` in post-activation blocks, as in the authors' code.

    Args: as `CifarResNet14`, but `block`, and

        - `width`: At least 4.
        - `num_codes`: Number of codewords k, 16 or 32 in the paper (16k, 32k).
        - `scale_drop`: Whether scales are random; see `DropEncoding`.
        - `scale_init`: See `Encoding`.
    """

    checks = CifarResNet14.checks | {
        "width": at_least(ENCODING_REDUCTION),
        "num_codes": at_least(1),
        "scale_init": one_of(*SCALE_INITS),
    }

    def __init__(
        self,
        num_classes: int,
        *,
        num_codes: int = 32,
        scale_drop: bool = False,
        scale_init: str = "original",
        rngs: nnx.Rngs,
        **settings: Any,
    ):
        def block(features_in: int, features: int, stride: int) -> AttentionBlock:
            attention = EncodingAttention(
                features,
                num_codes=num_codes,
                drop=scale_drop,
                scale_init=scale_init,
                rngs=rngs,
            )
            return AttentionBlock(features_in, features, stride, attention, rngs=rngs)

        super().__init__(num_classes, block, rngs=rngs, **settings)


def _shortcut(
    features_in: int, features: int, stride: int, rngs: nnx.Rngs
) -> Conv | None:
    """Returns the 1x1 projection, with bias and no norm, where the shape changes."""
    if stride == 1 and features_in == features:
        return None
    return _Conv(features_in, features, stride=stride, use_bias=True, rngs=rngs)
