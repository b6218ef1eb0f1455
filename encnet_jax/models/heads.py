"""The systems that EncNet is compared with, on the same backbone."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.models.encnet import (
    ClassifierHead,
    FCNHead,
    SegmentationModel,
    SegmentationOutput,
)
from encnet_jax.models.layers import ConvBN
from encnet_jax.models.resnet import ResNet
from encnet_jax.ops.resize import adaptive_average_pool, resize_bilinear

BASELINES = ("fcn", "pspnet", "deeplabv3")
PYRAMID = (1, 2, 3, 6)  # cells along each side (PSPNet, section 3.2)
ASPP_RATES = (12, 24, 36)  # dilations at output stride 8 (DeepLabV3, section 3.3)
ASPP_DROPOUT = 0.5


class PSPHead(nnx.Module):
    """Pyramid pooling, 3x3 convolution, classifier (PSPNet, Zhao et al. 2017).

    The features are averaged over grids of 1, 2, 3 and 6 cells a side, each reduced to
    a quarter of the channels, resized to the size of the features and joined to them.

    Args:
        features: Channels of the last stage.
        channels: Channels behind the 3x3 convolution.
        num_classes: Classes n.
        align_corners: How the pyramid is resized; see `resize_bilinear`.
        dropout: Rate before the classifier.
        unbiased_running_var: See `BatchNorm`.
        dtype: Dtype of convolutions and features.
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
        unbiased_running_var: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(
            unbiased_running_var=unbiased_running_var, dtype=dtype, rngs=rngs
        )
        # A quarter of the features as in the paper and PyTorch-Encoding; mmsegmentation
        # has `channels`, which are as many in the published nets.
        reduced = features // 4
        self.pyramid = nnx.List([ConvBN(features, reduced, **options) for _ in PYRAMID])
        joined = features + reduced * len(PYRAMID)
        self.reduce = ConvBN(joined, channels, 3, **options)
        self.classifier = ClassifierHead(
            channels, num_classes, dropout=dropout, dtype=dtype, rngs=rngs
        )
        self.align_corners = align_corners

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, features) to logits (b, h, w, num_classes)."""
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

    Five views of the features, each of `channels`: a 1x1 convolution, three dilated 3x3
    ones and the mean over the image; then a 1x1 convolution over all of them. The 3x3
    convolution behind it is of PyTorch-Encoding and torchvision, not of the paper;
    mmsegmentation has it in place of the 1x1 one.

    Args:
        features: Channels of the last stage.
        channels: Channels of each view and of all that follows; 256 as published.
        num_classes: Classes n.
        output_stride: Of the features. The dilations cover the same part of the image
            at each: 12, 24, 36 at 8; 6, 12, 18 at 16 (paper); 3, 6, 9 at 32.
        dropout: Rate before the classifier. Unless it is 0, there also is dropout of
            rate 0.5 behind the joining 1x1 convolution, as in PyTorch-Encoding and
            torchvision (which has that one alone).
        unbiased_running_var: See `BatchNorm`.
        dtype: Dtype of convolutions and features.
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
        unbiased_running_var: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(
            unbiased_running_var=unbiased_running_var, dtype=dtype, rngs=rngs
        )
        rates = [rate * 8 // output_stride for rate in ASPP_RATES]
        self.views = nnx.List(
            [
                ConvBN(features, channels, **options),
                *(ConvBN(features, channels, 3, dilation=r, **options) for r in rates),
            ]
        )
        self.image = ConvBN(features, channels, **options)
        self.fuse = ConvBN((len(self.views) + 1) * channels, channels, **options)
        self.dropout = nnx.Dropout(
            ASPP_DROPOUT if dropout else 0.0, rngs=nnx.Rngs(dropout=rngs.dropout())
        )
        self.reduce = ConvBN(channels, channels, 3, **options)
        self.classifier = ClassifierHead(
            channels, num_classes, dropout=dropout, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, features) to logits (b, h, w, num_classes)."""
        mean = x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        views = [view(x) for view in self.views]
        # In float32: so is the sum over the pixels that is its gradient.
        image = self.image(mean).astype(jnp.float32)
        image = jnp.broadcast_to(image, views[0].shape).astype(x.dtype)
        x = self.fuse(jnp.concatenate([*views, image], axis=-1))
        return self.classifier(self.reduce(self.dropout(x)))


class Baseline(SegmentationModel):
    """A dilated residual network with another head in place of EncNet's.

    Args: as `EncNet`; but the head is that of `name`, one of `BASELINES`:

        - `"fcn"`: EncNet without its module.
        - `"pspnet"`: see `PSPHead`.
        - `"deeplabv3"`: see `DeepLabV3Head`; its channels are half of `head_channels`,
          which makes the published 256 of the default.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        backbone: ResNet,
        *,
        align_corners: bool = True,
        aux_head: bool = True,
        output_stride: int = 8,
        head_channels: int = 512,
        dropout: float = 0.1,
        unbiased_running_var: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(
            dropout=dropout,
            unbiased_running_var=unbiased_running_var,
            dtype=dtype,
            rngs=rngs,
        )
        stage3, stage4 = backbone.features[2:]
        self.backbone = backbone
        self.head = _create_head(
            name,
            stage4,
            head_channels,
            num_classes,
            align_corners=align_corners,
            output_stride=output_stride,
            **options,
        )
        self.aux_head = nnx.data(
            FCNHead(stage3, stage3 // 4, num_classes, **options) if aux_head else None
        )
        self.align_corners = align_corners

    def forward_low_res(self, images: jax.Array) -> SegmentationOutput:
        """As calling the model, with logits still at the size of the features."""
        stages = self.backbone(images)
        aux_logits = None if self.aux_head is None else self.aux_head(stages[2])
        return SegmentationOutput(self.head(stages[3]), aux_logits=aux_logits)


def _create_head(
    name: str,
    features: int,
    channels: int,
    num_classes: int,
    *,
    align_corners: bool,
    output_stride: int,
    **options: Any,
) -> FCNHead | PSPHead | DeepLabV3Head:
    if name == "pspnet":
        options["align_corners"] = align_corners
        return PSPHead(features, channels, num_classes, **options)
    if name == "deeplabv3":
        options["output_stride"] = output_stride
        return DeepLabV3Head(features, channels // 2, num_classes, **options)
    return FCNHead(features, channels, num_classes, **options)
