"""Residual networks with dilated last stages (He et al. 2016; Yu et al. 2017).

The backbone of the paper (section 3.3): stages 3 and 4 keep an eighth of the resolution
and dilate their convolutions by 2 and 4.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from encnet_jax.models.layers import ConvBN, max_pool
from encnet_jax.models.settings import Check, at_least, one_of, stages_of_four


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """The architecture that the name of a residual network stands for.

    Attributes:
        blocks: Number of residual blocks in each of the four stages.
        bottleneck: Whether blocks are 1x1, 3x3, and 1x1 convolutions that expand to
            four times the width; otherwise they are two 3x3 convolutions.
        dilated: Whether a stage that keeps its resolution dilates its convolutions.
            Without dilation the receptive field stays small.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    dilated: bool = True


RESNETS = {
    "tiny": ResNetSpec((1, 1, 1, 1), dilated=False),
    "resnet18": ResNetSpec((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetSpec((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetSpec((3, 4, 6, 3)),
    "resnet101": ResNetSpec((3, 4, 23, 3)),
    "resnet152": ResNetSpec((3, 8, 36, 3)),
}


def stage_strides_and_dilations(
    output_stride: int, dilated: bool
) -> list[tuple[int, int, int]]:
    """Returns (stride, dilation of the first block, dilation of the rest) by stage.

    A stage that would exceed `output_stride` keeps its resolution: its first block has
    the dilation of the stage before, the others twice that. There is no multi-grid.
    """
    layout, resolution, dilation = [(1, 1, 1)], 4, 1
    for _ in range(3):
        if resolution < output_stride:
            resolution *= 2
            layout.append((2, 1, 1))
        elif dilated:
            layout.append((1, dilation, dilation * 2))
            dilation *= 2
        else:
            layout.append((1, 1, 1))
    return layout


class Shortcut(nnx.Module):
    """1x1 projection; in the D variant, average pooling before it does the stride."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        stride: int,
        avg_down: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.pool = stride if avg_down else 1
        stride = 1 if avg_down else stride
        self.projection = ConvBN(
            features_in, features_out, stride=stride, relu=False, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        """Maps (b, h, w, c) to (b, ceil(h/stride), ceil(w/stride), features_out)."""
        if self.pool > 1:
            # Windows past an odd edge average only the pixels inside the image; for an
            # even size no window reaches the padding.
            sizes = (1, self.pool, self.pool, 1)
            edge = (0, self.pool - 1)
            window = (jax.lax.add, sizes, sizes, ((0, 0), edge, edge, (0, 0)))
            total = jax.lax.reduce_window(x, 0.0, *window)
            one = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
            x = total / jax.lax.reduce_window(one, 0.0, *window)
        return self.projection(x)


class Block(nnx.Module):
    """Residual block: basic (two 3x3) or bottleneck (1x1, 3x3 with the stride, 1x1).

    Args:
        features_in: Number of input channels.
        width: Channels before expansion.
        bottleneck: Whether it is a bottleneck, with 4 * `width` output channels.
        stride: Stride of the first 3x3 convolution and of the shortcut.
        dilation: Dilation of the first 3x3 convolution.
        stage_dilation: Dilation of the second 3x3 convolution of a basic block.
        avg_down: See `Shortcut`.
        rngs: Source of the initial weights.
    """

    def __init__(
        self,
        features_in: int,
        width: int,
        *,
        bottleneck: bool,
        stride: int,
        dilation: int,
        stage_dilation: int,
        avg_down: bool,
        rngs: nnx.Rngs,
    ):
        features_out = 4 * width if bottleneck else width
        middle: dict[str, Any] = dict(stride=stride, dilation=dilation, rngs=rngs)
        if bottleneck:
            layers = [
                ConvBN(features_in, width, rngs=rngs),
                ConvBN(width, width, 3, **middle),
                ConvBN(width, features_out, relu=False, rngs=rngs),
            ]
        else:
            # The second convolution has the dilation of the stage, even in its first
            # block (PyTorch-Encoding; mmsegmentation never dilates it).
            last: dict[str, Any] = dict(dilation=stage_dilation, relu=False, rngs=rngs)
            layers = [
                ConvBN(features_in, width, 3, **middle),
                ConvBN(width, width, 3, **last),
            ]
        self.layers = nnx.List(layers)
        projects = stride != 1 or features_in != features_out
        self.shortcut = nnx.data(
            Shortcut(features_in, features_out, stride, avg_down, rngs=rngs)
            if projects
            else None
        )
        self.features_out = features_out

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        """Maps (b, h, w, features_in) to (b, h/stride, w/stride, features_out)."""
        y = x
        for layer in self.layers:
            y = layer(y)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """Residual network that returns the feature maps of its four stages.

    Args:
        name: A key of `RESNETS`.
        stem: `"plain"`, one 7x7 convolution, or `"deep"`, three 3x3 convolutions.
        stem_width: Channels of the first two convolutions of the deep stem (the third
            has twice as many): 64 in PyTorch-Encoding's resnet50s, 32 in ResNetV1c/d.
        avg_down: Whether strided shortcuts average before they project (D variant).
        output_stride: 8, 16 or 32: pixels of the input per feature of the last stage.
        width: Channels of the first stage before expansion; 64 in all published
            networks.
        remat: Stages, 1 to 4, that are recomputed in the backward pass: only the inputs
            of their blocks are kept, at the cost of a second forward pass.
        in_channels: Channels of the images.
        rngs: Source of the initial weights.
    """

    checks: ClassVar[dict[str, Check]] = {
        "in_channels": at_least(1),
        "stem": one_of("plain", "deep"),
        "stem_width": one_of(32, 64),
        "output_stride": one_of(8, 16, 32),
        "width": at_least(1),
        "remat": stages_of_four,
    }

    def __init__(
        self,
        name: str = "resnet50",
        *,
        stem: str = "deep",
        stem_width: int = 64,
        avg_down: bool = False,
        output_stride: int = 8,
        width: int = 64,
        remat: Sequence[int] = (),
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        spec = RESNETS[name]
        self.stride = output_stride
        self.stem = nnx.List(_stem_layers(stem, in_channels, stem_width, width, rngs))
        features = width if stem == "plain" else 2 * stem_width
        stages: list[nnx.List] = []
        stage_features: list[int] = []
        for i, (stride, first, others) in enumerate(
            stage_strides_and_dilations(output_stride, spec.dilated)
        ):
            blocks = []
            for j in range(spec.blocks[i]):
                block = Block(
                    features,
                    width * 2**i,
                    bottleneck=spec.bottleneck,
                    stride=stride if j == 0 else 1,
                    dilation=first if j == 0 else others,
                    stage_dilation=others,
                    avg_down=avg_down,
                    rngs=rngs,
                )
                blocks.append(block)
                features = block.features_out
            stages.append(nnx.List(blocks))
            stage_features.append(features)
        self.features = tuple(stage_features)
        self.stages = nnx.List(stages)
        self.remat = tuple(remat)

    def __call__(self, images: Float[Array, "b h w c"]) -> list[jax.Array]:
        """Returns the outputs of stages 1 to 4 for normalized images.

        Stage 1 has a quarter of the resolution, (b, ceil(h/4), ceil(w/4), c), stage 4
        that of the output stride.
        """
        x = images
        for layer in self.stem:
            x = layer(x)
        x = max_pool(x)
        outputs = []
        for number, stage in enumerate(self.stages, start=1):
            recomputed = number in self.remat
            apply = nnx.remat(Block.__call__) if recomputed else Block.__call__
            for block in stage:
                x = apply(block, x)
            outputs.append(x)
        return outputs


def _stem_layers(
    stem: str, in_channels: int, stem_width: int, width: int, rngs: nnx.Rngs
) -> list[ConvBN]:
    if stem == "plain":
        return [ConvBN(in_channels, width, 7, stride=2, rngs=rngs)]
    return [
        ConvBN(in_channels, stem_width, 3, stride=2, rngs=rngs),
        ConvBN(stem_width, stem_width, 3, rngs=rngs),
        ConvBN(stem_width, 2 * stem_width, 3, rngs=rngs),
    ]
