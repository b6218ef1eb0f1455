"""Losses of segmentation and classification: pure functions of arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Integer

from encnet_jax.models.cifar import ClassifierOutput
from encnet_jax.models.segmentation import SegmentationOutput
from encnet_jax.ops.class_presence import class_presence
from encnet_jax.ops.class_weights import check_class_weights
from encnet_jax.ops.cross_entropy import (
    resized_cross_entropy,
    resized_cross_entropy_sum,
)
from encnet_jax.ops.lovasz import resized_lovasz_softmax
from encnet_jax.ops.pixel_labels import check_integers, check_pixels, known_labels
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
    label_smoothing: float = 0.0,
    hard_pixel_fraction: float = 1.0,
    lovasz_weight: float = 0.0,
    align_corners: bool = True,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the loss of EncNet, and its parts before their weights.

    Pixel cross-entropy, plus `lovasz_weight` times the Lovász-softmax loss of the same
    logits, plus `se_weight` times the semantic encoding loss (paper, section 3.1), plus
    `aux_weight` times the pixel cross-entropy of the auxiliary head. Parts that the
    output lacks are left out, and so is the Lovász term if `lovasz_weight` is 0.

    Args:
        output: What the model returned. Logits whose size differs from that of the
            labels, such as those of `forward_low_res`, are resized to it without ever
            being held whole.
        labels: Integers (b, H, W), 0 to num_classes - 1. Pixels with any other label
            count nowhere: they are ignored, like those of `ignore_label`.
        num_classes: Number of classes n.
        ignore_label: A label that is ignored; matters if it is 0 to num_classes - 1.
        se_weight: alpha of the paper; 0.2 in all published recipes.
        aux_weight: 0.2 in PyTorch-Encoding, 0.4 in mmsegmentation.
        class_weights: One weight per class, or None for equal ones.
        normalize_by: See `pixel_cross_entropy`.
        label_smoothing: See `pixel_cross_entropy`.
        hard_pixel_fraction: See `pixel_cross_entropy`.
        lovasz_weight: Weight of `lovasz_softmax` relative to the pixel cross-entropy.
            That loss ignores the four arguments above; the auxiliary head has none.
        align_corners: How logits of another size are resized; that of the model, its
            `align_corners`. See `resize_bilinear`.

    Returns:
        The scalar loss, and a dict of `pixel_loss`, `lovasz_loss`, `se_loss` and
        `aux_loss`.

    Raises:
        ValueError: Shapes that do not fit each other or `num_classes`; or as
            `pixel_cross_entropy`.
        TypeError: Labels that are no integers.
    """
    if output.logits.shape[-1] != num_classes:
        raise ValueError(
            f"num_classes={num_classes}: must be {output.logits.shape[-1]}, that of "
            "the logits"
        )
    options: dict[str, Any] = dict(
        ignore_label=ignore_label,
        class_weights=class_weights,
        normalize_by=normalize_by,
        label_smoothing=label_smoothing,
        hard_pixel_fraction=hard_pixel_fraction,
        align_corners=align_corners,
    )
    parts = {"pixel_loss": pixel_cross_entropy(output.logits, labels, **options)}
    loss = parts["pixel_loss"]
    if lovasz_weight:
        parts["lovasz_loss"] = lovasz_softmax(
            output.logits,
            labels,
            ignore_label=ignore_label,
            align_corners=align_corners,
        )
        loss = loss + lovasz_weight * parts["lovasz_loss"]
    branches = [p for p in (output.se_logits, output.stage3_se_logits) if p is not None]
    if branches:
        known = known_labels(jnp.asarray(labels), num_classes, ignore_label)
        target = class_presence(known, num_classes)
        costs = [se_loss(branch, target) for branch in branches]
        parts["se_loss"] = jnp.stack(costs).sum()
        loss = loss + se_weight * parts["se_loss"]
    if output.aux_logits is not None:
        parts["aux_loss"] = pixel_cross_entropy(output.aux_logits, labels, **options)
        loss = loss + aux_weight * parts["aux_loss"]
    return loss, parts


def classification_loss(
    output: ClassifierOutput,
    labels: Integer[AnyArray, " b"],
    *,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean cross-entropy of whole images, and the share of wrong ones.

    Args:
        output: What the classifier returned.
        labels: Integers (b,), 0 to n - 1. Images of other labels are ignored: both
            means are over the rest, and 0 where none is left.
        label_smoothing: Share of the target that is spread evenly over all classes.

    Returns:
        The scalar loss, and a dict of `error`.

    Raises:
        ValueError: Shapes that do not fit each other.
        TypeError: Labels that are no integers.
    """
    logits, labels = output.logits, jnp.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels of {labels.shape} for logits of {logits.shape}: must be (b,) for "
            "(b, n)"
        )
    check_integers("labels", labels)
    labels = known_labels(labels, logits.shape[-1])
    known = labels >= 0
    if label_smoothing:
        target = jax.nn.one_hot(labels, logits.shape[-1])
        target = optax.smooth_labels(target, label_smoothing)
        losses = optax.softmax_cross_entropy(logits, target)
    else:
        some_class = jnp.where(known, labels, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, some_class)
    wrong = known & (logits.argmax(-1) != labels)
    count = jnp.maximum(known.sum(dtype=jnp.float32), 1)
    loss = jnp.where(known, losses, 0).sum() / count
    return loss, {"error": wrong.sum(dtype=jnp.float32) / count}


def pixel_cross_entropy(
    logits: Float[AnyArray, "b h w n"],
    labels: Integer[AnyArray, "b H W"],
    *,
    ignore_label: int = 255,
    class_weights: Sequence[float] | None = None,
    normalize_by: str = "valid",
    label_smoothing: float = 0.0,
    hard_pixel_fraction: float = 1.0,
    align_corners: bool = True,
) -> Float[Array, ""]:
    """Returns the mean cross-entropy of the pixels, a float32 scalar.

    Args:
        logits: Resized to the labels if their sizes differ.
        labels: 0 to n - 1. Pixels with any other label, like those of `ignore_label`,
            cost nothing, have no gradient, and are in no mean but that of `"all"`.
        ignore_label: A label that is ignored; matters if it is 0 to n - 1.
        class_weights: One weight per class, at least 0; None: all 1.
        normalize_by: `"valid"` divides by the sum of the weights of the labeled pixels,
            as PyTorch-Encoding; where it is 0, so is the loss. `"all"` divides by the
            number of all pixels, as mmsegmentation does by default.
        label_smoothing: Share of the target that is spread evenly over all classes
            (Szegedy et al. 2016).
        hard_pixel_fraction: Share of the labeled pixels of the batch that count: those
            of the highest cross-entropy, before weights (Shrivastava et al. 2016).
        align_corners: How logits of another size are resized; that of the model, its
            `align_corners`. See `resize_bilinear`.

    Raises:
        ValueError: Shapes that do not fit each other, an unknown `normalize_by`, or
            class weights that are not one finite number per class, at least 0 and not
            all 0.
        TypeError: Labels that are no integers.
    """
    if normalize_by not in ("valid", "all"):
        raise ValueError(f"normalize_by={normalize_by!r}: allowed are 'valid', 'all'")
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    check_pixels(logits, labels)
    labels = known_labels(labels, logits.shape[-1], ignore_label)
    valid = labels >= 0
    weights = _pixel_weights(labels, valid, class_weights, logits.shape[-1])
    if hard_pixel_fraction == 1 and logits.shape[1:3] != labels.shape[1:3]:
        # Logits of `forward_low_res`, in training.
        total = resized_cross_entropy_sum(
            logits, labels, weights, align_corners, "auto", label_smoothing
        )
    else:
        costs = _pixel_costs(logits, labels, align_corners, label_smoothing)
        if hard_pixel_fraction < 1:
            weights *= _hard_pixels(costs, valid, hard_pixel_fraction)
        total = jnp.where(valid, costs * weights, 0).sum()
    if normalize_by == "all":
        return total / labels.size
    total_weight = weights.sum()
    return total / jnp.where(total_weight > 0, total_weight, 1.0)


def _pixel_weights(
    labels: Integer[Array, "b H W"],
    valid: Bool[Array, "b H W"],
    class_weights: Sequence[float] | None,
    num_classes: int,
) -> Float[Array, "b H W"]:
    """Returns the weight of the class of each pixel, 0 where the label is ignored."""
    weights = valid.astype(jnp.float32)
    if class_weights is None:
        return weights
    if len(class_weights) != num_classes:
        raise ValueError(
            f"class_weights has {len(class_weights)} values; must be one for each "
            f"of {num_classes} classes"
        )
    if not isinstance(class_weights, jax.core.Tracer):
        check_class_weights(class_weights)
    table = jnp.asarray(class_weights, jnp.float32)
    return weights * table[jnp.where(valid, labels, 0)]


def _pixel_costs(
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
    align_corners: bool,
    label_smoothing: float,
) -> Float[Array, "b H W"]:
    """Returns the cross-entropy of each pixel; any number where it is ignored."""
    if logits.shape[1:3] != labels.shape[1:3]:
        return resized_cross_entropy(
            logits, labels, align_corners, "auto", label_smoothing
        )
    logits = logits.astype(jnp.float32)
    # A sum over the comparison instead of a gather: its gradient is no scatter, and
    # an ignored label matches nothing.
    chosen = labels[..., None] == jnp.arange(logits.shape[-1])
    own = jnp.where(chosen, logits, 0).sum(-1)
    if label_smoothing:
        own = (1 - label_smoothing) * own + label_smoothing * logits.mean(-1)
    return jax.nn.logsumexp(logits, axis=-1) - own


def _hard_pixels(
    costs: Float[Array, "b H W"], valid: Bool[Array, "b H W"], fraction: float
) -> Float[Array, "b H W"]:
    """Returns weights: 1 for the share of the labeled pixels that cost the most.

    Pixels that tie for the last places in that share, such as those of cost 0 late in a
    training, divide these places evenly: the weights always sum to the share's size.
    """
    costs = jnp.where(valid, jax.lax.stop_gradient(costs), -jnp.inf)
    # A little less, as 0.3 * 100 is above 30 in float32.
    count = jnp.ceil(fraction * (1 - 2**-22) * valid.sum()).astype(jnp.int32)
    descending = -jnp.sort(-costs.ravel())
    threshold = descending[jnp.maximum(count - 1, 0)]
    above, tied = costs > threshold, valid & (costs == threshold)
    places = (count - above.sum()) / jnp.maximum(tied.sum(), 1)
    return jnp.where(tied, places, above)


def lovasz_softmax(
    logits: Float[AnyArray, "b h w n"],
    labels: Integer[AnyArray, "b H W"],
    *,
    ignore_label: int = 255,
    align_corners: bool = True,
) -> Float[Array, ""]:
    """Returns the Lovász-softmax loss (Berman et al. 2018), a float32 scalar.

    The mean, over the classes present in the batch, of the Lovász extension of
    1 - IoU. The batch counts as one image, as IoU is scored over all pixels of a split.

    Args:
        logits: Resized to the labels, one class at a time, if their sizes differ.
        labels: 0 to n - 1. Pixels with any other label are left out, like those of
            `ignore_label`; if all are, the loss is 0.
        ignore_label: A label that is left out; matters if it is 0 to n - 1.
        align_corners: How logits of another size are resized; that of the model, its
            `align_corners`. See `resize_bilinear`.

    Raises:
        ValueError: Shapes that do not fit each other.
        TypeError: Labels that are no integers.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    check_pixels(logits, labels)
    labels = known_labels(labels, logits.shape[-1], ignore_label)
    return resized_lovasz_softmax(logits, labels, align_corners)


def se_loss(
    se_logits: Float[Array, "b n"], target: Float[Array, "b n"]
) -> Float[Array, ""]:
    """Returns the binary cross-entropy of logits, mean over images and classes.

    Every image counts, also one without a labeled pixel.

    Raises:
        ValueError: The target has another shape than the logits.
    """
    if target.shape != se_logits.shape:
        raise ValueError(
            f"target of {target.shape}: must be that of se_logits, {se_logits.shape}"
        )
    costs = jax.nn.softplus(se_logits) - se_logits * target
    return costs.mean()
