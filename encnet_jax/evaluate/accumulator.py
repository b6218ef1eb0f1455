"""Metrics of a split from per-image counts: exact sums, however hosts share images."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int64

from encnet_jax.evaluate.boundary import boundary_scores, count_boundary
from encnet_jax.evaluate.evaluator import ImagePrediction
from encnet_jax.evaluate.object_sizes import SIZES, count_by_size, scores_by_size
from encnet_jax.metrics import (
    average_precision,
    confusion_matrix_np,
    segmentation_metrics,
)
from encnet_jax.report.thumbnails import labels_to_text
from encnet_jax.run.distributed import sum_over_hosts


@dataclasses.dataclass(frozen=True)
class ImageMetrics:
    """The counts of one image.

    Attributes:
        index: Index of the example in its dataset.
        matrix: Confusion matrix.
        presence: Predicted probability of each class, or None.
        by_size: Counts of `object_sizes.count_by_size`, or None.
        boundary: Counts of `boundary.count_boundary`, or None.
        name: Name of the image.
        thumbnail: The prediction at the size of a thumbnail, as text; see
            `report.thumbnails.labels_to_text`. None of a classification.
    """

    index: int
    matrix: Int64[np.ndarray, "n n"]
    presence: Float32[np.ndarray, " n"] | None = None
    by_size: Int64[np.ndarray, "3 n 3"] | None = None
    boundary: Int64[np.ndarray, "n 2"] | None = None
    name: str = ""
    thumbnail: str | None = None

    @classmethod
    def of(
        cls,
        prediction: ImagePrediction,
        num_classes: int,
        object_sizes: bool = False,
        boundary_iou: bool = False,
        thumbnail: bool = False,
    ) -> "ImageMetrics":
        """Compares a prediction with its labels.

        Args:
            prediction: Labels of every pixel.
            num_classes: Number of classes n.
            object_sizes: Whether to count `by_size`; needs SciPy.
            boundary_iou: Whether to count `boundary`; needs SciPy.
            thumbnail: Whether to keep the prediction as a `thumbnail`.
        """
        pair = prediction.example.labels, prediction.labels
        return cls(
            prediction.index,
            confusion_matrix_np(*pair, num_classes),
            prediction.presence,
            count_by_size(*pair, num_classes) if object_sizes else None,
            count_boundary(*pair, num_classes) if boundary_iou else None,
            prediction.example.name,
            labels_to_text(prediction.labels) if thumbnail else None,
        )

    def to_json(self) -> str:
        """Returns one line of text; matrices are stored sparsely."""
        return json.dumps(
            {
                "index": self.index,
                "name": self.name,
                "matrix": _sparse(self.matrix),
                # All digits of float32, so that reading restores the same value.
                "presence": None if self.presence is None else self.presence.tolist(),
                "by_size": None if self.by_size is None else _sparse(self.by_size),
                "boundary": None if self.boundary is None else _sparse(self.boundary),
                "thumbnail": self.thumbnail,
            }
        )

    @classmethod
    def from_json(cls, line: str, num_classes: int) -> "ImageMetrics":
        """Parses a line of `to_json`; raises `ValueError` or `KeyError` otherwise."""
        stored = json.loads(line)
        presence, by_size = stored["presence"], stored["by_size"]
        boundary = stored["boundary"]
        return cls(
            stored["index"],
            _dense(stored["matrix"], (num_classes, num_classes)),
            None if presence is None else np.asarray(presence, np.float32),
            None if by_size is None else _dense(by_size, (3, num_classes, 3)),
            None if boundary is None else _dense(boundary, (num_classes, 2)),
            stored["name"],
            stored["thumbnail"],
        )


class MetricAccumulator:
    """Sums the counts of images over a split.

    Args:
        num_images: Number of examples in the split.
        num_classes: Number of classes n.
    """

    def __init__(self, num_images: int, num_classes: int):
        self.times = np.zeros(num_images, np.int64)  # how often each was counted
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.image_iou = np.zeros(num_images)
        self.present = np.zeros((num_images, num_classes), np.int64)
        self.presence = np.zeros((num_images, num_classes), np.float32)
        self.by_size = np.zeros((len(SIZES), num_classes, 3), np.int64)
        self.boundary = np.zeros((num_classes, 2), np.int64)
        self.has = np.zeros(3, np.int64)  # images with presence, sizes, and boundary

    def add(self, metrics: ImageMetrics) -> None:
        """Adds an image."""
        index = metrics.index
        self.times[index] += 1
        self.matrix += metrics.matrix
        scored = segmentation_metrics(metrics.matrix)["mean_iou"]
        # Without a labeled pixel there is nothing to be right or wrong.
        self.image_iou[index] = scored if metrics.matrix.any() else np.nan
        self.present[index] = metrics.matrix.sum(1) > 0
        if metrics.presence is not None:
            self.presence[index] = metrics.presence
            self.has[0] += 1
        if metrics.by_size is not None:
            self.by_size += metrics.by_size
            self.has[1] += 1
        if metrics.boundary is not None:
            self.boundary += metrics.boundary
            self.has[2] += 1

    def add_known(self, stored: Iterable[ImageMetrics]) -> None:
        """Adds images whose metrics all hosts know: once, on host 0."""
        if jax.process_index() == 0:
            for metrics in stored:
                self.add(metrics)

    def over_hosts(self) -> "MetricAccumulator":
        """Returns the sums over all hosts, the same on each.

        Raises:
            RuntimeError: An image was not counted exactly once.
        """
        total = MetricAccumulator(len(self.times), len(self.matrix))
        for name, value in vars(self).items():
            setattr(total, name, sum_over_hosts(value))
        wrong = np.flatnonzero(total.times != 1)
        if wrong.size:
            raise RuntimeError(
                f"image {wrong[0]} was scored {total.times[wrong[0]]} times"
            )
        return total

    def results(self, absent_classes: str) -> dict[str, Any]:
        """Returns `segmentation_metrics` and the other metrics by their JSON key."""
        results = segmentation_metrics(self.matrix, absent_classes)
        results.update(images=int(self.times.sum()), confusion_matrix=self.matrix)
        if self.has[0]:
            precision = average_precision(self.present > 0, self.presence)
            known = precision[~np.isnan(precision)]
            results["presence_average_precision"] = (
                float(known.mean()) if known.size else np.nan
            )
            results["per_class_presence_average_precision"] = precision
        if self.has[1]:
            results["by_object_size"] = scores_by_size(self.by_size)
        if self.has[2]:
            results.update(boundary_scores(self.boundary, absent_classes))
        return results


def _sparse(array: np.ndarray) -> list[list[int]]:
    places = np.flatnonzero(array)
    return [places.tolist(), array.ravel()[places].tolist()]


def _dense(sparse: list[list[int]], shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(np.prod(shape), np.int64)
    array[sparse[0]] = sparse[1]
    return array.reshape(shape)
