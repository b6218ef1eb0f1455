"""Cross-entropy of resized logits with the interpolation inside its reductions: GPU.

The low-resolution logits are interpolated to the rows of the labels, an array of
(b, H, w, n) in their dtype; the columns are interpolated where they are used. Thus one
kernel reads the rows and leaves two numbers per pixel. Another writes the gradient of
the resized logits, once and in the dtype of the logits; two matrix products pull it
back, on tensor cores if it is bfloat16, and at full precision if it is float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from encnet_jax.ops.resize import interpolation_matrix
from encnet_jax.ops.taps import interpolate_grid, taps_of


def total_and_gradient(
    align_corners: bool,
    smoothing: float,
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
    weights: Float[Array, "b H W"],
) -> tuple[Float[Array, ""], Float[Array, "b h w n"]]:
    """Returns the sum of weights times cross-entropy, and its gradient."""
    logsumexp, label_logit = logsumexp_and_label_logit(
        align_corners, smoothing, logits, labels
    )
    total = ((logsumexp - label_logit) * weights).sum()
    return total, gradient(align_corners, smoothing, logits, labels, logsumexp, weights)


def logsumexp_and_label_logit(
    align_corners: bool,
    smoothing: float,
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
) -> tuple[Float[Array, "b H W"], Float[Array, "b H W"]]:
    """Returns logsumexp of the logits, and the logit of the label (0: no class).

    With smoothing that logit is the mean of all, weighted by the smoothed target.
    """
    resized = _resized(align_corners, logits, labels)
    label_logit = jnp.where(_chosen(labels, resized), resized, 0)
    if smoothing:
        share = smoothing / resized.shape[-1]
        label_logit = (1 - smoothing) * label_logit + share * resized
    return _reduced(resized, label_logit)


def gradient(
    align_corners: bool,
    smoothing: float,
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
    logsumexp: Float[Array, "b H W"],
    weights: Float[Array, "b H W"],
) -> Float[Array, "b h w n"]:
    """Returns the gradient, by the logits, of weights times cross-entropy.

    Args:
        align_corners: See `resize_bilinear`.
        smoothing: Share of the target that is spread evenly over all classes.
        logits: Resized bilinearly to the labels.
        labels: 0 to n - 1, or another number.
        logsumexp: Of `logsumexp_and_label_logit`.
        weights: What multiplies each pixel's gradient: its weight, or a cotangent.
    """
    resized = _resized(align_corners, logits, labels)
    target: jax.Array | float = _chosen(labels, resized)
    if smoothing:
        target = (1 - smoothing) * target + smoothing / resized.shape[-1]
    cotangent = jnp.exp(resized - logsumexp[..., None]) - target
    cotangent = (cotangent * weights[..., None]).astype(logits.dtype)
    return _pulled_back(cotangent, *_matrices(align_corners, logits, labels))


def _matrices(
    align_corners: bool, logits: jax.Array, labels: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of rows (H, h) and columns (W, w)."""
    rows = interpolation_matrix(logits.shape[1], labels.shape[1], align_corners)
    columns = interpolation_matrix(logits.shape[2], labels.shape[2], align_corners)
    return np.asarray(rows), np.asarray(columns)


def _resized(align_corners: bool, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the resized logits, float32: a recipe for the kernels that use them."""
    rows, columns = _matrices(align_corners, logits, labels)
    return interpolate_grid(logits, taps_of(rows), taps_of(columns), logits.dtype)


def _chosen(labels: jax.Array, resized: jax.Array) -> jax.Array:
    return labels[..., None] == jnp.arange(resized.shape[-1])


def _reduced(resized: jax.Array, terms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns logsumexp of `resized`, and the sum of `terms`, over the last axis.

    This takes one pass: each partial sum carries the largest logit, to which it is
    relative, and when two meet, the one with the smaller is rescaled to the larger. A
    shift known beforehand would save this: the interpolated maximum of low-resolution
    logits is never below that of the resized ones. But where neighbors differ by
    hundreds it is hundreds above, all exponentials are zero, and the loss is infinite.
    """

    def meet(one: tuple[jax.Array, ...], other: tuple[jax.Array, ...]) -> tuple:
        (top, total, term), (its_top, its_total, its_term) = one, other
        factor = jnp.exp(-jnp.abs(top - its_top))
        total = jnp.where(
            top >= its_top, total + factor * its_total, factor * total + its_total
        )
        return jnp.maximum(top, its_top), total, term + its_term

    zero = jnp.zeros((), jnp.float32)
    # Finite, so that two empty sums meet without infinity minus infinity.
    start = (jnp.asarray(jnp.finfo(jnp.float32).min), zero, zero)
    parts = (resized, jnp.ones_like(resized), terms)
    top, total, summed = jax.lax.reduce(parts, start, meet, (resized.ndim - 1,))
    return top + jnp.log(total), summed


def _pulled_back(
    cotangent: jax.Array, rows: np.ndarray, columns: np.ndarray
) -> jax.Array:
    """Maps the gradient of resized logits to that of the low-resolution ones."""
    for equation, matrix in (("bHWn,Hh->bhWn", rows), ("bhWn,Ww->bhwn", columns)):
        total = jnp.einsum(
            equation,
            cotangent,
            jnp.asarray(matrix, cotangent.dtype),
            precision="highest" if cotangent.dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )
        cotangent = total.astype(cotangent.dtype)
    return cotangent
