"""Losses of segmentation and classification: pure functions of arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from encnet_jax.models.classifiers import Classification
from encnet_jax.models.encnet import SegmentationOutput


def segmentation_loss(
    output: SegmentationOutput,
    labels: jax.Array,
    *,
    num_classes: int,
    ignore_label: int = 255,
    se_weight: float = 0.2,
    aux_weight: float = 0.2,
    class_weights: Sequence[float] | None = None,
    average: str = "labelled",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of EncNet, and its parts before their weights.

    Pixel cross-entropy, plus `se_weight` times the semantic encoding loss (paper,
    section 3.1), plus `aux_weight` times the pixel cross-entropy of the auxiliary head.
    Parts that the output does not have are left out.

    Args:
        output: What the model returned.
        labels: Integers (b, h, w), 0 to num_classes - 1 or `ignore_label`.
        num_classes: Number of classes n.
        ignore_label: Label of pixels that count nowhere.
        se_weight: alpha of the paper; 0.2 in all published recipes.
        aux_weight: 0.2 in PyTorch-Encoding, 0.4 in mmsegmentation.
        class_weights: One weight a class, or None for equal ones.
        average: See `pixel_cross_entropy`.

    Returns:
        The scalar loss, and a dict of `pixel_loss`, `se_loss` and `aux_loss`.
    """
    options: dict[str, Any] = dict(
        ignore_label=ignore_label, class_weights=class_weights, average=average
    )
    parts = {"pixel_loss": pixel_cross_entropy(output.logits, labels, **options)}
    loss = parts["pixel_loss"]
    branches = [p for p in (output.presence, output.stage3_presence) if p is not None]
    if branches:
        target = class_presence(labels, num_classes)
        costs = [presence_loss(branch, target) for branch in branches]
        parts["se_loss"] = jnp.stack(costs).sum()
        loss = loss + se_weight * parts["se_loss"]
    if output.auxiliary is not None:
        parts["aux_loss"] = pixel_cross_entropy(output.auxiliary, labels, **options)
        loss = loss + aux_weight * parts["aux_loss"]
    return loss, parts


def classification_loss(
    output: Classification, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the mean cross-entropy of whole images, and the share of wrong ones.

    Args:
        output: What the classifier returned.
        labels: Integers (b,), 0 to n - 1.

    Returns:
        The scalar loss, and a dict of `error`.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels)
    wrong = output.logits.argmax(-1) != labels
    return losses.mean(), {"error": wrong.mean(dtype=jnp.float32)}


def pixel_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    class_weights: Sequence[float] | None = None,
    average: str = "labelled",
) -> jax.Array:
    """Returns the mean cross-entropy of the pixels, a float32 scalar.

    Args:
        logits: (b, h, w, n).
        labels: Integers (b, h, w); other values than 0 to n - 1 must be `ignore_label`.
        ignore_label: Label of pixels that cost nothing.
        class_weights: Weights of the classes; the mean is then a weighted one.
        average: `"labelled"` divides by the (weighted) number of labelled pixels, at
            least 1, as PyTorch-Encoding; `"all"` by the number of all pixels, as
            mmsegmentation does by default.
    """
    if average not in ("labelled", "all"):
        raise ValueError(f"average={average!r}: allowed are 'labelled', 'all'")
    logits = logits.astype(jnp.float32)
    valid = labels != ignore_label
    # A sum over the comparison instead of a gather: its gradient is no scatter, and an
    # ignored label matches nothing.
    chosen = labels[..., None] == jnp.arange(logits.shape[-1])
    own = jnp.where(chosen, logits, 0).sum(-1)
    costs = jax.nn.logsumexp(logits, axis=-1) - own
    weights = valid.astype(jnp.float32)
    if class_weights is not None:
        table = jnp.asarray(class_weights, jnp.float32)
        weights = weights * jnp.where(chosen, table, 0).sum(-1)
    total = jnp.where(valid, costs * weights, 0).sum()
    count = jnp.maximum(weights.sum(), 1.0) if average == "labelled" else labels.size
    return total / count


def class_presence(labels: jax.Array, num_classes: int) -> jax.Array:
    """Returns float32 (b, num_classes): 1 where the class has at least one pixel.

    Ignored labels are no class (both originals: a histogram from 0 to n - 1).
    """
    pixels = labels.reshape(labels.shape[0], -1, 1)
    return (pixels == jnp.arange(num_classes)).any(1).astype(jnp.float32)


def presence_loss(presence: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the binary cross-entropy of logits (b, n), mean over images and classes.

    Every image counts, also one without a labelled pixel.
    """
    costs = jax.nn.softplus(presence) - presence * target
    return costs.mean()
