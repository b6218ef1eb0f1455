"""The Encoding Layer and the Context Encoding Module (Zhang et al. 2018, section 3).

Shapes: b images, h x w pixels (p when flattened), c channels, k codewords, n classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from encnet_jax.models.layers import BatchNorm, HeadConvBN, linear
from encnet_jax.ops.resize import AnyArray

SCALE_INITS = ("original", "scaled")
CODE_REDUCTIONS = ("mean", "sum")
GATES = ("residual", "plain")


def least_scale(scale_init: str, features: int) -> float:
    """Returns the lower bound of the scales at the start; the upper one is 0."""
    return -1.0 if scale_init == "original" else -1.0 / features


class Encoding(nnx.Module):
    """The Encoding Layer: residuals of features over learned codewords.

    Paper, section 3.1, equation 1: with features x_i, codewords d_k and scales s_k,

        e_k = sum_i a_ik (x_i - d_k),   a_ik = softmax_k(s_k |x_i - d_k|^2).

    The scales here are negative. The paper writes -s_k; both original implementations
    learn the negative, drawn from [-1, 0).

    The (pixels, k, c) tensor of residuals is never formed: the squares are expanded,
    and both sums are matrix products. Everything is float32 and relative to the mean
    codeword, so that a large offset common to features and codewords does not cancel.

    Args:
        features: Number of channels c.
        num_codes: Number of codewords k, at least 1.
        scale_init: How the scales start. `"original"`: uniform in [-1, 0), as in both
            original implementations. `"scaled"`: uniform in [-1/c, 0). Behind batch
            norm and ReLU |x - d|^2 is about c/2 for every codeword at first, so that
            the original start gives nearly all pixels to the few codewords whose scales
            are closest to 0, and the others next to no gradient.
        rngs: Source of the initial codewords, uniform in +-1/sqrt(k c), and scales.
    """

    def __init__(
        self,
        features: int,
        num_codes: int,
        *,
        scale_init: str = "original",
        rngs: nnx.Rngs,
    ):
        if num_codes < 1:
            raise ValueError(f"num_codes={num_codes}: at least 1 codeword is needed")
        bound = (num_codes * features) ** -0.5
        self.codewords = nnx.Param(
            jax.random.uniform(
                rngs.params(), (num_codes, features), minval=-bound, maxval=bound
            )
        )
        least = least_scale(scale_init, features)
        self.scale = nnx.Param(
            jax.random.uniform(rngs.params(), (num_codes,), minval=least, maxval=0.0)
        )

    def __call__(self, x: Float[Array, "b *pixels c"]) -> Float[Array, "b k c"]:
        """Encodes features; the result is float32, whatever their dtype."""
        return self.with_assignment(x)[0]

    def with_assignment(
        self, x: Float[Array, "b *pixels c"]
    ) -> tuple[Float[Array, "b k c"], Float[Array, "b p k"]]:
        """Returns the encoding, and each codeword's share of each of p pixels.

        These shares are a_ik; over the codewords they sum to 1.
        """
        x, codewords = self._centered(x)
        assignment = jax.nn.softmax(self._logits(x, codewords), axis=-1)
        weighted = jnp.einsum("bpk,bpc->bkc", assignment, x, precision="highest")
        return weighted - assignment.sum(1)[:, :, None] * codewords, assignment

    def assignment(self, x: Float[Array, "b *pixels c"]) -> Float[Array, "b p k"]:
        """Returns a_ik: how much of each of p pixels each codeword takes; sums to 1."""
        return self.with_assignment(x)[1]

    def _centered(
        self, x: Float[Array, "b *pixels c"]
    ) -> tuple[Float[Array, "b p c"], Float[Array, "k c"]]:
        """Returns features and codewords in float32, relative to the mean codeword."""
        x = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
        codewords = self.codewords[...]
        # Shifting both does not change the result; hence no gradient through the shift.
        center = jax.lax.stop_gradient(codewords.mean(0))
        return x - center, codewords - center

    def _logits(
        self, x: Float[Array, "b p c"], codewords: Float[Array, "k c"]
    ) -> Float[Array, "b p k"]:
        """Returns s_k |x_i - d_k|^2, with |x - d|^2 = |x|^2 - 2 x d + |d|^2."""
        squares = jnp.square(x).sum(-1, keepdims=True)
        products = jnp.einsum("bpc,kc->bpk", x, codewords, precision="highest")
        distances = squares - 2 * products + jnp.square(codewords).sum(-1)
        return distances * self._scales()

    def _scales(self) -> Float[AnyArray, " k"]:
        return self.scale[...]


class ContextActivations(NamedTuple):
    """What a Context Encoding Module computes for images.

    Attributes:
        assignment: Each codeword's share of each pixel, a_ik of `Encoding`; sums to 1
            over the codewords. None with `num_codes=0`.
        gate: The factor of each channel, after the sigmoid: in 0 to 1.
        features: Input of the module.
        gated: Its output.
    """

    assignment: Float32[Array, "b h w k"] | None
    gate: Float32[Array, "b c"]
    features: Float[Array, "b h w c"]
    gated: Float[Array, "b h w c"]


class ContextEncoding(nnx.Module):
    """The Context Encoding Module (paper, sections 3.1 and 3.2, figure 2).

    Encodes the features into one vector e per image, scales the channels by a gate
    computed from e (featuremap attention), and predicts from e which classes are in
    the image (the branch of the semantic encoding loss):

        e = mean_k relu(batch_norm(encoding(conv_bn_relu(x))))
        features = relu(x + x sigmoid(linear(e))),   se_logits = linear(e).

    This is what both original implementations compute. In the paper e is the sum over
    the codewords, and the features are x sigmoid(linear(e)).

    Args:
        features: Number of channels c.
        num_codes: Number of codewords k; 0 replaces the encoding by the mean over the
            pixels (the paper's ablation with K = 0).
        code_reduction: `"mean"` over the codewords, or the paper's `"sum"`.
        gate: `"residual"`, or the paper's `"plain"` product.
        scale_init: See `Encoding`.
        num_classes: Classes n of the semantic encoding branch; None omits the branch.
        rngs: Source of the initial weights.
    """

    def __init__(
        self,
        features: int,
        *,
        num_codes: int = 32,
        code_reduction: str = "mean",
        gate: str = "residual",
        scale_init: str = "original",
        num_classes: int | None,
        rngs: nnx.Rngs,
    ):
        self.reduce = HeadConvBN(features, features, rngs=rngs)
        self.encoding = nnx.data(None)
        self.norm = nnx.data(None)
        if num_codes:
            self.encoding = Encoding(
                features, num_codes, scale_init=scale_init, rngs=rngs
            )
            self.norm = BatchNorm(num_codes, axis=1, rngs=rngs)
        self.code_reduction = code_reduction
        self.residual = gate == "residual"
        self.gate = linear(features, features, rngs=rngs)
        self.se_head = nnx.data(
            linear(features, num_classes, rngs=rngs) if num_classes else None
        )

    def __call__(
        self, x: Float[Array, "b h w c"], gate: Float[Array, "b c"] | None = None
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b n"] | None]:
        """Returns the gated features and the SE logits.

        The features have the dtype of x. The SE logits are float32, before the sigmoid,
        and None without the branch. They do not depend on the gate.

        Args:
            x: The features.
            gate: Takes the place of the gate that is computed from x.
        """
        activations, se_logits = self.with_activations(x, gate)
        return activations.gated, se_logits

    def with_activations(
        self, x: Float[Array, "b h w c"], gate: Float[Array, "b c"] | None = None
    ) -> tuple[ContextActivations, Float[Array, "b n"] | None]:
        """As the call, with the activations in place of the features alone."""
        encoded, assignment = self.encode(x)
        if gate is None:
            gate = jax.nn.sigmoid(self.gate(encoded))
        se_logits = None if self.se_head is None else self.se_head(encoded)
        # Float32, so that the gradient of the gate, a sum over all pixels, is too.
        features = x.astype(jnp.float32)
        gated = features * gate[:, None, None, :]
        if self.residual:
            gated = jax.nn.relu(features + gated)
        if assignment is not None:
            assignment = assignment.reshape(*x.shape[:3], -1)
        activations = ContextActivations(assignment, gate, x, gated.astype(x.dtype))
        return activations, se_logits

    def encode(
        self, x: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b c"], Float[Array, "b p k"] | None]:
        """Returns the vector e, float32, that describes each whole image.

        Also returns the assignment of its p pixels, where there are codewords.
        """
        x = self.reduce(x)
        if self.encoding is None or self.norm is None:
            return x.astype(jnp.float32).mean((1, 2)), None
        encoding, assignment = self.encoding.with_assignment(x)
        codes = jax.nn.relu(self.norm(encoding))
        merged = codes.mean(1) if self.code_reduction == "mean" else codes.sum(1)
        return merged, assignment
