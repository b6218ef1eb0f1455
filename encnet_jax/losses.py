"""Losses of segmentation and classification: pure functions of arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

from encnet_jax.models.cifar import ClassifierOutput
from encnet_jax.models.segmentation import SegmentationOutput
from encnet_jax.ops.class_weights import check_class_weights
from encnet_jax.ops.cross_entropy import resized_cross_entropy_sum
from encnet_jax.ops.resize import AnyArray


def segmentation_loss(
    output: SegmentationOutput,
    labels: Integer[AnyArray, "b H W"],
    *,
    num_classes: int,
    ignore_label: int = 255,
    se_weight: float = 0.2,
    aux_weight: float = 0.2,
    class_weights: Sequence[float] | None = None,
    normalize_by: str = "valid",
    align_corners: bool = True,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the loss of EncNet, and its parts before their weights.

    Pixel cross-entropy, plus `se_weight` times the semantic encoding loss (paper,
    section 3.1), plus `aux_weight` times the pixel cross-entropy of the auxiliary head.
    Parts that the output does not have are left out.

    Args:
        output: What the model returned. Logits of another size than the labels, as
            those of `forward_low_res`, are resized to it, without ever being held
            whole.
        labels: Integers (b, h, w), 0 to num_classes - 1 or `ignore_label`.
        num_classes: Number of classes n.
        ignore_label: Label of pixels that count nowhere.
        se_weight: alpha of the paper; 0.2 in all published recipes.
        aux_weight: 0.2 in PyTorch-Encoding, 0.4 in mmsegmentation.
        class_weights: One weight a class, or None for equal ones.
        normalize_by: See `pixel_cross_entropy`.
        align_corners: See `resize_bilinear`.

    Returns:
        The scalar loss, and a dict of `pixel_loss`, `se_loss` and `aux_loss`.
    """
    options: dict[str, Any] = dict(
        ignore_label=ignore_label,
        class_weights=class_weights,
        normalize_by=normalize_by,
        align_corners=align_corners,
    )
    parts = {"pixel_loss": pixel_cross_entropy(output.logits, labels, **options)}
    loss = parts["pixel_loss"]
    branches = [p for p in (output.se_logits, output.stage3_se_logits) if p is not None]
    if branches:
        target = class_presence(labels, num_classes)
        costs = [se_loss(branch, target) for branch in branches]
        parts["se_loss"] = jnp.stack(costs).sum()
        loss = loss + se_weight * parts["se_loss"]
    if output.aux_logits is not None:
        parts["aux_loss"] = pixel_cross_entropy(output.aux_logits, labels, **options)
        loss = loss + aux_weight * parts["aux_loss"]
    return loss, parts


def classification_loss(
    output: ClassifierOutput, labels: Integer[AnyArray, " b"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
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
    logits: Float[AnyArray, "b h w n"],
    labels: Integer[AnyArray, "b H W"],
    *,
    ignore_label: int = 255,
    class_weights: Sequence[float] | None = None,
    normalize_by: str = "valid",
    align_corners: bool = True,
) -> Float[Array, ""]:
    """Returns the mean cross-entropy of the pixels, a float32 scalar.

    Args:
        logits: Of another size than the labels they are resized to it.
        labels: Other values than 0 to n - 1 must be `ignore_label`.
        ignore_label: Label of pixels that cost nothing.
        class_weights: One weight per class, at least 0; None: all 1.
        normalize_by: `"valid"` divides by the sum of the weights of the labeled pixels,
            as PyTorch-Encoding; where it is 0, so is the loss. `"all"` divides by the
            number of all pixels, as mmsegmentation does by default.
        align_corners: See `resize_bilinear`.

    Raises:
        ValueError: An unknown `normalize_by`, or class weights that are not one finite
            number per class, at least 0 and not all 0.
    """
    if normalize_by not in ("valid", "all"):
        raise ValueError(f"normalize_by={normalize_by!r}: allowed are 'valid', 'all'")
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    valid = labels != ignore_label
    weights = valid.astype(jnp.float32)
    if class_weights is not None:
        if len(class_weights) != logits.shape[-1]:
            raise ValueError(
                f"class_weights has {len(class_weights)} values; must be one for each "
                f"of {logits.shape[-1]} classes"
            )
        if not isinstance(class_weights, jax.core.Tracer):
            check_class_weights(class_weights)
        table = jnp.asarray(class_weights, jnp.float32)
        weights *= table[jnp.where(valid, labels, 0)]
    if logits.shape[1:3] == labels.shape[1:3]:
        logits = logits.astype(jnp.float32)
        # A sum over the comparison instead of a gather: its gradient is no scatter, and
        # an ignored label matches nothing.
        chosen = labels[..., None] == jnp.arange(logits.shape[-1])
        own = jnp.where(chosen, logits, 0).sum(-1)
        costs = jax.nn.logsumexp(logits, axis=-1) - own
        total = jnp.where(valid, costs * weights, 0).sum()
    else:  # training: logits of `forward_low_res`
        total = resized_cross_entropy_sum(logits, labels, weights, align_corners)
    if normalize_by == "all":
        return total / labels.size
    total_weight = weights.sum()
    return total / jnp.where(total_weight > 0, total_weight, 1.0)


def class_presence(
    labels: Integer[AnyArray, "b h w"], num_classes: int
) -> Float[Array, "b n"]:
    """Returns float32 (b, num_classes): 1 where the class has at least one pixel.

    Ignored labels are no class (both originals: a histogram from 0 to n - 1).
    """
    pixels = jnp.asarray(labels).reshape(labels.shape[0], -1, 1)
    return (pixels == jnp.arange(num_classes)).any(1).astype(jnp.float32)


def se_loss(
    se_logits: Float[Array, "b n"], target: Float[Array, "b n"]
) -> Float[Array, ""]:
    """Returns the binary cross-entropy of logits, mean over images and classes.

    Every image counts, also one without a labeled pixel.
    """
    costs = jax.nn.softplus(se_logits) - se_logits * target
    return costs.mean()
