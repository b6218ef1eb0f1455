"""Cross-entropy of resized logits, a few rows of them at a time: for CPU and TPU.

All arithmetic is float32. Names of axes: b images, h w rows and columns of the logits,
n classes, r rows of a block, c columns of the labels.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from encnet_jax.ops.resize import interpolation_matrix

_product = partial(jnp.einsum, precision="highest")


def total_and_gradient(
    align_corners: bool,
    smoothing: float,
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
    weights: Float[Array, "b H W"],
) -> tuple[Float[Array, ""], Float[Array, "b h w n"]]:
    """Returns the sum of weights times cross-entropy, and its gradient.

    Both in one go: on CPU that takes 0.4 of the time of the plain way.
    """
    rows, columns, blocks = _blocks(align_corners, logits, labels, weights)
    low_res = logits.astype(jnp.float32)

    def add(sums: tuple[jax.Array, jax.Array], block: Any) -> Any:
        rows, labels, weights = block
        total, gradient = sums
        resized = _resized(low_res, rows, columns)
        chosen = _chosen(labels, resized)
        resized -= resized.max(2, keepdims=True)
        exps = jnp.exp(resized)
        sum_exp = exps.sum(2, keepdims=True)
        costs = jnp.log(sum_exp[:, :, 0]) - _label_logit(chosen, resized, smoothing)
        total += (costs * weights).sum()
        target = _smoothed(chosen, smoothing)
        cotangent = (exps / sum_exp - target) * weights[:, :, None]
        return (total, gradient + _pulled_back(cotangent, rows, columns)), None

    start = (jnp.zeros(()), jnp.zeros_like(low_res))
    (total, gradient), _ = jax.lax.scan(add, start, (rows, *blocks))
    return total, gradient.astype(logits.dtype)


def logsumexp_and_label_logit(
    align_corners: bool,
    smoothing: float,
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
) -> tuple[Float[Array, "b H W"], Float[Array, "b H W"]]:
    """Returns logsumexp of the logits, and the logit of the label (0: no class).

    With smoothing that logit is the mean of all, weighted by the smoothed target.
    """
    rows, columns, blocks = _blocks(align_corners, logits, labels)
    low_res = logits.astype(jnp.float32)

    def reduced(block: Any) -> tuple[jax.Array, jax.Array]:
        rows, labels = block
        resized = _resized(low_res, rows, columns)
        label_logit = _label_logit(_chosen(labels, resized), resized, smoothing)
        return jax.nn.logsumexp(resized, axis=2), label_logit

    logsumexp, label_logit = jax.lax.map(reduced, (rows, *blocks))
    height = labels.shape[1]
    return _whole(logsumexp, height), _whole(label_logit, height)


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
    rows, columns, blocks = _blocks(align_corners, logits, labels, logsumexp, weights)
    low_res = logits.astype(jnp.float32)

    def add(gradient: jax.Array, block: Any) -> tuple[jax.Array, None]:
        rows, labels, logsumexp, weights = block
        resized = _resized(low_res, rows, columns)
        target = _smoothed(_chosen(labels, resized), smoothing)
        cotangent = jnp.exp(resized - logsumexp[:, :, None]) - target
        cotangent *= weights[:, :, None]
        return gradient + _pulled_back(cotangent, rows, columns), None

    start = jnp.zeros_like(low_res)
    return jax.lax.scan(add, start, (rows, *blocks))[0].astype(logits.dtype)


def _resized(low_res: jax.Array, rows: jax.Array, columns: np.ndarray) -> jax.Array:
    # Columns last: what is done for every class runs along them.
    resized = _product("rh,bhwn->brnw", rows, low_res)
    return _product("brnw,cw->brnc", resized, columns)


def _pulled_back(
    cotangent: jax.Array, rows: jax.Array, columns: np.ndarray
) -> jax.Array:
    cotangent = _product("brnc,cw->brnw", cotangent, columns)
    return _product("brnw,rh->bhwn", cotangent, rows)


def _chosen(labels: jax.Array, resized: jax.Array) -> jax.Array:
    return labels[:, :, None] == jnp.arange(resized.shape[2])[:, None]


def _label_logit(chosen: jax.Array, resized: jax.Array, smoothing: float) -> jax.Array:
    label_logit = jnp.where(chosen, resized, 0).sum(2)
    if not smoothing:
        return label_logit
    return (1 - smoothing) * label_logit + smoothing * resized.mean(2)


def _smoothed(chosen: jax.Array, smoothing: float) -> jax.Array:
    if not smoothing:
        return chosen
    return (1 - smoothing) * chosen + smoothing / chosen.shape[2]


def _blocks(
    align_corners: bool, logits: jax.Array, labels: jax.Array, *more: jax.Array
) -> tuple[np.ndarray, np.ndarray, list[jax.Array]]:
    """Splits what belongs to the pixels by rows.

    Returns:
        The weights of the rows (blocks, r, h), those of all columns (c, w), and the
        arrays (blocks, b, r, c).
    """
    batch, height, width = labels.shape
    columns = np.asarray(interpolation_matrix(logits.shape[2], width, align_corners))
    rows = np.asarray(interpolation_matrix(logits.shape[1], height, align_corners))
    blocks = -(-height // _block_rows(4 * batch * width * logits.shape[-1]))
    taken = -(-height // blocks)  # so that the padding has fewer rows than blocks
    # The rows that pad the last block have zero weight.
    missing = -height % taken
    split = np.pad(rows, ((0, missing), (0, 0))).reshape(-1, taken, rows.shape[1])
    return split, columns, [_split(x, taken, missing) for x in (labels, *more)]


def _block_rows(row_bytes: int) -> int:
    """How many rows of resized logits are held at a time, at most."""
    if jax.default_backend() == "cpu":
        return max(4, 2**22 // row_bytes)  # they stay in the caches
    # Few steps: each starts some kernels.
    return max(1, 2**27 * jax.device_count() // row_bytes)


def _split(x: jax.Array, taken: int, missing: int) -> jax.Array:
    """Splits (b, h, w) into (blocks, b, taken, w)."""
    x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)))
    return x.reshape(x.shape[0], -1, taken, x.shape[2]).swapaxes(0, 1)


def _whole(x: jax.Array, height: int) -> jax.Array:
    """Undoes `_split`."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, x.shape[3])[:, :height]
