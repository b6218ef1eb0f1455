"""The Encoding Layer and the Context Encoding Module (Zhang et al. 2018, section 3)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.models.layers import BatchNorm, ConvBN, uniform_fan_in
from encnet_jax.ops.resize import AnyArray


class Encoding(nnx.Module):
    """Residual encoding of features over learned codewords.

    With codewords d_k, scales s_k and features x_i, the assignment of x_i is the
    softmax over k of s_k |x_i - d_k|^2, and the result e_k sums the residuals
    x_i - d_k weighted by it. The scales are negative numbers (the paper writes
    -s_k; both originals learn the negative, drawn from [-1, 0)).

    The pixel x codeword x channel tensor of residuals is never formed: the squares are
    expanded and the sums are two matrix products. Everything is float32, relative to
    the mean codeword, so that a large common offset of features and codewords does not
    cancel.

    Args:
        features: Number of channels c.
        num_codes: Number of codewords k, at least 1.
        rngs: Source of the initial codewords, uniform in +-1/sqrt(k c), and scales.
    """

    def __init__(self, features: int, num_codes: int, *, rngs: nnx.Rngs):
        if num_codes < 1:
            raise ValueError(f"num_codes={num_codes}: at least 1 codeword is needed")
        bound = (num_codes * features) ** -0.5
        self.codewords = nnx.Param(
            jax.random.uniform(
                rngs.params(), (num_codes, features), minval=-bound, maxval=bound
            )
        )
        self.scale = nnx.Param(
            jax.random.uniform(rngs.params(), (num_codes,), minval=-1.0, maxval=0.0)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Encodes (b, ..., c), pixels in any arrangement, into float32 (b, k, c)."""
        x = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
        codewords = self.codewords[...]
        # The result does not depend on a shift of both; hence no gradient through it.
        center = jax.lax.stop_gradient(codewords.mean(0))
        x, codewords = x - center, codewords - center
        assignment = jax.nn.softmax(self._logits(x, codewords), axis=-1)
        weighted = jnp.einsum("bnk,bnc->bkc", assignment, x, precision="highest")
        return weighted - assignment.sum(1)[:, :, None] * codewords

    def _logits(self, x: jax.Array, codewords: jax.Array) -> jax.Array:
        squares = jnp.square(x).sum(-1, keepdims=True)
        products = jnp.einsum("bnc,kc->bnk", x, codewords, precision="highest")
        distances = squares - 2 * products + jnp.square(codewords).sum(-1)
        return self._scales() * distances

    def _scales(self) -> AnyArray:
        return self.scale[...]


class ContextEncoding(nnx.Module):
    """Context Encoding Module: channel attention and class presence from an encoding.

    1x1 convolution, batch norm, ReLU, encoding, batch norm over the codewords, ReLU and
    the mean over them give one vector e per image; then the features under attention,
    `relu(x + x * sigmoid(linear(e)))`, and the SE logits `linear(e)`. The paper
    sums over the codewords and has no ReLU or identity around the product; both
    originals do as written here.

    Args:
        features: Number of channels c.
        num_codes: Number of codewords; 0 takes the mean over the pixels in place of the
            encoding (the paper's K = 0).
        num_classes: Classes of the semantic encoding branch, or None for no branch.
        unbiased_running_var: See `BatchNorm`.
        dtype: Dtype of the 1x1 convolution and of the returned features.
        rngs: Source of the initial weights.
    """

    def __init__(
        self,
        features: int,
        *,
        num_codes: int = 32,
        num_classes: int | None,
        unbiased_running_var: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.reduce = ConvBN(
            features,
            features,
            unbiased_running_var=unbiased_running_var,
            dtype=dtype,
            rngs=rngs,
        )
        self.encoding = nnx.data(None)
        self.norm = nnx.data(None)
        if num_codes:
            self.encoding = Encoding(features, num_codes, rngs=rngs)
            self.norm = BatchNorm(
                num_codes,
                axis=1,
                unbiased_running_var=unbiased_running_var,
                rngs=rngs,
            )
        linear: dict[str, Any] = dict(kernel_init=uniform_fan_in, rngs=rngs)
        self.gate = nnx.Linear(features, features, **linear)
        self.se_head = nnx.data(
            nnx.Linear(features, num_classes, **linear) if num_classes else None
        )

    def encode(self, x: jax.Array) -> jax.Array:
        """Returns the vector (b, c), float32, that stands for each whole image."""
        x = self.reduce(x)
        if self.encoding is None or self.norm is None:
            return x.astype(jnp.float32).mean((1, 2))
        return jax.nn.relu(self.norm(self.encoding(x))).mean(1)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Returns the features (b, h, w, c) under attention, and the SE logits.

        The SE logits (b, num_classes), float32 and before the sigmoid, are None
        without the branch.
        """
        encoded = self.encode(x)
        gate = jax.nn.sigmoid(self.gate(encoded))
        se_logits = None if self.se_head is None else self.se_head(encoded)
        # In float32: so is the sum over the pixels that is the gradient of the gate.
        features = x.astype(jnp.float32)
        features = jax.nn.relu(features + features * gate[:, None, None, :])
        return features.astype(x.dtype), se_logits
