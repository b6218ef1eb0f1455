"""Scores by the size of objects: connected regions of one class."""

from typing import Any

import numpy as np

# Pixels of an object, below: COCO's limits.
SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}


def count_by_size(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> np.ndarray:
    """Counts the pixels of objects by class and size.

    An object is a connected region (8 neighbors) of one class in the labels. A pixel
    that is predicted as a class it has not counts as false at the size of the region of
    that class in the prediction. Ignored pixels count nowhere, and cut no prediction.

    Args:
        labels: uint8 (h, w).
        predictions: uint8 (h, w).
        num_classes: Number of classes n.

    Returns:
        int64 (3, n, 3): small, medium, large; true, missed and false pixels.
    """
    counts = np.zeros((len(SIZES), num_classes, 3), np.int64)
    valid = labels < num_classes
    right = labels == predictions
    for k in np.unique(labels[valid]):
        size = _size_of_region(labels == k)
        for hit, column in ((True, 0), (False, 1)):
            pixels = size[(labels == k) & (right == hit)]
            counts[:, k, column] = np.bincount(pixels, minlength=len(SIZES))
    wrong = valid & ~right
    for k in np.unique(predictions[wrong]):
        size = _size_of_region(predictions == k)
        pixels = size[(predictions == k) & wrong]
        counts[:, k, 2] = np.bincount(pixels, minlength=len(SIZES))
    return counts


def scores_by_size(counts: np.ndarray) -> dict[str, dict[str, Any]]:
    """Returns mean IoU, mean recall and per-class IoU of small, medium and large.

    Means are over the classes that have objects of the size; others are NaN.
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
            "mean_recall": float(recall[has].mean()) if has.any() else np.nan,
            "per_class_iou": iou,
        }
    return results


def _size_of_region(mask: np.ndarray) -> np.ndarray:
    """Returns for each pixel of a mask the index, in `SIZES`, of its region's size."""
    # Here, so that training and prediction do without SciPy.
    from scipy import ndimage

    regions, _ = ndimage.label(mask, np.ones((3, 3), int))
    pixels = np.bincount(regions.ravel())
    limits = list(SIZES.values())[:-1]
    return np.digitize(pixels, limits)[regions]
