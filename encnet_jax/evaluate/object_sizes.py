"""IoU and recall by object size, where an object is a connected region of a class."""

from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

# Exclusive upper bounds of the area in pixels: COCO's.
SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}


def count_by_size(
    labels: UInt8[np.ndarray, "h w"],
    predictions: UInt8[np.ndarray, "h w"],
    num_classes: int,
) -> Int64[np.ndarray, "3 n 3"]:
    """Counts true positive, false negative and false positive pixels by object size.

    An object is a connected region (8 neighbors) of one class in the labels. A false
    positive counts at the size of its region in the predictions. Ignored pixels count
    nowhere, but do not split predicted regions.

    Args:
        labels: Ground truth; values of `num_classes` and above are ignored.
        predictions: Predicted classes.
        num_classes: Number of classes n.

    Returns:
        Counts by size (small, medium, large), class, and kind (true positive, false
        negative, false positive).
    """
    counts = np.zeros((len(SIZES), num_classes, 3), np.int64)
    valid = labels < num_classes
    correct = labels == predictions
    for k in np.unique(labels[valid]):
        size = _size_of_region(labels == k)
        for hit, column in ((True, 0), (False, 1)):
            pixels = size[(labels == k) & (correct == hit)]
            counts[:, k, column] = np.bincount(pixels, minlength=len(SIZES))
    wrong = valid & ~correct
    for k in np.unique(predictions[wrong]):
        size = _size_of_region(predictions == k)
        pixels = size[(predictions == k) & wrong]
        counts[:, k, 2] = np.bincount(pixels, minlength=len(SIZES))
    return counts


def scores_by_size(counts: Int64[np.ndarray, "3 n 3"]) -> dict[str, dict[str, Any]]:
    """Returns mean IoU, mean recall and per-class IoU by size, from `count_by_size`.

    Means are over the classes with objects of that size, `classes_scored` of them; the
    IoU of the others is NaN.
    """
    results = {}
    for name, (true, missed, false) in zip(SIZES, counts.transpose(0, 2, 1)):
        has = true + missed > 0
        iou = np.full(len(true), np.nan)
        recall = np.full(len(true), np.nan)
        np.divide(true, true + missed + false, out=iou, where=has)
        np.divide(true, true + missed, out=recall, where=has)
        results[name] = {
            "mean_iou": float(iou[has].mean()) if has.any() else np.nan,
            "classes_scored": int(has.sum()),
            "mean_recall": float(recall[has].mean()) if has.any() else np.nan,
            "per_class_iou": iou,
        }
    return results


def _size_of_region(mask: np.ndarray) -> np.ndarray:
    """Returns the index in `SIZES` of the region that each pixel of a mask is in."""
    # Here, so that training and prediction run without SciPy.
    from scipy import ndimage

    regions, _ = ndimage.label(mask, np.ones((3, 3), int))
    pixels = np.bincount(regions.ravel())
    limits = list(SIZES.values())[:-1]
    return np.digitize(pixels, limits)[regions]
