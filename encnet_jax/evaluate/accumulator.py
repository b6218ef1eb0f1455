"""What is counted while a split is scored: exact sums, whatever host has an image."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from encnet_jax.evaluate.object_sizes import SIZES, scores_by_size
from encnet_jax.metrics import average_precision, segmentation_metrics


@dataclasses.dataclass(frozen=True)
class ImageMetrics:
    """What one image adds.

    Attributes:
        index: Of the example in its dataset.
        matrix: int64 (n, n), confusion matrix.
        presence: float32 (n,), probability of each class, or None.
        by_size: int64 (3, n, 3) of `object_sizes.count_by_size`, or None.
    """

    index: int
    matrix: np.ndarray
    presence: np.ndarray | None = None
    by_size: np.ndarray | None = None

    def to_json(self) -> str:
        """Returns one line of text; only what is not zero is written."""
        return json.dumps(
            {
                "index": self.index,
                "matrix": _sparse(self.matrix),
                # All digits of float32, so that reading gives the same number.
                "presence": None if self.presence is None else self.presence.tolist(),
                "by_size": None if self.by_size is None else _sparse(self.by_size),
            }
        )

    @classmethod
    def from_json(cls, line: str, num_classes: int) -> "ImageMetrics":
        """Reads what `to_json` wrote; raises `ValueError` or `KeyError` for less."""
        stored = json.loads(line)
        presence, by_size = stored["presence"], stored["by_size"]
        return cls(
            stored["index"],
            _dense(stored["matrix"], (num_classes, num_classes)),
            None if presence is None else np.asarray(presence, np.float32),
            None if by_size is None else _dense(by_size, (3, num_classes, 3)),
        )


class MetricAccumulator:
    """Sums over the images of a split.

    Args:
        images: Number of examples in the split.
        num_classes: Number of classes n.
    """

    def __init__(self, images: int, num_classes: int):
        self.times = np.zeros(images, np.int64)  # each image was counted
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.image_iou = np.zeros(images)
        self.present = np.zeros((images, num_classes), np.int64)
        self.presence = np.zeros((images, num_classes), np.float32)
        self.by_size = np.zeros((len(SIZES), num_classes, 3), np.int64)
        self.has = np.zeros(2, np.int64)  # images with presence, and with sizes

    def add(self, record: ImageMetrics) -> None:
        """Adds an image."""
        index = record.index
        self.times[index] += 1
        self.matrix += record.matrix
        self.image_iou[index] = segmentation_metrics(record.matrix)["mean_iou"]
        self.present[index] = record.matrix.sum(1) > 0
        if record.presence is not None:
            self.presence[index] = record.presence
            self.has[0] += 1
        if record.by_size is not None:
            self.by_size += record.by_size
            self.has[1] += 1

    def over_hosts(self) -> "MetricAccumulator":
        """Returns the sums of all hosts, the same on each.

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
        """Returns `segmentation_metrics` and whatever else was counted, by JSON key."""
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
        return results


def sum_over_hosts(array: np.ndarray) -> np.ndarray:
    """Returns the sum of the arrays of all hosts, exact for integers of 64 bits."""
    if jax.process_count() == 1:
        return array
    # JAX would cut 64 bits to 32; bytes go through as they are.
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(raw))
    return gathered.view(array.dtype).reshape(-1, *array.shape).sum(0)


def _sparse(array: np.ndarray) -> list[list[int]]:
    places = np.flatnonzero(array)
    return [places.tolist(), array.ravel()[places].tolist()]


def _dense(sparse: list[list[int]], shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(np.prod(shape), np.int64)
    array[sparse[0]] = sparse[1]
    return array.reshape(shape)
