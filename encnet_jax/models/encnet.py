"""EncNet: a dilated residual network under the Context Encoding Module."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.models.encoding import ContextEncoding
from encnet_jax.models.layers import Conv, ConvBN, uniform_fan_in
from encnet_jax.models.resnet import ResNet
from encnet_jax.ops.resize import Size, resize_bilinear


class SegmentationOutput(NamedTuple):
    """What a segmentation model returns.

    Attributes:
        logits: (b, h, w, n) at the size of the input.
        se_logits: (b, n), float32, before the sigmoid: is the class in the image? None
            without the semantic encoding branch.
        aux_logits: (b, h, w, n) of the auxiliary head on stage 3, or None.
        stage3_se_logits: (b, n) of the second branch, on stage 3, or None.
    """

    logits: jax.Array
    se_logits: jax.Array | None = None
    aux_logits: jax.Array | None = None
    stage3_se_logits: jax.Array | None = None

    def resized(
        self, size: tuple[Size, Size], align_corners: bool
    ) -> "SegmentationOutput":
        """Returns the same with logits of another size; see `resize_bilinear`."""
        resize = functools.partial(
            resize_bilinear, size=size, align_corners=align_corners
        )
        aux_logits = None if self.aux_logits is None else resize(self.aux_logits)
        return self._replace(logits=resize(self.logits), aux_logits=aux_logits)


class SegmentationModel(nnx.Module):
    """What every model that segments has.

    Attributes:
        align_corners: How logits are upsampled; see `resize_bilinear`.
    """

    align_corners: bool

    def __call__(self, images: jax.Array) -> SegmentationOutput:
        """Segments normalized images (b, h, w, 3); see `SegmentationOutput`."""
        size = (images.shape[1], images.shape[2])
        return self.forward_low_res(images).resized(size, self.align_corners)

    def forward_low_res(self, images: jax.Array) -> SegmentationOutput:
        """As calling the model, with logits still at the size of the features."""
        raise NotImplementedError


class ClassifierHead(nnx.Module):
    """Dropout and a 1x1 convolution with bias: features to logits."""

    def __init__(self, features, num_classes, *, dropout, dtype, rngs):
        # Element by element, as PyTorch-Encoding since v1.2.0; earlier versions and
        # mmsegmentation drop whole channels.
        # A stream of this name, whatever those of `rngs`: training reseeds it by step.
        stream = nnx.Rngs(dropout=rngs.dropout())
        self.dropout = nnx.Dropout(dropout, rngs=stream)
        self.conv = Conv(
            features,
            num_classes,
            use_bias=True,
            kernel_init=uniform_fan_in,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, features) to (b, h, w, num_classes)."""
        return self.conv(self.dropout(x))


class FCNHead(nnx.Module):
    """3x3 convolution, batch norm, ReLU, dropout, 1x1 convolution.

    The auxiliary head of EncNet, and with more channels the whole head of the FCN.
    """

    def __init__(
        self,
        features: int,
        channels: int,
        num_classes: int,
        *,
        dropout: float,
        dtype: DTypeLike = jnp.float32,
        unbiased_running_var: bool = False,
        rngs: nnx.Rngs,
    ):
        self.reduce = ConvBN(
            features,
            channels,
            3,
            unbiased_running_var=unbiased_running_var,
            dtype=dtype,
            rngs=rngs,
        )
        self.classifier = ClassifierHead(
            channels, num_classes, dropout=dropout, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, features) to logits (b, h, w, num_classes)."""
        return self.classifier(self.reduce(x))


class EncodingHead(nnx.Module):
    """Head of EncNet: reduce, join lateral links, attend, classify.

    With `lateral`, stages 2 and 3 join through 1x1 convolutions and a 3x3 one
    (PyTorch-Encoding does so for PASCAL-Context and VOC).
    """

    def __init__(
        self,
        stage_features: tuple[int, ...],
        channels: int,
        num_classes: int,
        *,
        lateral: bool,
        num_codes: int,
        se_loss: bool,
        dropout: float,
        dtype: DTypeLike = jnp.float32,
        unbiased_running_var: bool = False,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(
            unbiased_running_var=unbiased_running_var, dtype=dtype, rngs=rngs
        )
        self.reduce = ConvBN(stage_features[3], channels, 3, **options)
        self.lateral = nnx.data(None)
        self.fuse = nnx.data(None)
        if lateral:
            self.lateral = nnx.List(
                [ConvBN(c, channels, **options) for c in stage_features[1:3]]
            )
            self.fuse = ConvBN(3 * channels, channels, 3, **options)
        self.context = ContextEncoding(
            channels,
            num_codes=num_codes,
            num_classes=num_classes if se_loss else None,
            **options,
        )
        self.classifier = ClassifierHead(
            channels, num_classes, dropout=dropout, dtype=dtype, rngs=rngs
        )

    def __call__(self, stages: list[jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        """Maps the four stages to logits at the size of the last, and SE logits."""
        x = self.reduce(stages[3])
        if self.lateral is not None and self.fuse is not None:
            links = [link(stage) for link, stage in zip(self.lateral, stages[1:3])]
            # At output stride 16 or 32 stage 2 is larger than the head's features.
            links = [resize_bilinear(link, (x.shape[1], x.shape[2])) for link in links]
            x = self.fuse(jnp.concatenate([x, *links], axis=-1))
        x, se_logits = self.context(x)
        return self.classifier(x), se_logits


class EncNet(SegmentationModel):
    """Context encoding network (Zhang et al. 2018, figure 2).

    Args:
        num_classes: Classes n.
        backbone: The residual network.
        lateral: Join stages 2 and 3 in the head.
        align_corners: How logits are upsampled; see `resize_bilinear`.
        num_codes: Codewords; 0 is global average pooling.
        se_loss: Predict class presence for the semantic encoding loss.
        se_stages: Where: `(4,)` as the released code, `(3, 4)` as the paper, which has
            a second Context Encoding Module on stage 3 for this alone.
        aux_head: Add the FCN head on stage 3.
        head_channels: Width of the head; 512 in every published net.
        dropout: Rate before both classifiers.
        unbiased_running_var: See `BatchNorm`; must be that of `backbone`.
        dtype: Dtype of convolutions and features.
        rngs: Source of initial weights and of dropout.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: ResNet,
        *,
        lateral: bool = False,
        align_corners: bool = True,
        num_codes: int = 32,
        se_loss: bool = True,
        se_stages: tuple[int, ...] = (4,),
        aux_head: bool = True,
        head_channels: int = 512,
        dropout: float = 0.1,
        unbiased_running_var: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(
            unbiased_running_var=unbiased_running_var, dtype=dtype, rngs=rngs
        )
        self.backbone = backbone
        self.head = EncodingHead(
            backbone.features,
            head_channels,
            num_classes,
            lateral=lateral,
            num_codes=num_codes,
            se_loss=se_loss and 4 in se_stages,
            dropout=dropout,
            **options,
        )
        features = backbone.features[2]
        self.aux_head = nnx.data(
            FCNHead(features, features // 4, num_classes, dropout=dropout, **options)
            if aux_head
            else None
        )
        self.stage3_context = nnx.data(None)
        if se_loss and 3 in se_stages:
            self.stage3_reduce = ConvBN(features, head_channels, 3, **options)
            self.stage3_context = ContextEncoding(
                head_channels, num_codes=num_codes, num_classes=num_classes, **options
            )
        self.align_corners = align_corners

    def forward_low_res(self, images: jax.Array) -> SegmentationOutput:
        """As calling the model, with logits still at the size of the features."""
        stages = self.backbone(images)
        logits, se_logits = self.head(stages)
        aux_logits = stage3_se_logits = None
        if self.aux_head is not None:
            aux_logits = self.aux_head(stages[2])
        if self.stage3_context is not None:
            _, stage3_se_logits = self.stage3_context(self.stage3_reduce(stages[2]))
        return SegmentationOutput(logits, se_logits, aux_logits, stage3_se_logits)
