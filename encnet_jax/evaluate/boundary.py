"""Boundary IoU (Cheng et al., CVPR 2021): the IoU of the pixels near boundaries."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from encnet_jax.data.dataset_info import IGNORE_LABEL

# Width of the boundary region, relative to the image's diagonal: that of the paper.
DILATION_RATIO = 0.02


def count_boundary(
    labels: UInt8[np.ndarray, "h w"],
    predictions: UInt8[np.ndarray, "h w"],
    num_classes: int,
) -> Int64[np.ndarray, "n 2"]:
    """Counts intersection and union of the boundary regions of every class.

    The boundary region of a mask is its pixels within 2 % of the image's diagonal from
    its contour, computed as in the paper's own code: by erosion with a square, where
    the border of the image counts as a contour. Ignored pixels count nowhere; in labels
    and predictions alike they are outside every mask.

    Args:
        labels: Ground truth; values of `num_classes` and above are ignored.
        predictions: Predicted classes.
        num_classes: Number of classes n.
    """
    valid = labels < num_classes
    distance = max(1, round(DILATION_RATIO * float(np.hypot(*labels.shape))))
    truth = np.where(valid, labels, IGNORE_LABEL)
    predicted = np.where(valid, predictions, IGNORE_LABEL)
    near_truth = near_boundary(truth, distance) & valid
    near_predicted = near_boundary(predicted, distance) & valid
    both = near_truth & near_predicted & (truth == predicted)

    def pixels(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.bincount(values[mask], minlength=num_classes)[:num_classes]

    intersection = pixels(truth, both)
    union = pixels(truth, near_truth) + pixels(predicted, near_predicted) - intersection
    return np.stack([intersection, union], 1).astype(np.int64)


def near_boundary(
    labels: UInt8[np.ndarray, "h w"], distance: int
) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels with another class, or the border, within a distance.

    Args:
        labels: Class indices.
        distance: Chebyshev distance in pixels; the border is one beyond the last pixel.
    """
    # Here, so that training and prediction run without SciPy.
    from scipy import ndimage

    # Erosion keeps the pixels of a class's mask whose whole square has that class. This
    # finds them for all classes at once.
    values = labels.astype(np.int16)
    size = 2 * distance + 1
    least = ndimage.minimum_filter(values, size, mode="constant", cval=-1)
    return least != ndimage.maximum_filter(values, size, mode="constant", cval=-1)


def boundary_scores(
    counts: Int64[np.ndarray, "n 2"], absent_classes: str = "skip"
) -> dict[str, Any]:
    """Returns `mean_boundary_iou` and `per_class_boundary_iou`.

    Args:
        counts: Sum over images of `count_boundary`.
        absent_classes: As in `metrics.segmentation_metrics`.
    """
    intersection, union = counts.T
    iou = np.full(len(counts), np.nan if absent_classes == "skip" else 0.0)
    np.divide(intersection, union, out=iou, where=union > 0)
    known = iou[~np.isnan(iou)]
    mean = float(known.mean()) if known.size else np.nan
    return {"mean_boundary_iou": mean, "per_class_boundary_iou": iou}
