"""The page of an evaluation, `SPLIT.html`, beside the scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from encnet_jax.config import leaves
from encnet_jax.data.datasets import Dataset
from encnet_jax.errors import UserError, has_package
from encnet_jax.evaluate.figures import RankedExample, class_strips, example_strips
from encnet_jax.evaluate.image_log import image_log_path, read_image_log
from encnet_jax.evaluate.scores import over_classes, summary_names
from encnet_jax.evaluate.settings import describe_differences
from encnet_jax.report.evaluation import save_evaluation_page
from encnet_jax.report.page import percent
from encnet_jax.run.workdir import LoadedRun

# Summarizing scores that are means over classes.
_OVER_CLASSES = {"mean_iou": 0, "mean_iou_with_background": 1}


def page_settings(
    config: ConfigDict, split: str, run: LoadedRun, differences: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a page lists as settings.

    Args:
        config: Settings of the evaluation.
        split: Name of the split.
        run: The model.
        differences: See `settings.differences_from_training`.
    """
    settings = {
        "data.name": config.data.name,
        "split": split,
        "checkpoint": f"step {run.step}",
        "model.name": run.config.model.name,
        "model.dtype": run.dtype,
    }
    if run.info.task == "segmentation":
        settings |= {
            "model.backbone": run.config.model.backbone,
            "data.base_size": config.data.base_size,
            "data.crop_size": config.data.crop_size,
            **{f"evaluation.{k}": v for k, v in leaves(config.evaluation)},
        }
    if differences:
        text = describe_differences(dict(differences))
        settings["differs from training"] = text
    return settings


def save_segmentation_page(
    path: Path,
    results: dict[str, Any],
    examples: Sequence[RankedExample],
    dataset: Dataset,
    settings: Mapping[str, Any],
    command: str | None,
) -> None:
    """Writes the page of a segmentation, unless jinja2 is missing.

    Args:
        path: The file of the scores; the counts of the images lie beside it.
        results: The scores.
        examples: The best, the median and the worst images.
        dataset: The split.
        settings: See `page_settings`.
        command: The command line, or None.
    """
    if not has_package("jinja2", "page"):
        return
    info, count = dataset.info, results["images"]
    try:
        log = read_image_log(image_log_path(path), info.num_classes)
    except UserError:
        log = None  # of hosts with a workdir of their own
    save_evaluation_page(
        path.with_suffix(".html"),
        results,
        info,
        title=f"{info.name} {path.stem}: {count:,} images, {settings['checkpoint']}",
        tiles=segmentation_tiles(results, info.num_classes),
        examples=example_strips(examples, info),
        worst=[] if log is None else class_strips(log, dataset),
        settings=settings,
        command=command,
    )


def segmentation_tiles(
    results: dict[str, Any], num_classes: int
) -> list[tuple[str, str, str]]:
    """Returns name, value and note of each summarizing score, mean IoU first."""
    names = summary_names(results)
    tiles = []
    for key in sorted(names, key=lambda name: name != "mean_iou"):
        note = ""
        if key in _OVER_CLASSES:
            more = _OVER_CLASSES[key]
            counted = results["classes_scored"] + more, num_classes + more
            note = over_classes(*counted)
        tiles.append((_capitalized(names[key]), f"{percent(results[key], 2)} %", note))
    calibration = results["calibration"]
    error = percent(calibration["expected_calibration_error"], 2)
    note = f"from {calibration['images']} images"
    tiles.append(("Calibration error (ECE)", f"{error} %", note))
    return tiles


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
