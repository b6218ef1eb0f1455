"""EncNet: a dilated residual network with the Context Encoding Module.

Zhang et al. 2018, section 3.3 and figure 2.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from encnet_jax.models.encoding import (
    CODE_REDUCTIONS,
    GATES,
    SCALE_INITS,
    ContextActivations,
    ContextEncoding,
)
from encnet_jax.models.heads import (
    DECODER_STRIDES,
    ClassifierHead,
    Decoder,
    create_decoder,
)
from encnet_jax.models.layers import HeadConvBN
from encnet_jax.models.segmentation import (
    Backbone,
    SegmentationModel,
    SegmentationOutput,
)
from encnet_jax.models.settings import at_least, one_of
from encnet_jax.ops.resize import resize_bilinear


class EncodingHead(nnx.Module):
    """Head of EncNet: 3x3 convolution, Context Encoding Module, classifier.

    With `lateral`, 1x1 convolutions bring stages 2 and 3 to the channels of the head,
    and a 3x3 convolution fuses them with its features (PyTorch-Encoding, for
    PASCAL-Context and VOC).

    Args:
        stage_features: Number of channels of the four stages.
        channels: Channels of the head.
        num_classes: Number of classes n.
        lateral: Whether to add the lateral links.
        align_corners: How the lateral features are resized; see `resize_bilinear`.
        se_loss: Whether to add the semantic encoding branch.
        decoder: Comes between the module and the classifier, if there is one.
        dropout: Rate before the classifier.
        rngs: Source of the initial weights and of dropout.
        **context: See `ContextEncoding`.
    """

    def __init__(
        self,
        stage_features: tuple[int, ...],
        channels: int,
        num_classes: int,
        *,
        lateral: bool,
        align_corners: bool = True,
        se_loss: bool,
        decoder: Decoder | None = None,
        dropout: float,
        rngs: nnx.Rngs,
        **context: Any,
    ):
        self.reduce = HeadConvBN(stage_features[3], channels, 3, rngs=rngs)
        # `nnx.data`, because NNX would take None for a static attribute.
        self.lateral = nnx.data(None)
        self.fuse = nnx.data(None)
        self.align_corners = align_corners
        if lateral:
            self.lateral = nnx.List(
                [HeadConvBN(c, channels, rngs=rngs) for c in stage_features[1:3]]
            )
            self.fuse = HeadConvBN(3 * channels, channels, 3, rngs=rngs)
        self.context = ContextEncoding(
            channels,
            num_classes=num_classes if se_loss else None,
            rngs=rngs,
            **context,
        )
        self.decoder = nnx.data(decoder)
        self.classifier = ClassifierHead(
            decoder.features if decoder else channels,
            num_classes,
            dropout=dropout,
            rngs=rngs,
        )

    def __call__(
        self, stages: list[jax.Array]
    ) -> tuple[Float[Array, "b h w n"], Float[Array, "b n"] | None]:
        """Returns the logits, and the SE logits or None.

        The logits have the size of the last stage or, with a decoder, of the first.

        Args:
            stages: Outputs of the four stages, each (b, h/s, w/s, c).
        """
        logits, se_logits, _ = self.with_context(stages)
        return logits, se_logits

    def with_context(
        self, stages: list[jax.Array], gate: Float[Array, "b c"] | None = None
    ) -> tuple[Float[Array, "b h w n"], Float[Array, "b n"] | None, ContextActivations]:
        """Returns what the call does, and the context activations.

        Args:
            stages: Outputs of the four stages, each (b, h/s, w/s, c).
            gate: Takes the place of the gate of the module.
        """
        x = self.reduce(stages[3])
        if self.lateral is not None and self.fuse is not None:
            links = [link(stage) for link, stage in zip(self.lateral, stages[1:3])]
            # At output stride 16 or 32 stage 2 is larger than the features of the head.
            size = x.shape[1], x.shape[2]
            links = [
                resize_bilinear(link, size, align_corners=self.align_corners)
                for link in links
            ]
            x = self.fuse(jnp.concatenate([x, *links], axis=-1))
        context, se_logits = self.context.with_activations(x, gate)
        x = context.gated
        if self.decoder is not None:
            x = self.decoder(x, stages[0])
        return self.classifier(x), se_logits, context


class EncNet(SegmentationModel):
    """Context encoding network (paper, section 3.3 and figure 2).

    Args:
        num_classes: Number of classes n.
        backbone: The backbone.
        lateral: Whether the head takes stages 2 and 3 as well; see `EncodingHead`.
        num_codes: Number of codewords k; 0 is global average pooling.
        code_reduction: See `ContextEncoding`.
        gate: See `ContextEncoding`.
        scale_init: See `Encoding`.
        decoder_stride: Stride of the logits: 8 for that of the features; 4 adds a
            `Decoder`.
        se_loss: Whether to predict class presence, for the semantic encoding loss.
        se_stages: Stages to predict it from: `(4,)` as in the released code; `(3, 4)`
            as in the paper, where a second Context Encoding Module on stage 3 serves
            only this, and its gate is unused; or `(3,)`.
        head_channels: Channels of the head; 512 in all published networks.
        dropout: Rate before both classifiers.
        rngs: Source of the initial weights and of dropout.
        **settings: See `SegmentationModel`.
    """

    checks = SegmentationModel.checks | {
        "num_codes": at_least(0),
        "code_reduction": one_of(*CODE_REDUCTIONS),
        "gate": one_of(*GATES),
        "scale_init": one_of(*SCALE_INITS),
        "decoder_stride": one_of(*DECODER_STRIDES),
        "se_stages": one_of((4,), (3, 4), (3,)),
    }

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        *,
        align_corners: bool = True,
        lateral: bool = False,
        num_codes: int = 32,
        code_reduction: str = "mean",
        gate: str = "residual",
        scale_init: str = "original",
        decoder_stride: int = 8,
        se_loss: bool = True,
        se_stages: tuple[int, ...] = (4,),
        head_channels: int = 512,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
        **settings: Any,
    ):
        settings["align_corners"] = align_corners
        context: dict[str, Any] = dict(
            num_codes=num_codes,
            code_reduction=code_reduction,
            gate=gate,
            scale_init=scale_init,
            rngs=rngs,
        )
        head = EncodingHead(
            backbone.features,
            head_channels,
            num_classes,
            lateral=lateral,
            align_corners=align_corners,
            se_loss=se_loss and 4 in se_stages,
            decoder=create_decoder(
                decoder_stride,
                backbone.features[0],
                head_channels,
                align_corners=align_corners,
                rngs=rngs,
            ),
            dropout=dropout,
            **context,
        )
        super().__init__(
            num_classes, backbone, head, dropout=dropout, rngs=rngs, **settings
        )
        self.stage3_context = nnx.data(None)
        if se_loss and 3 in se_stages:
            self.stage3_reduce = HeadConvBN(
                backbone.features[2], head_channels, 3, rngs=rngs
            )
            self.stage3_context = ContextEncoding(
                head_channels, num_classes=num_classes, **context
            )

    def apply_head(self, stages: list[jax.Array]) -> SegmentationOutput:
        """Returns the logits and the SE logits; see `SegmentationModel`."""
        logits, se_logits = self.head(stages)
        stage3_se_logits = None
        if self.stage3_context is not None:
            _, stage3_se_logits = self.stage3_context(self.stage3_reduce(stages[2]))
        return SegmentationOutput(logits, se_logits, stage3_se_logits=stage3_se_logits)

    def forward_with_context(
        self,
        images: Float[Array, "b h w i"],
        gate: Float[Array, "b c"] | None = None,
    ) -> tuple[SegmentationOutput, ContextActivations]:
        """Returns what `forward_low_res` does, and the context activations.

        Outputs that only the loss reads are left out.

        Args:
            images: Normalized images.
            gate: Takes the place of the gate that the module computes from each image,
                such as the gate of another one. The SE logits do not depend on it.
        """
        stages = self.backbone(images)
        logits, se_logits, context = self.head.with_context(stages, gate)
        return SegmentationOutput(logits, se_logits), context
