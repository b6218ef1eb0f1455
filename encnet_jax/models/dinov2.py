"""DINOv2: vision transformers trained without labels (Oquab et al. 2023).

ViT-S/14 and ViT-B/14 of arXiv 2304.07193, without registers. All four stages have the
resolution of the patches: a feature per 14x14 pixels.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from encnet_jax.models.layers import uniform_bias, uniform_fan_in
from encnet_jax.models.settings import Check, stages_of_four
from encnet_jax.ops.conv_bias import add_bias
from encnet_jax.ops.resize import Size, resize_bicubic, resize_bilinear

PATCH = 14  # pixels, height and width
_EPSILON = 1e-6
# As the original: LayerScale starts at 1e-5, linear layers and positions at a deviation
# of 0.02, the class token at 1e-6; the embedding of the patches as PyTorch's layers do.
_LAYER_SCALE = 1e-5
_WEIGHTS = nnx.initializers.normal(0.02)
_CLASS_TOKEN = nnx.initializers.normal(1e-6)


@dataclasses.dataclass(frozen=True)
class ViTSpec:
    """The architecture that the name of a vision transformer stands for.

    Attributes:
        features: Number of channels of every token.
        blocks: Number of blocks, a multiple of 4.
        heads: Attention heads of a block.
        grid: Patches along each side of the images of pretraining, for which positions
            are learned.
    """

    features: int
    blocks: int
    heads: int
    grid: int = 37


DINOV2 = {
    "dinov2_vits14": ViTSpec(384, 12, 6),
    "dinov2_vitb14": ViTSpec(768, 12, 12),
}


class LayerNorm(nnx.LayerNorm):
    """Layer normalization in float32; the result has the dtype of the input."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        super().__init__(features, epsilon=_EPSILON, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:  # type: ignore[override]
        """Normalizes each token."""
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


class LayerScale(nnx.Module):
    """A learned factor per channel (Touvron et al. 2021, section 2)."""

    def __init__(self, features: int):
        self.gamma = nnx.Param(jnp.full((features,), _LAYER_SCALE))

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Scales the channels."""
        # Float32, so that the gradient of gamma, a sum over all tokens, is too.
        return (x.astype(jnp.float32) * self.gamma[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs):
        self.qkv = _linear(features, 3 * features, rngs)
        self.proj = _linear(features, features, rngs)
        self.heads = heads

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Returns the attended values of each token, projected."""
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads)
        y = jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)))
        return self.proj(y.reshape(b, n, c))


class MLP(nnx.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.fc1 = _linear(features, 4 * features, rngs)
        self.fc2 = _linear(4 * features, features, rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Maps each token by itself."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
    """Attention and MLP, each normalized before and scaled after, with residuals."""

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(features, rngs=rngs)
        self.attn = Attention(features, heads, rngs=rngs)
        self.ls1 = LayerScale(features)
        self.norm2 = LayerNorm(features, rngs=rngs)
        self.mlp = MLP(features, rngs=rngs)
        self.ls2 = LayerScale(features)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Returns the tokens after the block."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DINOv2(nnx.Module):
    """Vision transformer that returns the feature maps of four depths.

    A stage is a quarter of the blocks; of 12 blocks, the stages end with 3, 6, 9, and
    12. The output of a stage is that of its last block without the class token, after
    the final layer norm: what `get_intermediate_layers` of the original returns, and
    what its segmentation heads take.

    Args:
        name: A key of `DINOV2`.
        remat: Stages, 1 to 4, that are recomputed in the backward pass; see `ResNet`.
        rngs: Source of the initial weights.

    Attributes:
        features: Number of channels of each stage.
    """

    stride = PATCH
    checks: ClassVar[dict[str, Check]] = {"remat": stages_of_four}
    centered = True
    network_checks: ClassVar[dict[str, Check]] = {
        "decoder_stride": lambda value: (
            ""
            if value == 8
            else f"allowed is 8, as all stages of the backbone have stride {PATCH}"
        )
    }

    def __init__(
        self,
        name: str = "dinov2_vits14",
        *,
        remat: Sequence[int] = (),
        rngs: nnx.Rngs,
    ):
        spec = DINOV2[name]
        features = spec.features
        self.features = (features,) * 4
        self.patch_embed = _PatchEmbedding(
            3,
            features,
            (PATCH, PATCH),
            strides=PATCH,
            padding="VALID",
            kernel_init=uniform_fan_in,
            bias_init=uniform_bias(3 * PATCH**2),
            rngs=rngs,
        )
        self.cls_token = nnx.Param(_CLASS_TOKEN(rngs.params(), (1, 1, features)))
        # The position of the class token comes first, then the patches row by row.
        positions = (1, 1 + spec.grid**2, features)
        self.pos_embed = nnx.Param(_WEIGHTS(rngs.params(), positions, jnp.float32))
        self.blocks = nnx.List(
            [Block(features, spec.heads, rngs=rngs) for _ in range(spec.blocks)]
        )
        self.norm = LayerNorm(features, rngs=rngs)
        self.grid = spec.grid
        self.remat = tuple(remat)
        self.set_dtype(jnp.float32)

    def set_dtype(self, dtype: DTypeLike) -> None:
        """Sets the dtype of products and tokens; see `set_layer_options`."""
        self.dtype = dtype
        self.set_attributes(nnx.Linear, nnx.Conv, dtype=dtype)

    def __call__(self, images: Float[Array, "b h w 3"]) -> list[jax.Array]:
        """Returns the outputs of stages 1 to 4, each (b, ceil(h/14), ceil(w/14), c).

        Images whose size is no multiple of 14 are resized to the next one, so that
        patch i of n always covers the i-th of n equal parts of the image.
        """
        rows, columns = (-(-size // PATCH) for size in images.shape[1:3])
        size = (rows * PATCH, columns * PATCH)
        x = self._tokens(resize_bilinear(images, size, align_corners=False))
        outputs = []
        stage_blocks = len(self.blocks) // 4
        for index, block in enumerate(self.blocks):
            recomputed = index // stage_blocks + 1 in self.remat
            apply: Callable[..., Any] = (
                nnx.remat(Block.__call__) if recomputed else Block.__call__
            )
            x = apply(block, x)
            if (index + 1) % stage_blocks == 0:
                patches = self.norm(x)[:, 1:]
                outputs.append(patches.reshape(x.shape[0], rows, columns, x.shape[2]))
        return outputs

    def _tokens(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
        """Returns the class token and the patches, with their positions."""
        patches = self.patch_embed(images)
        b, rows, columns, c = patches.shape
        patches = patches + self._positions((rows, columns))
        first = self.cls_token[...] + self.pos_embed[...][:, :1]
        tokens = [
            jnp.broadcast_to(first, (b, 1, c)),
            patches.reshape(b, rows * columns, c),
        ]
        return jnp.concatenate([t.astype(self.dtype) for t in tokens], axis=1)

    def _positions(self, size: tuple[Size, Size]) -> Float[Array, "1 h w c"]:
        """Returns the positions of the patches, resized as timm does."""
        learned = self.pos_embed[...][:, 1:]
        shape = (1, self.grid, self.grid, learned.shape[2])
        return resize_bicubic(learned.reshape(shape), size)


def _linear(features_in: int, features_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    return _Linear(features_in, features_out, kernel_init=_WEIGHTS, rngs=rngs)


class _Linear(nnx.Linear):
    """The gradient of its bias is a sum in float32 over all tokens."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        if self.dtype == jnp.float32:  # Flax's own layer, which exporters know
            return super().__call__(inputs)
        dtype, bias = _dtype_and_bias(self)
        y = inputs.astype(dtype) @ self.kernel[...].astype(dtype)
        return add_bias(y, bias, dtype)


class _PatchEmbedding(nnx.Conv):
    """The gradient of its bias is a sum in float32 over all patches."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        if self.dtype == jnp.float32:
            return super().__call__(inputs)
        dtype, bias = _dtype_and_bias(self)
        y = jax.lax.conv_general_dilated(
            inputs.astype(dtype),
            self.kernel[...].astype(dtype),
            (PATCH, PATCH),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return add_bias(y, bias, dtype)


def _dtype_and_bias(layer: Any) -> tuple[Any, Any]:
    """Returns the dtype and bias, optional in Flax's layers but always set here."""
    return layer.dtype, layer.bias[...]
