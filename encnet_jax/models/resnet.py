"""Residual networks with dilated last stages (He et al. 2016; Yu et al. 2017)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.models.layers import ConvBN, max_pool


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """What the name of a backbone stands for.

    Attributes:
        blocks: Number of residual blocks in each of the four stages.
        bottleneck: 1x1, 3x3, 1x1 blocks of four times the width; else two 3x3.
        dilated: Whether a stage that keeps its resolution dilates instead. Without
            dilation the receptive field stays small.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    dilated: bool = True


BACKBONES = {
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
    """(stride, dilation of the first block, dilation of the others) of each stage.

    A stage that would pass `output_stride` keeps its resolution; its first block then
    has the dilation of the stage before, its others twice that. No multi-grid.
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
    """1x1 projection; in the D variant behind an average pooling that strides."""

    def __init__(self, features_in, features_out, stride, avg_down, **options):
        self.pool = stride if avg_down else 1
        stride = 1 if avg_down else stride
        self.projection = ConvBN(
            features_in, features_out, stride=stride, relu=False, **options
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, c) to (b, ceil(h/stride), ceil(w/stride), features_out)."""
        if self.pool > 1:
            # An odd last row or column is averaged over what there is of it.
            sizes = (1, self.pool, self.pool, 1)
            # Of an even size no window reaches the padding.
            edge = (0, self.pool - 1)
            window = (jax.lax.add, sizes, sizes, ((0, 0), edge, edge, (0, 0)))
            total = jax.lax.reduce_window(x, 0.0, *window)
            one = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
            x = total / jax.lax.reduce_window(one, 0.0, *window)
        return self.projection(x)


class Block(nnx.Module):
    """Residual block: basic (two 3x3) or bottleneck (1x1, 3x3 with the stride, 1x1)."""

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
        **options,
    ):
        features_out = 4 * width if bottleneck else width
        middle: dict[str, Any] = dict(stride=stride, dilation=dilation, **options)
        if bottleneck:
            layers = [
                ConvBN(features_in, width, **options),
                ConvBN(width, width, 3, **middle),
                ConvBN(width, features_out, relu=False, **options),
            ]
        else:
            # The second convolution has the dilation of the stage also in its first
            # block (PyTorch-Encoding; mmsegmentation never dilates it).
            last: dict[str, Any] = dict(dilation=stage_dilation, relu=False, **options)
            layers = [
                ConvBN(features_in, width, 3, **middle),
                ConvBN(width, width, 3, **last),
            ]
        self.layers = nnx.List(layers)
        projects = stride != 1 or features_in != features_out
        self.shortcut = nnx.data(
            Shortcut(features_in, features_out, stride, avg_down, **options)
            if projects
            else None
        )
        self.features_out = features_out

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, h, w, features_in) to (b, h/stride, w/stride, features_out)."""
        y = x
        for layer in self.layers:
            y = layer(y)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """Residual network that returns the feature maps of its four stages.

    Args:
        backbone: A key of `BACKBONES`.
        stem: `"plain"`, one 7x7 convolution, or `"deep"`, three 3x3 ones.
        stem_width: Channels of the first two convolutions of the deep stem (the third
            has twice as many): 64 as PyTorch-Encoding's resnet50s, 32 as ResNetV1c/d.
        avg_down: Strided shortcuts average before they reduce (the D variant).
        output_stride: 8, 16 or 32: input pixels a feature of the last stage stands for.
        width: Channels of the first stage before expansion; 64 in every published net.
        remat: Stages, 1 to 4, whose blocks are computed again in the backward pass:
            only the inputs of the blocks are kept, for a third more computation.
        unbiased_running_var: See `BatchNorm`.
        dtype: Dtype of the computation.
        rngs: Source of the initial weights.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        stem: str = "deep",
        stem_width: int = 64,
        avg_down: bool = False,
        output_stride: int = 8,
        width: int = 64,
        remat: tuple[int, ...] = (),
        unbiased_running_var: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        depth = BACKBONES[backbone]
        options: dict[str, Any] = dict(
            unbiased_running_var=unbiased_running_var, dtype=dtype, rngs=rngs
        )
        if stem == "plain":
            stem_layers = [ConvBN(3, width, 7, stride=2, **options)]
            features = width
        else:
            stem_layers = [
                ConvBN(3, stem_width, 3, stride=2, **options),
                ConvBN(stem_width, stem_width, 3, **options),
                ConvBN(stem_width, 2 * stem_width, 3, **options),
            ]
            features = 2 * stem_width
        self.stem = nnx.List(stem_layers)
        stages: list[nnx.List] = []
        stage_features: list[int] = []
        for i, (stride, first, others) in enumerate(
            stage_strides_and_dilations(output_stride, depth.dilated)
        ):
            blocks = []
            for j in range(depth.blocks[i]):
                blocks.append(
                    Block(
                        features,
                        width * 2**i,
                        bottleneck=depth.bottleneck,
                        stride=stride if j == 0 else 1,
                        dilation=first if j == 0 else others,
                        stage_dilation=others,
                        avg_down=avg_down,
                        **options,
                    )
                )
                features = blocks[-1].features_out
            stages.append(nnx.List(blocks))
            stage_features.append(features)
        self.features = tuple(stage_features)
        self.stages = nnx.List(stages)
        self.remat = tuple(remat)

    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Returns the outputs of stages 1 to 4 for normalized images (b, h, w, 3)."""
        x = images
        for layer in self.stem:
            x = layer(x)
        x = max_pool(x)
        outputs = []
        for number, stage in enumerate(self.stages, start=1):
            again = number in self.remat
            apply = nnx.remat(Block.__call__) if again else Block.__call__
            for block in stage:
                x = apply(block, x)
            outputs.append(x)
        return outputs
