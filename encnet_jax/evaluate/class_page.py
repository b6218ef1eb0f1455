"""The page of a classification, and what it needs to know of every image."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from encnet_jax.data.datasets import Dataset
from encnet_jax.errors import has_package
from encnet_jax.evaluate.accumulator import ImageMetrics
from encnet_jax.evaluate.calibration import Calibration
from encnet_jax.evaluate.evaluator import ImagePrediction
from encnet_jax.report.evaluation import Strip, Thumbnail, save_evaluation_page
from encnet_jax.report.page import percent
from encnet_jax.report.thumbnails import image_uri, small_size
from encnet_jax.run.distributed import sum_over_hosts

_SIDE = 96  # pixels of an image on the page
_SHOWN = 12  # wrong images; of each class at most half as many


class ClassRecord:
    """Classes and probabilities of every image of a split.

    Args:
        dataset: The split.

    Attributes:
        labels: True classes, int64 (N,).
        probabilities: Predicted ones, float32 (N, n).
    """

    def __init__(self, dataset: Dataset):
        count = len(dataset)
        self.dataset = dataset
        self.labels = np.zeros(count, np.int64)
        self.probabilities = np.zeros((count, dataset.info.num_classes), np.float32)
        self._names: dict[int, str] = {}

    def of(self, predictions: Iterable[ImagePrediction]) -> Iterator[ImagePrediction]:
        """Passes predictions on and keeps what they say."""
        for prediction in predictions:
            index = prediction.index
            self.labels[index] = int(prediction.example.labels)
            self.probabilities[index] = prediction.presence
            self._names[index] = prediction.example.name
            yield prediction

    def merge_hosts(self) -> None:
        """Adds the images of the other hosts."""
        self.labels = sum_over_hosts(self.labels)
        self.probabilities = sum_over_hosts(self.probabilities)

    @property
    def predicted(self) -> np.ndarray:
        """Predicted classes, int64 (N,)."""
        return self.probabilities.argmax(1)

    def name(self, index: int) -> str:
        """Returns the name of an image."""
        if index not in self._names:  # of another host
            self._names[index] = self.dataset[index].name
        return self._names[index]

    def calibration(self) -> dict[str, Any]:
        """Returns the results of `Calibration` over all images."""
        calibration = Calibration()
        confidence = self.probabilities.max(1)
        num_classes = self.probabilities.shape[1]
        calibration.add(self.labels, self.predicted, confidence, num_classes)
        return {**calibration.results(), "images": len(self.labels)}

    def lines(self) -> Iterator[str]:
        """Yields the lines of `SPLIT-images.jsonl`."""
        num_classes = self.probabilities.shape[1]
        for index, (label, predicted) in enumerate(zip(self.labels, self.predicted)):
            matrix = np.zeros((num_classes, num_classes), np.int64)
            matrix[label, predicted] = 1
            probabilities, name = self.probabilities[index], self.name(index)
            yield ImageMetrics(index, matrix, probabilities, name=name).to_json()


def save_classification_page(
    path: Path,
    scores: Mapping[str, Any],
    record: ClassRecord,
    settings: Mapping[str, Any],
    command: str | None,
) -> None:
    """Writes the page, unless jinja2 is missing.

    Args:
        path: The file of the scores.
        scores: What is in it.
        record: Classes and probabilities of every image.
        settings: See `page_settings`.
        command: The command line, or None.
    """
    if not has_package("jinja2", "page"):
        return
    info, count = record.dataset.info, f"{scores['images']:,} images"
    error = percent(scores["calibration"]["expected_calibration_error"], 2)
    tiles = [
        ("Accuracy", f"{percent(scores['accuracy'], 2)} %", f"of {count}"),
        ("Error", f"{percent(scores['error'], 2)} %", ""),
        ("Classes", f"{info.num_classes}", ""),
        ("Calibration error (ECE)", f"{error} %", f"from {count}"),
    ]
    own = record.probabilities[np.arange(len(record.labels)), record.labels]
    wrong = np.flatnonzero(record.labels != record.predicted)
    surest = wrong[np.argsort(-record.probabilities[wrong].max(1), kind="stable")]
    worst = []
    for k in range(info.num_classes):
        members = np.flatnonzero(record.labels == k)
        order = members[np.argsort(own[members], kind="stable")][: _SHOWN // 2]
        text = f"from {percent(own[order[0]])} %" if order.size else ""
        worst.append([_gallery(record, order, text)] if order.size else [])
    title = "Wrong with the highest confidence"
    examples = {title: [_gallery(record, surest[:_SHOWN], "")]} if wrong.size else {}
    save_evaluation_page(
        path.with_suffix(".html"),
        scores,
        info,
        title=f"{info.name} {path.stem}: {count}, {settings['checkpoint']}",
        tiles=tiles,
        examples=examples,
        worst=worst,
        settings=settings,
        command=command,
    )


def _gallery(record: ClassRecord, indices: np.ndarray, score: str) -> Strip:
    """Returns images with their true and predicted classes."""
    names = record.dataset.info.class_names
    thumbnails = []
    for index in indices.tolist():
        image = record.dataset[index].shown(record.dataset.info).image
        label, predicted = int(record.labels[index]), int(record.predicted[index])
        confidence = percent(float(record.probabilities[index, predicted]))
        text = f"{names[label]}, predicted {names[predicted]} {confidence} %"
        height, width = small_size(image.shape[:2], _SIDE)
        scale = max(1, _SIDE // max(height, width))
        thumbnails.append(
            Thumbnail(
                text,
                image_uri(image, _SIDE),
                record.name(index),
                scale * width,
                scale * height,
            )
        )
    return Strip("", score, thumbnails)
