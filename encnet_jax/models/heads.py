"""Heads: from the features of a backbone to logits at their size."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from encnet_jax.models.layers import Conv, HeadConvBN, he_normal, uniform_fan_in
from encnet_jax.ops.resize import adaptive_average_pool, resize_bilinear

PYRAMID = (1, 2, 3, 6)  # cells along each side (PSPNet, section 3.2)
ASPP_RATES = (12, 24, 36)  # dilations at output stride 8 (DeepLabV3, section 3.3)
ASPP_DROPOUT = 0.5
DECODER_STRIDES = (8, 4)
DECODER_LINK = 48  # channels of the link from stage 1 (DeepLabV3+, section 4.1)
HEAD_INITS = ("pytorch_encoding", "mmseg")
MMSEG_CLASSIFIER_STD = 0.01


class ClassifierHead(nnx.Module):
    """Dropout, then a 1x1 convolution with bias.

    Args:
        features: Number of input channels c.
        num_classes: Number of classes n.
        dropout: Probability of dropping an element.
        rngs: Source of the initial weights and of dropout.
    """

    def __init__(
        self, features: int, num_classes: int, *, dropout: float, rngs: nnx.Rngs
    ):
        # Drops single elements, as PyTorch-Encoding has since v1.2.0; earlier versions
        # and mmsegmentation drop whole channels. The stream is its own, under a fixed
        # name by which the training step reseeds it.
        stream = nnx.Rngs(dropout=rngs.dropout())
        self.dropout = nnx.Dropout(dropout, rngs=stream)
        self.conv = Conv(
            features, num_classes, use_bias=True, kernel_init=uniform_fan_in, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w n"]:
        """Returns the logits of every pixel."""
        return self.conv(self.dropout(x))


class Decoder(nnx.Module):
    """Joins the features of a head with stage 1, at its stride 4.

    As in DeepLabV3+ (Chen et al. 2018, section 3.1), with one 3x3 convolution: stage 1
    is reduced to 48 channels, the features are resized to its size, both are
    concatenated and fused to half the channels of the head. With `align_corners=False`
    features of stride s then lie s / 2 - 2 pixels beside those of stage 1: 2 of stride
    8, 6 of stride 16, at every place alike.

    Args:
        stage1_features: Number of channels d of stage 1.
        channels: Number of channels c of the head.
        align_corners: How the features are resized; see `resize_bilinear`.
        rngs: Source of the initial weights.

    Attributes:
        features: Number of output channels e, half of c.
    """

    def __init__(
        self,
        stage1_features: int,
        channels: int,
        *,
        align_corners: bool,
        rngs: nnx.Rngs,
    ):
        self.features = max(channels // 2, 1)
        self.link = HeadConvBN(stage1_features, DECODER_LINK, rngs=rngs)
        self.fuse = HeadConvBN(channels + DECODER_LINK, self.features, 3, rngs=rngs)
        self.align_corners = align_corners

    def __call__(
        self, x: Float[Array, "b h w c"], stage1: Float[Array, "b H W d"]
    ) -> Float[Array, "b H W e"]:
        """Returns the joined features, at the size of stage 1."""
        size = (stage1.shape[1], stage1.shape[2])
        x = resize_bilinear(x, size, align_corners=self.align_corners)
        return self.fuse(jnp.concatenate([x, self.link(stage1)], axis=-1))


def create_decoder(decoder_stride: int, *args: Any, **kwargs: Any) -> Decoder | None:
    """Returns a `Decoder` of the given arguments at stride 4, None at 8."""
    return Decoder(*args, **kwargs) if decoder_stride == 4 else None


class FCNHead(nnx.Module):
    """3x3 convolution, batch norm, ReLU, dropout, 1x1 convolution.

    The whole head of the FCN baseline and, with fewer channels, the auxiliary head of
    every network.

    Args:
        features: Number of input channels c.
        channels: Output channels of the 3x3 convolution.
        num_classes: Number of classes n.
        decoder: Comes before the classifier, if there is one.
        dropout: Rate before the classifier.
        rngs: Source of the initial weights and of dropout.
    """

    def __init__(
        self,
        features: int,
        channels: int,
        num_classes: int,
        *,
        decoder: Decoder | None = None,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.reduce = HeadConvBN(features, channels, 3, rngs=rngs)
        self.decoder = nnx.data(decoder)
        self.classifier = ClassifierHead(
            decoder.features if decoder else channels,
            num_classes,
            dropout=dropout,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        stage1: Float[Array, "b H W d"] | None = None,
    ) -> Float[Array, "b ... n"]:
        """Returns the logits at the size of x or, with a decoder, of stage 1.

        Args:
            x: Features of one stage.
            stage1: Features of stage 1; the decoder needs them.
        """
        x = self.reduce(x)
        if self.decoder is not None:
            assert stage1 is not None  # `FCN` passes it
            x = self.decoder(x, stage1)
        return self.classifier(x)


class PSPHead(nnx.Module):
    """Pyramid pooling, 3x3 convolution, classifier (PSPNet, Zhao et al. 2017).

    The features are averaged over grids of 1, 2, 3 and 6 cells a side. Each grid is
    reduced to a quarter of the channels, resized to the size of the features, and
    concatenated with them.

    Args:
        features: Channels c of the last stage.
        channels: Output channels of the 3x3 convolution.
        num_classes: Number of classes n.
        align_corners: How the grids are resized; see `resize_bilinear`.
        dropout: Rate before the classifier.
        rngs: Source of the initial weights and of dropout.
    """

    def __init__(
        self,
        features: int,
        channels: int,
        num_classes: int,
        *,
        align_corners: bool = True,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
    ):
        # A quarter of the features, as in the paper and PyTorch-Encoding.
        # mmsegmentation takes `channels`, which is the same in the published networks.
        reduced = features // 4
        self.pyramid = nnx.List(
            [HeadConvBN(features, reduced, rngs=rngs) for _ in PYRAMID]
        )
        fused = features + reduced * len(PYRAMID)
        self.reduce = HeadConvBN(fused, channels, 3, rngs=rngs)
        self.classifier = ClassifierHead(
            channels, num_classes, dropout=dropout, rngs=rngs
        )
        self.align_corners = align_corners

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w n"]:
        """Returns the logits of every pixel."""
        size = (x.shape[1], x.shape[2])
        levels = [
            resize_bilinear(
                reduce(adaptive_average_pool(x, bins)),
                size,
                align_corners=self.align_corners,
            )
            for reduce, bins in zip(self.pyramid, PYRAMID)
        ]
        return self.classifier(self.reduce(jnp.concatenate([x, *levels], axis=-1)))


class DeepLabV3Head(nnx.Module):
    """Atrous spatial pyramid pooling, 3x3 convolution, classifier (Chen et al. 2017).

    Five branches of `channels` each: a 1x1 convolution, three dilated 3x3 convolutions
    and the mean over the image. A 1x1 convolution fuses them. The 3x3 convolution after
    it is in PyTorch-Encoding and torchvision, but not in the paper; mmsegmentation has
    it in place of the 1x1 convolution.

    Args:
        features: Channels c of the last stage.
        channels: Channels of each branch and of all layers after them; 256 as
            published.
        num_classes: Number of classes n.
        output_stride: Stride of the features. At each, the dilations cover the same
            part of the image: 12, 24, 36 at 8; 6, 12, 18 at 16 (paper); 3, 6, 9 at 32.
        dropout: Rate before the classifier. Unless it is 0, dropout of single elements,
            of rate 0.5, also follows the fusing 1x1 convolution, as in torchvision
            (which has only that one). PyTorch-Encoding drops whole channels there.
        rngs: Source of the initial weights and of dropout.
    """

    def __init__(
        self,
        features: int,
        channels: int,
        num_classes: int,
        *,
        output_stride: int = 8,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
    ):
        rates = [rate * 8 // output_stride for rate in ASPP_RATES]
        self.views = nnx.List(
            [
                HeadConvBN(features, channels, rngs=rngs),
                *(
                    HeadConvBN(features, channels, 3, dilation=r, rngs=rngs)
                    for r in rates
                ),
            ]
        )
        self.image = HeadConvBN(features, channels, rngs=rngs)
        self.fuse = HeadConvBN((len(self.views) + 1) * channels, channels, rngs=rngs)
        self.dropout = nnx.Dropout(
            ASPP_DROPOUT if dropout else 0.0, rngs=nnx.Rngs(dropout=rngs.dropout())
        )
        self.reduce = HeadConvBN(channels, channels, 3, rngs=rngs)
        self.classifier = ClassifierHead(
            channels, num_classes, dropout=dropout, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w n"]:
        """Returns the logits of every pixel."""
        mean = x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        views = [view(x) for view in self.views]
        # Broadcast in float32, so that its gradient, a sum over all pixels, is too.
        image = self.image(mean).astype(jnp.float32)
        image = jnp.broadcast_to(image, views[0].shape).astype(x.dtype)
        x = self.fuse(jnp.concatenate([*views, image], axis=-1))
        return self.classifier(self.reduce(self.dropout(x)))


def init_heads_as_mmseg(model: nnx.Module, rngs: nnx.Rngs) -> None:
    """Draws the convolutions outside the backbone anew, as mmsegmentation does.

    Convolutions get He initialization by fan-out; classifiers get normal weights with
    standard deviation 0.01, and zero biases. Linear layers, codewords, and scales are
    left alone, since both originals initialize them alike.

    Args:
        model: A segmentation model.
        rngs: Source of the new weights.
    """
    for path, module in nnx.iter_modules(model):
        if not isinstance(module, Conv) or path[0] == "backbone":
            continue
        init = he_normal
        if module.bias is not None:
            init = nnx.initializers.normal(MMSEG_CLASSIFIER_STD)
            module.bias.set_value(jnp.zeros_like(module.bias[...]))
        kernel = module.kernel[...]
        module.kernel.set_value(init(rngs.params(), kernel.shape, kernel.dtype))
