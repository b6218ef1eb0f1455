"""Counts of every image of an evaluation on disk, SPLIT-images.jsonl.

They serve to choose the worst images of each class, and to compare runs. Each line is
one of `ImageMetrics.to_json`; the lines are in the order of the data set.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from encnet_jax.errors import UserError
from encnet_jax.files import whole_file


class ImageLog(NamedTuple):
    """The counts of N images.

    Attributes:
        names: Names of the images.
        correct: Pixels that are labeled and predicted as each class; images of a
            classification are single pixels.
        labeled: Pixels of each class in the labels.
        predicted: Pixels of each class in the predictions, ignored ones left out.
        thumbnails: Predictions as `report.thumbnails.labels_to_text` stores them, or
            None.
    """

    names: list[str]
    correct: Int64[np.ndarray, "N n"]
    labeled: Int64[np.ndarray, "N n"]
    predicted: Int64[np.ndarray, "N n"]
    thumbnails: list[str | None]

    @property
    def iou(self) -> Float[np.ndarray, "N n"]:
        """The IoU of each class in each image; NaN where it is absent from both."""
        union = self.labeled + self.predicted - self.correct
        iou = np.full(union.shape, np.nan)
        np.divide(self.correct, union, out=iou, where=union > 0)
        return iou


def image_log_path(scores: Path) -> Path:
    """Returns the path of the counts that belong to `SPLIT.json`."""
    return scores.with_name(f"{scores.stem}-images.jsonl")


def write_image_log(path: Path, lines: Iterable[str]) -> None:
    """Writes the lines of `ImageMetrics.to_json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        for line in lines:
            file.write(f"{line}\n".encode())


def parse_image_log(lines: Iterable[str], num_classes: int) -> ImageLog:
    """Reads counts off lines of `ImageMetrics.to_json`.

    Raises:
        ValueError: A line is none, or the images are not numbered from 0. Also
            `KeyError`, `TypeError`, `IndexError`.
    """
    n = num_classes
    names, thumbnails, counts = [], [], []
    for number, line in enumerate(lines):
        stored = json.loads(line)
        if stored["index"] != number:
            raise ValueError(f"image {stored['index']} on line {number + 1}")
        places, values = (np.asarray(part, np.int64) for part in stored["matrix"])
        if places.size and not 0 <= places.min() <= places.max() < n * n:
            raise ValueError(f"other than {n} classes on line {number + 1}")
        true, predicted = np.divmod(places, n)
        right = true == predicted
        row = (
            np.bincount(classes, amount, n)
            for classes, amount in (
                (true[right], values[right]),
                (true, values),
                (predicted, values),
            )
        )
        counts.append(np.stack(list(row)).astype(np.int64))
        names.append(str(stored["name"]))
        if not isinstance(stored["thumbnail"], str | None):
            raise ValueError(f"no thumbnail on line {number + 1}")
        thumbnails.append(stored["thumbnail"])
    shape = (3, len(counts), n)
    correct, labeled, predicted = np.stack(counts, 1) if counts else np.zeros(shape)
    return ImageLog(names, correct, labeled, predicted, thumbnails)


def read_image_log(path: Path, num_classes: int) -> ImageLog:
    """Reads what `write_image_log` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        lines = path.read_text().splitlines()
        return parse_image_log(lines, num_classes)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; evaluate the run again"
        ) from error
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: damaged: {error}; evaluate the run again") from error


def worst_images(log: ImageLog, count: int) -> list[list[int]]:
    """Returns for each class the images with its lowest IoU, the lowest first.

    Only images with labeled pixels of the class, or with predicted ones where there are
    fewer than `count` of these. Of equal IoU, those with more wrong pixels first.
    """
    iou = log.iou
    wrong = log.labeled + log.predicted - 2 * log.correct
    chosen = []
    for k in range(iou.shape[1]):
        known = np.flatnonzero((wrong[:, k] > 0) & ~np.isnan(iou[:, k]))
        order = np.lexsort((known, -wrong[known, k], iou[known, k]))
        order = known[order]
        has = log.labeled[order, k] > 0
        chosen.append([*order[has], *order[~has]][:count])
    return [[int(index) for index in indices] for indices in chosen]
