"""Confusion matrices and what is computed from them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def confusion_matrix(
    labels: ArrayLike,
    predictions: ArrayLike,
    num_classes: int,
    ignore_label: int = 255,
) -> jax.Array:
    """Counts pixels by class: int32 (num_classes, num_classes), rows are true classes.

    Sum the matrices of many batches in int64 on the host; one batch may have up to
    2^31 - 1 pixels.

    Args:
        labels: Integers of any shape, 0 to num_classes - 1, or `ignore_label`: such
            pixels count nowhere, not even as false positives.
        predictions: Integers of the same shape, 0 to num_classes - 1; others count
            nowhere.
        num_classes: Number of classes.
        ignore_label: Label of pixels that are not scored.
    """
    labels = jnp.asarray(labels, jnp.int32).reshape(-1)
    predictions = jnp.asarray(predictions, jnp.int32).reshape(-1)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"{labels.size} labels for {predictions.size} predictions: must be equal"
        )
    # An id past the end is dropped by bincount; a negative one would count as class 0.
    outside = num_classes * num_classes
    valid = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
    valid &= (predictions >= 0) & (predictions < num_classes)
    cells = jnp.where(valid, labels * num_classes + predictions, outside)
    return jnp.bincount(cells, length=outside).reshape(num_classes, num_classes)


def confusion_matrix_np(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> np.ndarray:
    """Returns what `confusion_matrix` does, int64, on the host: compiles nothing.

    Args:
        labels: uint8 of any shape; where it is no class the pixel counts nowhere.
        predictions: uint8 of the same shape, classes.
        num_classes: Number of classes n.
    """
    valid = labels < num_classes
    cells = labels[valid].astype(np.int64) * num_classes + predictions[valid]
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def segmentation_metrics(
    matrix: ArrayLike, absent_classes: str = "skip"
) -> dict[str, Any]:
    """Returns what papers report, from a summed confusion matrix.

    Args:
        matrix: Integers (n, n), rows true classes, columns predicted ones.
        absent_classes: A class absent from labels and predictions alike is left
            out of the means with `"skip"` (its own score is NaN), and counts 0 with
            `"zero"` (PyTorch-Encoding's rule).

    Returns:
        `pixel_accuracy`, `mean_iou`, `mean_accuracy`, `frequency_weighted_iou` and
        `ade_score`, the mean of the first two (floats, 0 to 1); `per_class_iou` and
        `per_class_accuracy` (float64, (n,)). The accuracy of a class without a labeled
        pixel is NaN or 0 by the same rule.
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
        "ade_score": (pixel_accuracy + mean_iou) / 2,
        "mean_accuracy": _mean(accuracy),
        "frequency_weighted_iou": float(np.nansum(labeled * iou) / total),
        "per_class_iou": iou,
        "per_class_accuracy": accuracy,
    }


def mean_iou_with_background(per_class_iou: np.ndarray) -> float:
    """Returns the mean IoU if background were one more class, wrong everywhere.

    PASCAL-Context's score over 60 classes of a model of 59: 59/60 of its mean IoU.
    """
    count = np.count_nonzero(~np.isnan(per_class_iou))
    return float(np.nansum(per_class_iou) / (count + 1))


def average_precision(present: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Returns how well probabilities rank the images that contain a class.

    The area under precision over recall, summed in steps of recall; images of equal
    probability count together.

    Args:
        present: bool (images, n), whether the class has a pixel in the image.
        probability: float (images, n).

    Returns:
        float64 (n,); NaN for a class that is in no image.
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


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; 0 if there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else 0.0
