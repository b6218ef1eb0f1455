"""What all segmentation networks share, and the baselines that EncNet is compared with.

A network is a backbone, a head on its last stage and an optional auxiliary head.
"""

import functools
import numbers
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float

from encnet_jax.errors import UserError
from encnet_jax.models.heads import (
    DECODER_STRIDES,
    DeepLabV3Head,
    FCNHead,
    PSPHead,
    create_decoder,
)
from encnet_jax.models.settings import Check, at_least, one_of
from encnet_jax.ops.resize import Size, resize_bilinear


class SegmentationOutput(NamedTuple):
    """The outputs of a segmentation network.

    Attributes:
        logits: Pixel logits, at the size of the input; from `forward_low_res`, at that
            of the features.
        se_logits: Logits of class presence, float32, before the sigmoid; None without
            the semantic encoding branch.
        aux_logits: Pixel logits of the auxiliary head on stage 3, or None.
        stage3_se_logits: Logits of class presence from stage 3, or None.
    """

    logits: Float[Array, "b h w n"]
    se_logits: Float[Array, "b n"] | None = None
    aux_logits: Float[Array, "b h w n"] | None = None
    stage3_se_logits: Float[Array, "b n"] | None = None

    def resized(
        self, size: tuple[Size, Size], align_corners: bool
    ) -> "SegmentationOutput":
        """Returns the outputs with pixel logits resized; see `resize_bilinear`."""
        resize = functools.partial(
            resize_bilinear, size=size, align_corners=align_corners
        )
        aux_logits = None if self.aux_logits is None else resize(self.aux_logits)
        return self._replace(logits=resize(self.logits), aux_logits=aux_logits)


@runtime_checkable
class Backbone(Protocol):
    """A network that returns the feature maps of four stages.

    `pad_to_stride` needs an attribute `stride`: the pixels per feature of the last
    stage, along an axis. Feature i then lies on pixel i * `stride` or, if an attribute
    `centered` is true, at the center of the i-th of equal parts of the image.

    Attributes:
        features: Number of channels of each stage.
    """

    features: tuple[int, ...]

    def eval(self) -> None:
        """Fixes the running statistics, as every `nnx.Module` does."""

    def __call__(self, images: Float[Array, "b h w c"]) -> list[jax.Array]:
        """Returns the outputs of stages 1 to 4, each (b, h/s, w/s, c)."""


def _rate(value: Any) -> str:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    fits = number and 0 <= value < 1
    return "" if fits else "must be a number of at least 0 and below 1"


class SegmentationModel(nnx.Module):
    """A backbone, a head and an auxiliary FCN head on stage 3.

    The auxiliary head has a quarter of the channels of stage 3 (PyTorch-Encoding). A
    subclass creates its head, and overrides `apply_head` where that takes or returns
    more than one array.

    Args:
        num_classes: Number of classes n.
        backbone: The backbone.
        head: Maps the features of the last stage to logits.
        align_corners: How logits are upsampled; see `resize_bilinear`.
        pad_to_stride: Whether prediction pads images; see `padded_size`.
        aux_head: Whether to add the auxiliary head.
        freeze_backbone: Whether the backbone is never trained: its batch norms keep
            their running statistics, and no gradient reaches it.
        dropout: Rate before the classifier of the auxiliary head.
        rngs: Source of the initial weights and of dropout.
    """

    checks: ClassVar[dict[str, Check]] = {
        "head_channels": at_least(1),
        "dropout": _rate,
    }

    # Sizes that prediction pads to: multiples of this, plus that; see `padded_size`.
    size_divisor: int = 1
    size_remainder: int = 0

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        head: nnx.Module,
        *,
        align_corners: bool = True,
        pad_to_stride: bool = False,
        aux_head: bool = True,
        freeze_backbone: bool = False,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.head: Any = head
        features = backbone.features[2]
        self.aux_head = nnx.data(
            FCNHead(features, features // 4, num_classes, dropout=dropout, rngs=rngs)
            if aux_head
            else None
        )
        self.align_corners = align_corners
        self.size_divisor, self.size_remainder = 1, 0
        if pad_to_stride:
            stride = getattr(backbone, "stride", None)
            if stride is None:
                name = type(backbone).__name__
                raise UserError(
                    f"model.pad_to_stride=True: {name} has no attribute `stride`; set "
                    "it there, or model.pad_to_stride=False"
                )
            self.size_divisor = stride
            centered = getattr(backbone, "centered", False)
            self.size_remainder = int(align_corners and not centered)
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            backbone.eval()

    def train(self, **attributes: Any) -> None:
        """Sets training mode, as `nnx.Module.train`; a frozen backbone stays fixed."""
        super().train(**attributes)
        if self.freeze_backbone:
            self.backbone.eval()

    def __call__(self, images: Float[Array, "b h w c"]) -> SegmentationOutput:
        """Segments normalized images; logits have the size of the images."""
        size = (images.shape[1], images.shape[2])
        return self.forward_low_res(images).resized(size, self.align_corners)

    def forward_low_res(self, images: Float[Array, "b h w c"]) -> SegmentationOutput:
        """Segments normalized images; logits have the size of the features."""
        stages = self.backbone(images)
        if self.freeze_backbone:
            stages = [jax.lax.stop_gradient(stage) for stage in stages]
        output = self.apply_head(stages)
        if self.aux_head is None:
            return output
        return output._replace(aux_logits=self.aux_head(stages[2]))

    def padded_size(self, size: tuple[Size, Size]) -> tuple[Size, Size]:
        """Returns the height and width to which prediction pads images and windows.

        With `pad_to_stride`, this is the next multiple of the backbone's stride; plus 1
        with `align_corners`, unless the backbone is `centered`. Otherwise the size
        stays, as in both originals: features that cover more than the image (57 of
        stride 8, for 450 pixels) are then squeezed into it, off their own pixels.
        """
        divisor, rest = self.size_divisor, self.size_remainder
        if divisor == 1:
            return size
        height, width = (
            (length - rest + divisor - 1) // divisor * divisor + rest for length in size
        )
        return height, width

    def apply_head(self, stages: list[jax.Array]) -> SegmentationOutput:
        """Returns all outputs except the auxiliary head's, given the backbone's.

        Args:
            stages: Outputs of the four stages, each (b, h/s, w/s, c).
        """
        return SegmentationOutput(self.head(stages[3]))


class FCN(SegmentationModel):
    """Dilated FCN: EncNet without the Context Encoding Module.

    Args:
        num_classes: See `SegmentationModel`.
        backbone: See `SegmentationModel`.
        decoder_stride: Stride of the logits: 8 for that of the features; 4 adds a
            `Decoder`.
        head_channels: Channels of the head; 512 in all published networks.
        dropout: Rate before both classifiers.
        rngs: Source of the initial weights and of dropout.
        **settings: See `SegmentationModel`.
    """

    checks = SegmentationModel.checks | {"decoder_stride": one_of(*DECODER_STRIDES)}

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        *,
        align_corners: bool = True,
        decoder_stride: int = 8,
        head_channels: int = 512,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
        **settings: Any,
    ):
        settings["align_corners"] = align_corners
        decoder = create_decoder(
            decoder_stride,
            backbone.features[0],
            head_channels,
            align_corners=align_corners,
            rngs=rngs,
        )
        shape = (backbone.features[3], head_channels, num_classes)
        head = FCNHead(*shape, decoder=decoder, dropout=dropout, rngs=rngs)
        super().__init__(
            num_classes, backbone, head, dropout=dropout, rngs=rngs, **settings
        )

    def apply_head(self, stages: list[jax.Array]) -> SegmentationOutput:
        """Returns the logits; see `SegmentationModel`."""
        return SegmentationOutput(self.head(stages[3], stages[0]))


class PSPNet(SegmentationModel):
    """PSPNet (Zhao et al. 2017) on a dilated backbone; see `PSPHead`.

    Args: as `FCN`, but `decoder_stride`.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        *,
        align_corners: bool = True,
        head_channels: int = 512,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
        **settings: Any,
    ):
        shape = (backbone.features[3], head_channels, num_classes)
        settings["align_corners"] = align_corners
        head = PSPHead(*shape, align_corners=align_corners, dropout=dropout, rngs=rngs)
        super().__init__(
            num_classes, backbone, head, dropout=dropout, rngs=rngs, **settings
        )


class DeepLabV3(SegmentationModel):
    """DeepLabV3 (Chen et al. 2017); see `DeepLabV3Head`.

    Args: as for `PSPNet`, and

        - `output_stride`: Stride of the backbone; read only where the backbone has no
          attribute `stride`.
        - `head_channels`: Twice the channels of the head, so that the default gives the
          published 256.
    """

    checks = SegmentationModel.checks | {
        "head_channels": at_least(2),
        "output_stride": one_of(8, 16, 32),
    }

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        *,
        output_stride: int = 8,
        head_channels: int = 512,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
        **settings: Any,
    ):
        shape = (backbone.features[3], head_channels // 2, num_classes)
        stride = getattr(backbone, "stride", output_stride)
        head = DeepLabV3Head(*shape, output_stride=stride, dropout=dropout, rngs=rngs)
        super().__init__(
            num_classes, backbone, head, dropout=dropout, rngs=rngs, **settings
        )
