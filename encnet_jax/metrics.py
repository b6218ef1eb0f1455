"""Confusion matrices and the scores computed from them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Integer

from encnet_jax.ops.pixel_labels import check_integers

Labels = Integer[Array | np.ndarray, "..."] | Bool[Array | np.ndarray, "..."]
HostLabels = Integer[np.ndarray, "..."] | Bool[np.ndarray, "..."]


def confusion_matrix(
    labels: Labels,
    predictions: Labels,
    num_classes: int,
    ignore_label: int = 255,
) -> Int32[Array, "n n"]:
    """Returns pixel counts by class: rows are true classes, columns predicted ones.

    A batch may have up to 2^31 - 1 pixels; sum the matrices of batches in int64 on the
    host.

    Args:
        labels: Integers of any shape, 0 to num_classes - 1, or Booleans, classes 0 and
            1. Pixels with other values are not counted, not even as false positives.
        predictions: Classes, not scores; integers or Booleans in the labels' shape.
        num_classes: Number of classes n.
        ignore_label: Label of pixels that are not scored; matters if it is a class.

    Raises:
        ValueError: Labels and predictions differ in shape.
        TypeError: One of them is neither integers nor Booleans.
    """
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    _check_pair(labels, predictions)
    labels = labels.astype(jnp.int32).reshape(-1)
    predictions = predictions.astype(jnp.int32).reshape(-1)
    # bincount drops a value past the end; it would count a negative one as class 0.
    outside = num_classes * num_classes
    valid = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
    valid &= (predictions >= 0) & (predictions < num_classes)
    cells = jnp.where(valid, labels * num_classes + predictions, outside)
    return jnp.bincount(cells, length=outside).reshape(num_classes, num_classes)


def confusion_matrix_np(
    labels: HostLabels,
    predictions: HostLabels,
    num_classes: int,
) -> Int[np.ndarray, "n n"]:
    """Returns the same counts in int64, on the host and without compiling.

    Args:
        labels: Integers of any dtype and shape, or Booleans. Pixels whose label is not
            0 to num_classes - 1 are not counted; there is no `ignore_label`.
        predictions: Likewise, in the labels' shape: pixels whose prediction is no class
            are not counted either.
        num_classes: Number of classes n.

    Raises:
        ValueError: Labels and predictions differ in shape.
        TypeError: One of them is neither integers nor Booleans.
    """
    _check_pair(labels, predictions)
    valid = (labels >= 0) & (labels < num_classes)
    valid &= (predictions >= 0) & (predictions < num_classes)
    # In int64: smaller integers would wrap, and uint64 would become floats.
    cells = labels[valid].astype(np.int64) * num_classes
    cells += predictions[valid].astype(np.int64)
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _check_pair(labels: Any, predictions: Any) -> None:
    """Checks that each label has a prediction, and that both are labels."""
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels of {labels.shape} for predictions of {predictions.shape}: must be "
            "of one shape"
        )
    check_integers("labels", labels)
    check_integers("predictions", predictions)


def segmentation_metrics(
    matrix: Integer[Array | np.ndarray, "n n"], absent_classes: str = "skip"
) -> dict[str, Any]:
    """Returns the usual scores of semantic segmentation.

    Args:
        matrix: Summed confusion matrix, see `confusion_matrix`.
        absent_classes: A class that is neither in labels nor in predictions is left out
            of the means with `"skip"` (its own scores are NaN), and scores 0 with
            `"zero"` (the rule of PyTorch-Encoding).

    Returns:
        `pixel_accuracy`, `mean_iou`, `mean_accuracy`, `frequency_weighted_iou` and
        `ade_score`, the mean of the first two (floats, 0 to 1); `classes_scored`, over
        how many classes `mean_iou` is; `per_class_iou` and `per_class_accuracy`
        (float64, (n,)). The accuracy of a class without labeled pixels follows the rule
        of `absent_classes`, even where it is predicted.

    Raises:
        ValueError: `absent_classes` is neither of the two.
    """
    if absent_classes not in ("skip", "zero"):
        raise ValueError(
            f"absent_classes={absent_classes!r}: allowed are 'skip', 'zero'"
        )
    matrix = np.asarray(matrix).astype(np.float64)
    correct = np.diag(matrix)
    labeled, predicted = matrix.sum(1), matrix.sum(0)
    union = labeled + predicted - correct
    total = max(labeled.sum(), 1.0)
    missing = np.nan if absent_classes == "skip" else 0.0
    iou = np.full(len(matrix), missing)
    np.divide(correct, union, out=iou, where=union > 0)
    accuracy = np.full(len(matrix), missing)
    np.divide(correct, labeled, out=accuracy, where=labeled > 0)
    pixel_accuracy, mean_iou = float(correct.sum() / total), _mean(iou)
    return {
        "pixel_accuracy": pixel_accuracy,
        "mean_iou": mean_iou,
        "classes_scored": int(np.count_nonzero(~np.isnan(iou))),
        "ade_score": (pixel_accuracy + mean_iou) / 2,
        "mean_accuracy": _mean(accuracy),
        "frequency_weighted_iou": float(np.nansum(labeled * iou) / total),
        "per_class_iou": iou,
        "per_class_accuracy": accuracy,
    }


def mean_iou_with_background(per_class_iou: Float[np.ndarray, " n"]) -> float:
    """Returns the mean IoU with one more class, background, of IoU 0.

    Scores a PASCAL-Context model of 59 classes over 60: 59/60 of its mean IoU if none
    of the 59 is absent. NaN, an absent class that is skipped, counts in neither mean.
    """
    count = np.count_nonzero(~np.isnan(per_class_iou))
    return float(np.nansum(per_class_iou) / (count + 1))


def average_precision(
    present: Bool[np.ndarray, "images n"], probability: Float[np.ndarray, "images n"]
) -> Float[np.ndarray, " n"]:
    """Returns the average precision of class presence, by class.

    The area under precision over recall, summed in steps of recall. Images of equal
    probability form one step.

    Args:
        present: Whether the class has a pixel in the image.
        probability: Predicted probability that it has.

    Returns:
        Float64; NaN for a class that is in no image.
    """
    result = np.full(present.shape[1], np.nan)
    for k in np.flatnonzero(present.any(0)):
        order = np.argsort(-probability[:, k], kind="stable")
        found = np.cumsum(present[order, k])
        # The last of equal probabilities stands for all of them.
        ends = np.append(np.diff(probability[order, k]) != 0, True)
        precision = (found / np.arange(1, len(order) + 1))[ends]
        recall = found[ends] / found[-1]
        result[k] = np.sum(np.diff(recall, prepend=0) * precision)
    return result


def _mean(values: Float[np.ndarray, " n"]) -> float:
    """Returns the mean of the values that are not NaN; 0 if there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else 0.0
