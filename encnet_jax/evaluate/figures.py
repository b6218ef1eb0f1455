"""What an evaluation shows of its images: figures, and the page `SPLIT.html`."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Dataset
from encnet_jax.errors import has_package
from encnet_jax.evaluate.calibration import (
    Calibration,
    ConfidenceFn,
    ConfidentPrediction,
    sample_indices,
)
from encnet_jax.evaluate.image_log import ImageLog, worst_images
from encnet_jax.report.evaluation import Strip, make_strip
from encnet_jax.report.thumbnails import LARGE, SMALL, labels_from_text
from encnet_jax.run.workdir import LoadedRun

_EXAMPLES = 2  # shown of the best, the median and the worst images each
# Strips of worst images on a page: at most three of each class, fewer of many classes.
_MAX_WORST = 150
# Rank in words, mean IoU, and the prediction.
RankedExample = tuple[str, float, ConfidentPrediction]


def select_examples(image_iou: Float[np.ndarray, " N"]) -> dict[int, str]:
    """Returns the indices of the best, the median and the worst images, each once.

    Images without a labeled pixel have no score, and no rank.
    """
    order = np.argsort(-image_iou, kind="stable").tolist()
    order = order[: int((~np.isnan(image_iou)).sum())]
    middle = max((len(order) - _EXAMPLES) // 2, 0)
    parts = {
        "best": order[:_EXAMPLES],
        "median": order[middle : middle + _EXAMPLES],
        "worst": order[-_EXAMPLES:],
    }
    selected: dict[int, str] = {}
    for rank, indices in parts.items():
        for index in indices:
            selected.setdefault(index, rank)
    return selected


def predict_examples(
    predict: ConfidenceFn,
    run: LoadedRun,
    dataset: Dataset,
    image_iou: Float[np.ndarray, " N"],
) -> tuple[list[RankedExample], Calibration]:
    """Predicts the images that are shown, and those that calibration is measured on.

    Args:
        predict: See `make_confidence_fn`.
        run: The weights.
        dataset: The split.
        image_iou: Mean IoU of every image, NaN of one without labeled pixels.
    """
    selected = select_examples(image_iou)
    sample = sample_indices(len(dataset))
    calibration = Calibration()
    shown = {}
    wanted = sorted({*selected, *sample})
    examples = ((index, dataset[index]) for index in wanted)
    for found in predict(run.params, run.batch_stats, examples):
        if found.index in sample:
            pair = found.example.labels, found.labels
            calibration.add(*pair, found.confidence, dataset.info.num_classes)
        if found.index in selected:
            shown[found.index] = found
    ranked = [(rank, image_iou[i], shown[i]) for i, rank in selected.items()]
    return ranked, calibration


def save_figures(
    results: dict[str, Any],
    examples: Sequence[RankedExample],
    info: DatasetInfo,
    prefix: Path,
) -> None:
    """Plots the scores to files whose names start with `prefix`, with matplotlib."""
    if not has_package("matplotlib", "figures"):
        return
    # Here, so that scores can be computed without it.
    from encnet_jax.visualize import charts

    charts.save_class_bars(results, info, Path(f"{prefix}-classes.png"))
    charts.save_confusion(
        results["confusion_matrix"], info, Path(f"{prefix}-confusion.png")
    )
    rows = [
        (
            f"{rank}, IoU {100 * iou:.1f}: {p.example.name}",
            p.example.shown(info),
            p.labels,
        )
        for rank, iou, p in examples
    ]
    if rows:
        charts.save_examples(rows, info, Path(f"{prefix}-examples.png"))


def example_strips(
    examples: Sequence[RankedExample], info: DatasetInfo
) -> dict[str, list[Strip]]:
    """Returns the strips of the best, the median and the worst images."""
    strips: dict[str, list[Strip]] = {}
    for rank, iou, found in examples:
        score = f"mean IoU {100 * iou:.1f} %"
        strip = make_strip(found.example.shown(info), found.labels, info, score, LARGE)
        strips.setdefault(rank, []).append(strip)
    return strips


def class_strips(log: ImageLog, dataset: Dataset) -> list[list[Strip]]:
    """Returns for each class the strips of the images with its lowest IoU.

    Args:
        log: The counts of every image, with the predictions as thumbnails.
        dataset: The split; images are read of it.
    """
    info, iou = dataset.info, log.iou
    count = min(3, max(1, _MAX_WORST // info.num_classes))
    wrong = 1 - log.correct.sum(1) / np.maximum(log.labeled.sum(1), 1)

    @functools.cache
    def strip(index: int) -> Strip:
        labels = labels_from_text(log.thumbnails[index] or "")
        return make_strip(
            dataset[index].shown(info), labels, info, "", SMALL, float(wrong[index])
        )

    return [
        [
            strip(index)._replace(score=f"IoU {100 * iou[index, k]:.1f} %")
            for index in indices
        ]
        for k, indices in enumerate(worst_images(log, count))
    ]
