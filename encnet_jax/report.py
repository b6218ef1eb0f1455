"""Scores as people read them: JSON and a table."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from encnet_jax.data.classes import DatasetInfo


def save_scores(scores: dict[str, Any], path: Path, **more: Any) -> None:
    """Writes scores as JSON; NaN (a class that is absent) becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain({**scores, **more}), indent=2) + "\n")


def table(scores: dict[str, Any], info: DatasetInfo) -> str:
    """Returns what `metrics.scores` returned as text: a line a class, then means."""
    width = max(len(name) for name in (*info.class_names, "frequency weighted"))
    lines = [f"{'class':<{width}}  {'IoU':>6}  {'accuracy':>8}"]
    rows = zip(info.class_names, scores["per_class_iou"], scores["per_class_accuracy"])
    for name, iou, accuracy in rows:
        lines.append(f"{name:<{width}}  {_percent(iou):>6}  {_percent(accuracy):>8}")
    lines.append("-" * len(lines[0]))
    mean_iou, mean_accuracy = scores["mean_iou"], scores["mean_accuracy"]
    lines.append(
        f"{'mean':<{width}}  {_percent(mean_iou):>6}  {_percent(mean_accuracy):>8}"
    )
    weighted = _percent(scores["frequency_weighted_iou"])
    lines.append(f"{'frequency weighted':<{width}}  {weighted:>6}")
    pixels = _percent(scores["pixel_accuracy"])
    lines.append(f"{'all pixels':<{width}}  {'':>6}  {pixels:>8}")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
