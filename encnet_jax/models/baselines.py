"""The systems that EncNet is compared with, on the same backbone."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.models.encnet import FCNHead, SegmentationOutput
from encnet_jax.models.layers import resize_bilinear
from encnet_jax.models.resnet import ResNet


class FCN(nnx.Module):
    """Dilated fully convolutional network: EncNet without its module.

    Args: as `EncNet`; the head has a quarter of the last stage's channels, as in
    PyTorch-Encoding (512 with the published backbones).
    """

    def __init__(
        self,
        num_classes: int,
        backbone: ResNet,
        *,
        align_corners: bool = True,
        aux_head: bool = True,
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
        self.head = FCNHead(stage4, head_channels, num_classes, **options)
        self.auxiliary = nnx.data(
            FCNHead(stage3, stage3 // 4, num_classes, **options) if aux_head else None
        )
        self.align_corners = align_corners

    def __call__(self, images: jax.Array) -> SegmentationOutput:
        """Segments normalised images (b, h, w, 3); see `SegmentationOutput`."""
        stages = self.backbone(images)
        logits = self._upsample(self.head(stages[3]), images)
        auxiliary = None
        if self.auxiliary is not None:
            auxiliary = self._upsample(self.auxiliary(stages[2]), images)
        return SegmentationOutput(logits, auxiliary=auxiliary)

    def _upsample(self, logits: jax.Array, images: jax.Array) -> jax.Array:
        size = (images.shape[1], images.shape[2])
        return resize_bilinear(logits, size, align_corners=self.align_corners)
