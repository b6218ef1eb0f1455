"""The page of a comparison: curves, scores, classes, and images that differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from encnet_jax.compare.bootstrap import DRAWS, Differences, paired_differences
from encnet_jax.compare.evaluations import Evaluation, metric_names
from encnet_jax.data.datasets import Example
from encnet_jax.data.image_io import set_max_image_pixels
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError, reason_of
from encnet_jax.evaluate.image_log import ImageLog
from encnet_jax.evaluate.scores import summary_names
from encnet_jax.models.registry import segments
from encnet_jax.report.charts import curve_chart
from encnet_jax.report.evaluation import Strip, Thumbnail, describe, environment
from encnet_jax.report.page import percent, save_page
from encnet_jax.report.thumbnails import (
    SMALL,
    image_uri,
    labels_from_text,
    labels_uri,
    small_size,
)
from encnet_jax.run.workdir import load_run_config, load_run_info

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
    shown = most_different(evaluations)
    examples, problem = read_examples(first, shown, data_dir)
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
            absent_classes=first.absent_classes,
        )
        pairs.append(
            {
                "number": number,
                "name": other.name,
                "rows": class_rows(first, found),
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
            image_strip(index, evaluations, examples.get(index)) for index in shown
        ],
        problem=problem,
        settings=environment(),
    )


def read_examples(
    run: Evaluation, indices: Sequence[int], data_dir: str | None = None
) -> tuple[dict[int, Example], str]:
    """Reads examples of the data set of an evaluation by their index.

    Returns None, and the reason, if it cannot be opened or its images or labels are not
    those of the evaluation, as with another folder. Nothing is downloaded.
    """
    try:
        config = load_run_config(run.workdir)
        set_max_image_pixels(config.data.max_image_pixels)
        name = run.scores.get("data", config.data.name)
        folder = config.data.data_dir if name == config.data.name else None
        dataset = open_dataset(
            name,
            run.scores["split"],
            data_dir or folder,
            in_memory=config.data.cache_on_device,
            check=False,
            prepare=False,
            bands=load_run_info(run.workdir),
        )
        if len(dataset) != len(run.log.names):
            raise UserError(f"{name}: has {len(dataset)} images now")
        examples = {i: dataset[i].shown(dataset.info) for i in indices}
        for index, example in examples.items():
            _check_example(example, run.log, index)
    except (UserError, OSError, ImportError, KeyError) as error:
        return {}, reason_of(error)
    return examples, ""


def _check_example(example: Example, log: ImageLog, index: int) -> None:
    """Raises `UserError` unless an example is the one that was evaluated."""
    if example.name != log.names[index]:
        raise UserError(
            f"image {index} is {example.name!r}; {log.names[index]!r} was evaluated"
        )
    counts = np.bincount(example.labels.ravel(), minlength=256)
    labeled = log.labeled[index]
    if not np.array_equal(counts[: len(labeled)], labeled):
        raise UserError(f"the labels of {example.name!r} are not those evaluated")


def run_row(run: Evaluation) -> dict[str, Any]:
    """Returns what the page says of a run."""
    settings = run.scores.get("evaluation") or {}
    config = load_run_config(run.workdir)
    segmentation = segments(config.model.name)
    return {
        "name": run.name,
        "workdir": run.workdir,
        "step": run.scores.get("step", "unknown"),
        "model": ", ".join(
            [config.model.name, *([config.model.backbone] if segmentation else [])]
        ),
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
        if all(isinstance(run.scores.get(key), float | int) for run in evaluations):
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


def class_rows(first: Evaluation, found: Differences) -> list[dict[str, Any]]:
    """Returns the table of per-class differences, the largest gain first."""
    bounds = np.abs(np.stack([found.by_class, *found.intervals]))
    largest = max(float(np.nan_to_num(bounds).max()), 1e-9)
    order = np.argsort(-np.nan_to_num(found.by_class, nan=-9.0), kind="stable")
    rows = []
    for k in order.tolist():
        low, high = found.intervals[:, k].tolist()
        rows.append(
            {
                "name": first.info.class_names[k],
                "color": "#{:02x}{:02x}{:02x}".format(*first.info.colors[k]),
                "values": found.scores[:, k].tolist(),
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
    index: int, evaluations: Sequence[Evaluation], example: Example | None
) -> Strip:
    """Returns an image with its label and the predictions of the runs.

    Args:
        index: Of the image in the split.
        evaluations: The runs.
        example: The image; None where the data set cannot be opened.
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
    if example is not None:
        height, width = small_size(example.image.shape[:2], SMALL)
        uri = image_uri(example.image, SMALL)
        thumbnails.append(Thumbnail("Image", uri, name, width, height))
        if example.labels.ndim:
            uri = labels_uri(example.labels, info.colors, SMALL)
            alt = describe(example.labels, info.class_names)
            thumbnails.append(Thumbnail("Label", uri, alt, width, height))
    for run in evaluations:
        if (stored := run.log.thumbnails[index]) is not None:
            labels = _decode(stored, run, name)
            uri = labels_uri(labels, info.colors)
            alt = describe(labels, info.class_names)
            height, width = labels.shape
            thumbnails.append(Thumbnail(run.name, uri, alt, width, height))
    return Strip(name, score, thumbnails)


def _decode(stored: str, run: Evaluation, name: str) -> UInt8[np.ndarray, "h w"]:
    try:
        return labels_from_text(stored)
    except (ValueError, OSError, SyntaxError) as error:
        raise UserError(
            f"{run.workdir}: the stored prediction of {name!r} is damaged: {error}; "
            "evaluate the run again"
        ) from error
