"""The page of a comparison: curves, scores, classes, and images that differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from encnet_jax.compare.bootstrap import DRAWS, Differences, paired_differences
from encnet_jax.compare.evaluations import Evaluation, metric_names
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from encnet_jax.evaluate.report import summary_names
from encnet_jax.report.charts import curve_chart
from encnet_jax.report.evaluation import Strip, Thumbnail, describe, environment
from encnet_jax.report.page import percent, save_page
from encnet_jax.report.thumbnails import (
    SMALL,
    decode_labels,
    image_uri,
    labels_uri,
    small_size,
)
from encnet_jax.run.workdir import load_run_config

_SHOWN = 12  # images that differ most
_CLASSIFICATION = {"accuracy": "accuracy", "error": "error"}


def save_comparison(
    path: Path, evaluations: Sequence[Evaluation], data_dir: str | None = None
) -> None:
    """Writes the page.

    Args:
        path: HTML file.
        evaluations: See `load_evaluations`; the first is what others are compared to.
        data_dir: Folder of the data set, by default that of the first run; without the
            data set there are no images on the page, only predictions.
    """
    first = evaluations[0]
    dataset, problem = open_images(first, data_dir)
    curves = [
        curve_chart(title, {run.name: run.curve(key) for run in evaluations})
        for key, title in metric_names(first.info).items()
    ]
    pairs = []
    for number, other in enumerate(evaluations[1:], 2):
        found = paired_differences(
            first.log,
            other.log,
            first.info.task,
            absent_classes=first.scores.get("evaluation", {}).get(
                "absent_classes", "skip"
            ),
        )
        pairs.append(
            {
                "number": number,
                "name": other.name,
                "rows": class_rows(first, other, found),
                "mean": found.mean,
                "interval": found.mean_interval.tolist(),
            }
        )
    count = f"{len(first.log.names):,} images"
    title = f"{first.info.name} {first.scores['split']}: {len(evaluations)} runs"
    save_page(
        path,
        "compare.html",
        title=title,
        lead=f"{count}. Differences are to {first.name}.",
        runs=[run_row(run) for run in evaluations],
        first=first.name,
        task=first.info.task,
        score="accuracy" if first.info.task == "classification" else "IoU",
        draws=DRAWS,
        curves=[chart for chart in curves if any(chart.curves)],
        scores=score_rows(evaluations),
        pairs=pairs,
        images=[
            image_strip(index, evaluations, dataset)
            for index in most_different(evaluations)
        ],
        problem=problem,
        settings=environment(),
    )


def open_images(
    run: Evaluation, data_dir: str | None = None
) -> tuple[Dataset | None, str]:
    """Opens the data set of an evaluation; None and the reason if that fails.

    Nothing is downloaded.
    """
    try:
        config = load_run_config(run.workdir)
        name = run.scores.get("data", config.data.name)
        folder = config.data.data_dir if name == config.data.name else None
        dataset = open_dataset(
            name,
            run.scores["split"],
            data_dir or folder,
            drawn=config.data.cache_on_device,
            check=False,
            prepare=False,
        )
        if len(dataset) != len(run.log.names):
            raise UserError(f"{name}: has {len(dataset)} images now")
    except (UserError, OSError, ImportError, KeyError) as error:
        return None, " ".join(str(error).split())
    return dataset, ""


def run_row(run: Evaluation) -> dict[str, Any]:
    """Returns what the page says of a run."""
    settings = run.scores.get("evaluation", {})
    config = load_run_config(run.workdir)
    return {
        "name": run.name,
        "workdir": run.workdir,
        "step": run.scores.get("step", "unknown"),
        "model": config.model.name,
        "backbone": config.model.backbone,
        "protocol": ", ".join(
            f"{key} {settings[key]}"
            for key in ("protocol", "mode", "scales", "flip", "base_size")
            if settings.get(key)
        ),
    }


def score_rows(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Returns the summarizing scores that all runs have."""
    first = evaluations[0].scores
    names = _CLASSIFICATION if "accuracy" in first else summary_names(first)
    rows = []
    for key in sorted(names, key=lambda name: name != "mean_iou"):
        if all(run.scores.get(key) is not None for run in evaluations):
            name = f"{names[key][:1].upper()}{names[key][1:]}"
            rows.append(_score_row(name, [run.scores[key] for run in evaluations]))
    errors = [
        (run.scores.get("calibration") or {}).get("expected_calibration_error")
        for run in evaluations
    ]
    known = [error for error in errors if error is not None]
    if len(known) == len(evaluations):
        rows.append(_score_row("Calibration error", known))
    return rows


def _score_row(name: str, values: list[float]) -> dict[str, Any]:
    low = name in ("Error", "Calibration error")
    best = min(values) if low else max(values)
    marked = [(value, value == best and len({*values}) > 1) for value in values]
    return {"name": name, "values": marked}


def class_rows(
    first: Evaluation, other: Evaluation, found: Differences
) -> list[dict[str, Any]]:
    """Returns the table of per-class differences, the largest gain first."""
    key = "per_class_iou"
    if first.info.task == "classification":
        key = "per_class_accuracy"
    bounds = np.abs(found.intervals)[:, ~np.isnan(found.intervals[0])]
    largest = max(float(bounds.max()) if bounds.size else 0.0, 1e-9)
    order = np.argsort(-np.nan_to_num(found.by_class, nan=-9.0), kind="stable")
    rows = []
    for k in order.tolist():
        low, high = found.intervals[:, k].tolist()
        rows.append(
            {
                "name": first.info.class_names[k],
                "color": "#{:02x}{:02x}{:02x}".format(*first.info.colors[k]),
                "values": [run.scores[key][k] for run in (first, other)],
                "difference": float(found.by_class[k]),
                "low": low,
                "high": high,
                "bar": [float(v) / largest for v in (found.by_class[k], low, high)],
                "sign": "better" if low > 0 else "worse" if high < 0 else "",
                "images": int((first.log.labeled[:, k] > 0).sum()),
            }
        )
    return rows


def most_different(evaluations: Sequence[Evaluation]) -> list[int]:
    """Returns the images whose scores differ most between the runs, largest first."""
    scores = np.stack([run.image_scores for run in evaluations])
    spread = np.nan_to_num(scores.max(0) - scores.min(0))
    order = np.argsort(-spread, kind="stable")[:_SHOWN]
    return [index for index in order.tolist() if spread[index] > 0]


def image_strip(
    index: int, evaluations: Sequence[Evaluation], dataset: Dataset | None
) -> Strip:
    """Returns an image with its label and the predictions of the runs.

    Args:
        index: Of the image in the split.
        evaluations: The runs.
        dataset: The split; None where it cannot be opened.
    """
    info, name = evaluations[0].info, evaluations[0].log.names[index]
    scores = [float(run.image_scores[index]) for run in evaluations]
    if info.task == "classification":
        texts = ["right" if score else "wrong" for score in scores]
    else:
        texts = [f"mean IoU {percent(score)} %" for score in scores]
    names = [run.name for run in evaluations]
    score = "; ".join(f"{run} {text}" for run, text in zip(names, texts))
    thumbnails = []
    if dataset is not None:
        example = dataset[index]
        height, width = small_size(example.image.shape[:2], SMALL)
        uri = image_uri(example.image, SMALL)
        thumbnails.append(Thumbnail("Image", uri, name, width, height))
        if example.labels.ndim:
            uri = labels_uri(example.labels, info.colors, SMALL)
            alt = describe(example.labels, info.class_names)
            thumbnails.append(Thumbnail("Label", uri, alt, width, height))
    for run in evaluations:
        if (stored := run.log.thumbnails[index]) is not None:
            labels = decode_labels(stored)
            uri = labels_uri(labels, info.colors)
            alt = describe(labels, info.class_names)
            height, width = labels.shape
            thumbnails.append(Thumbnail(run.name, uri, alt, width, height))
    return Strip(name, score, thumbnails)
