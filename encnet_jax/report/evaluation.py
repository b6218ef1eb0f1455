"""The page of an evaluation: scores, classes, confusion, calibration, images."""

import datetime
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

import encnet_jax
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import Example
from encnet_jax.report.charts import largest_confusions, matrix_chart
from encnet_jax.report.page import percent, save_page
from encnet_jax.report.thumbnails import (
    errors_uri,
    image_uri,
    labels_uri,
    resample_labels,
    small_size,
)

_NAMED = 4  # classes in the description of a label map
# Key of a per-class score -> heading of its column.
_COLUMNS = {
    "per_class_iou": "IoU",
    "per_class_accuracy": "Accuracy",
    "per_class_boundary_iou": "Boundary IoU",
    "per_class_presence_average_precision": "Presence AP",
}


class Thumbnail(NamedTuple):
    """An image of a page.

    Attributes:
        title: Its caption.
        uri: The file as a data URI.
        alt: What it shows, in words.
        width: In pixels.
        height: In pixels.
    """

    title: str
    uri: str
    alt: str
    width: int
    height: int


class Strip(NamedTuple):
    """An image with its label, its prediction and the errors.

    Attributes:
        name: Name of the image.
        score: Its score, in words.
        thumbnails: The four.
    """

    name: str
    score: str
    thumbnails: list[Thumbnail]


def make_strip(
    example: Example,
    predictions: UInt8[np.ndarray, "h w"],
    info: DatasetInfo,
    score: str,
    side: int,
    wrong: float | None = None,
) -> Strip:
    """Draws an example and its prediction as thumbnails.

    Args:
        example: Image and ground truth.
        predictions: Predicted classes, at the size of the image or of a thumbnail.
        info: Class names and colors.
        score: The score of the image, in words.
        side: Long side of the thumbnails in pixels.
        wrong: Share of the labeled pixels that are wrong; None: counted here.
    """
    labels = example.labels
    height, width = small_size(example.image.shape[:2], side)
    if wrong is None:
        valid = labels != IGNORE_LABEL
        differ = resample_labels(predictions, labels.shape) != labels
        wrong = float(differ[valid].mean()) if valid.any() else 0.0
    share = "of the labeled pixels are wrong"
    names = info.class_names
    panels = [
        ("Image", image_uri(example.image, side), example.name),
        ("Label", labels_uri(labels, info.colors, side), describe(labels, names)),
        (
            "Prediction",
            labels_uri(predictions, info.colors, side),
            describe(predictions, names),
        ),
        (f"Errors: {percent(wrong)} %", errors_uri(labels, predictions, side), share),
    ]
    return Strip(
        example.name,
        score,
        [Thumbnail(title, uri, alt, width, height) for title, uri, alt in panels],
    )


def describe(labels: UInt8[np.ndarray, "h w"], class_names: Sequence[str]) -> str:
    """Returns the largest classes of a label map with their shares, in words."""
    counts = np.bincount(labels.ravel(), minlength=256)
    shares = {name: counts[k] / labels.size for k, name in enumerate(class_names)}
    order = sorted(shares, key=lambda name: -shares[name])[:_NAMED]
    parts = [f"{name} {shares[name]:.0%}" for name in order if shares[name] > 0]
    return ", ".join(parts) or "no labeled pixels"


def save_evaluation_page(
    path: Path,
    results: Mapping[str, Any],
    info: DatasetInfo,
    *,
    title: str,
    tiles: Sequence[tuple[str, str, str]],
    examples: Mapping[str, Sequence[Strip]],
    worst: Sequence[Sequence[Strip]],
    settings: Mapping[str, Any],
    command: str | None,
) -> None:
    """Writes the page.

    Args:
        path: HTML file.
        results: Scores by the keys of the JSON file, with `confusion_matrix` and
            `calibration`.
        info: Class names and colors.
        title: Heading of the page.
        tiles: Name, value and note of each summarized score.
        examples: Strips of images by their rank in words.
        worst: Strips of the worst images by class; empty to leave them out.
        settings: What else the page lists: name -> value.
        command: The command line, or None.
    """
    matrix = np.asarray(results["confusion_matrix"])
    save_page(
        path,
        "evaluation.html",
        title=title,
        tiles=tiles,
        task=info.task,
        unit="images" if info.task == "classification" else "pixels",
        columns=[name for key, name in _COLUMNS.items() if key in results],
        rows=class_rows(results, info),
        matrix=matrix_chart(matrix, info.class_names),
        confusions=largest_confusions(matrix, info.class_names),
        calibration=calibration_chart(results.get("calibration")),
        sizes=results.get("by_object_size", {}),
        examples=examples,
        worst=[(info.class_names[k], strips) for k, strips in enumerate(worst)],
        settings={**settings, **environment()},
        command=command,
    )


def class_rows(results: Mapping[str, Any], info: DatasetInfo) -> list[dict[str, Any]]:
    """Returns the rows of the table of classes, best first, absent ones last."""
    matrix = np.asarray(results["confusion_matrix"])
    labeled = matrix.sum(1)
    scores = [np.asarray(results[key], float) for key in _COLUMNS if key in results]
    if info.task == "classification":  # older files have 0
        scores = [np.where(labeled > 0, score, np.nan) for score in scores]
    first = np.nan_to_num(scores[0], nan=-1.0)
    return [
        {
            "name": info.class_names[k],
            "color": "#{:02x}{:02x}{:02x}".format(*info.colors[k]),
            "values": [float(score[k]) for score in scores],
            "share": float(labeled[k] / max(labeled.sum(), 1)),
        }
        for k in np.argsort(-first, kind="stable").tolist()
    ]


def calibration_chart(calibration: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the bins of a reliability diagram, or None where nothing is known."""
    if calibration is None or not calibration["pixels"]:
        return None
    count = np.asarray(calibration["count"])
    shares = count / count.sum()
    bins = [
        {
            "low": k / len(count),
            "high": (k + 1) / len(count),
            "share": float(shares[k]),
            "height": float(shares[k] / shares.max()),
            "accuracy": float(calibration["accuracy"][k]),
            "confidence": float(calibration["confidence"][k]),
        }
        for k in range(len(count))
        if count[k]
    ]
    return {**calibration, "bins": bins, "step": 1 / len(count)}


def environment() -> dict[str, str]:
    """Returns what computed the page, and when."""
    device = jax.devices()[0]
    return {
        "encnet_jax": encnet_jax.__version__,
        "JAX": f"{jax.__version__}, {jax.device_count()} × {device.device_kind}",
        "Python": platform.python_version(),
        "written": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
    }
