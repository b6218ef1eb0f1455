"""Scores as a JSON file and as a table of text."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.files import whole_file
from encnet_jax.metrics import mean_iou_with_background

# The 59 classes exclude background, which some papers count as the 60th.
_WITHOUT_BACKGROUND = ("pascal_context", "pascal_context_sorted")
_SUMMARY = {
    "pixel_accuracy": "pixel accuracy",
    "mean_iou": "mean IoU",
    "mean_iou_with_background": "mean IoU, background wrong",
    "mean_boundary_iou": "mean boundary IoU",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "ade_score": "ADE score",
    "presence_average_precision": "presence precision",
}


def add_dataset_metrics(scores: dict[str, Any], info: DatasetInfo) -> dict[str, Any]:
    """Adds the scores that are reported for one data set only.

    For PASCAL-Context that is `mean_iou_with_background`, over 60 classes.
    """
    if info.name not in _WITHOUT_BACKGROUND:
        return scores
    mean = mean_iou_with_background(scores["per_class_iou"])
    return {**scores, "mean_iou_with_background": mean}


def save_scores(scores: dict[str, Any], path: Path, **more: Any) -> None:
    """Writes scores as JSON, one key per line; NaN (an absent class) becomes null."""
    items = _json_value({**more, **scores}).items()
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in items)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(f"{{\n{lines}\n}}\n".encode())


def format_table(scores: dict[str, Any], info: DatasetInfo) -> str:
    """Returns a table in percent: one line per class, then the summary."""
    columns = {"IoU": "per_class_iou", "accuracy": "per_class_accuracy"}
    options = {
        "boundary": "per_class_boundary_iou",
        "presence": "per_class_presence_average_precision",
    }
    columns |= {name: key for name, key in options.items() if key in scores}
    summary = summary_names(scores)
    width = max(map(len, (*info.class_names, *summary.values())))
    lines = [f"{'class':<{width}}" + "".join(f"  {name:>8}" for name in columns)]
    for k, name in enumerate(info.class_names):
        values = (percent(scores[key][k]) for key in columns.values())
        lines.append(f"{name:<{width}}" + "".join(f"  {v:>8}" for v in values))
    lines.append("-" * len(lines[0]))
    counted = scores["classes_scored"], info.num_classes
    notes = {
        "mean_iou": f"  {over_classes(*counted)}",
        "mean_iou_with_background": f"  {over_classes(*(n + 1 for n in counted))}",
    }
    for key, name in summary.items():
        value = percent(scores[key])
        lines.append(f"{name:<{width}}  {value:>8}{notes.get(key, '')}")
    for size, values in scores.get("by_object_size", {}).items():
        lines.append(
            f"{f'{size} objects':<{width}}  {percent(values['mean_iou']):>8}"
            f"  {percent(values['mean_recall']):>8}"
            f"  {over_classes(values['classes_scored'], info.num_classes)}"
        )
    return "\n".join(lines)


def summary_names(scores: dict[str, Any]) -> dict[str, str]:
    """Returns the summarizing scores that are there: key -> name."""
    return {key: name for key, name in _SUMMARY.items() if key in scores}


def over_classes(scored: int, count: int) -> str:
    """Says over how many classes a mean IoU is: `over 3 of 4 classes`."""
    return f"over {scored} of {count} classes"


def percent(value: float) -> str:
    """Returns a score in percent; `-` for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _json_value(value: Any) -> Any:
    """Converts arrays to lists and NaN to None, at any depth."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _json_value(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
