"""The origin of trained weights and their scores, as a model card states them."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.errors import UserError
from encnet_jax.run.checkpoint_folder import best_metric_name
from encnet_jax.run.mean_gate import MeanGate, read_mean_gate

# Key of a score -> how a model card names it.
METRICS = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "accuracy": "accuracy",
}
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)
_log = logging.getLogger(__name__)


def training_record(
    workdir: Path,
    config: ConfigDict,
    info: DatasetInfo,
    step: int,
    score: float | None,
) -> dict[str, Any]:
    """Returns the origin of the weights of a checkpoint, as JSON can hold it.

    Args:
        workdir: Folder of the run.
        config: Its configuration.
        info: Its data set.
        step: Step of the checkpoint; 0 for imported weights.
        score: Its score in the evaluation during training, if there was one.

    Returns:
        `run`, the name of the workdir; `step`; how it was trained; and `scores`, a dict
        for each evaluation of this step with `dataset`, `split`, `evaluation` (in
        words) and metrics from 0 to 1, the last one of `score` unless an evaluation
        repeats it; and `mean_gate`, see `MeanGate`, if one is stored with the
        checkpoint. No paths.
    """
    record: dict[str, Any] = {"run": workdir.resolve().name, "step": step}
    if step > 0:
        record |= dict(
            total_steps=config.total_steps,
            batch_size=config.batch_size,
            crop_size=config.data.crop_size,
            learning_rate=config.learning_rate,
            optimizer=config.optimizer.name,
        )
        start = config.model.weights
        if start:
            record["initial_weights"] = (
                start if start.startswith("hf://") else "pretrained weights"
            )
    evaluations = _evaluations(workdir / "evaluation", config, step)
    scores = [entry for entry, _ in evaluations]
    own = dict(dataset=config.data.name, split=config.evaluation.split)
    told = any(as_trained and entry | own == entry for entry, as_trained in evaluations)
    if not told and score is not None and math.isfinite(score):
        metric = best_metric_name(info)
        scores.append({**own, "evaluation": "during training", metric: score})
    if scores:
        record["scores"] = scores
    mean_gate = read_mean_gate(workdir / "checkpoints" / str(step))
    if mean_gate is not None:
        record["mean_gate"] = mean_gate.to_json()
    return record


def check_record(record: dict[str, Any], path: Path) -> None:
    """Raises `UserError` unless a record that was read is one, or empty.

    Args:
        record: As returned by `json.loads`.
        path: The file, for errors.
    """
    types: dict[str, Any] = {"run": str, "step": int}
    if "initial_weights" in record:
        types["initial_weights"] = str
    if "total_steps" in record:
        numbers = ("total_steps", "batch_size", "crop_size", "learning_rate")
        types |= {key: int | float for key in numbers} | {"optimizer": str}
    scores = record.get("scores", [])
    texts = {"dataset": str, "split": str, "evaluation": str}
    valid = isinstance(scores, list) and all(
        isinstance(score, dict)
        and _has(score, texts)
        and any(key in score for key in METRICS)
        and _has(score, {key: int | float for key in METRICS if key in score})
        for score in scores
    )
    if record and not (valid and _has(record, types) and record["step"] >= 0):
        raise UserError(f"{path}: training: {record!r} is not the record of a training")
    if "mean_gate" in record:
        try:
            MeanGate.from_json(record["mean_gate"])
        except ValueError as error:
            raise UserError(f"{path}: training.mean_gate: {error}") from error


def is_number(value: Any) -> bool:
    """Returns whether a value of JSON is a number that every reader can use."""
    # No Boolean, no NaN, no infinity, and no integer that is too large for a float.
    return type(value) in (int, float) and abs(value) < 1e300


def _has(values: dict[str, Any], types: dict[str, Any]) -> bool:
    found = [(values.get(key), kind) for key, kind in types.items()]
    return all(
        isinstance(value, kind) and (isinstance(value, str) or is_number(value))
        for value, kind in found
    )


def _evaluations(
    folder: Path, config: ConfigDict, step: int
) -> list[tuple[dict[str, Any], bool]]:
    """Reads the scores of a step that `evaluate.py` wrote.

    Returns:
        Entries of `scores`, each with whether its settings are known to be those of the
        training; the data set may be another.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            stored = json.loads(path.read_text())
            if stored["step"] != step:
                continue
            differences = stored.get("differs_from_training", {})
            other = differences.pop("data.name", {})
            metrics = {
                key: stored[key]
                for key in METRICS
                if isinstance(stored.get(key), float) and math.isfinite(stored[key])
            }
            entry = {
                "dataset": stored.get("data") or other.get("value", config.data.name),
                "split": str(stored["split"]),
                "evaluation": _in_words(stored.get("evaluation", {}), differences),
                **metrics,
            }
            if metrics:
                # Without the key, of an older version: not known.
                as_trained = "differs_from_training" in stored and not differences
                found.append((entry, as_trained))
        # Another program's file, or one of a version that stored less.
        except _UNREADABLE as error:
            _log.warning("WARNING: %s: not used as scores: %r", path, error)
    return found


def _in_words(settings: dict[str, Any], differences: dict[str, Any]) -> str:
    """Describes an evaluation; `settings` are {} for a classification.

    Args:
        settings: `evaluation` of its configuration.
        differences: What was not as in the training; see `differences_from_training`.
    """
    scales = settings.get("scales") or ()
    words = [f"{len(scales)} scales" if len(scales) > 1 else "single scale"]
    whole = settings.get("protocol") == "mmseg" or not scales
    if settings.get("mode") == "slide" or not whole:
        words.append("windows")
    if settings.get("flip"):
        words.append("mirrored")
    said = [f"evaluation.{key}" for key in ("scales", "mode", "flip")]
    others = {key: pair for key, pair in differences.items() if key not in said}
    words += [f"{key}={pair['value']}" for key, pair in others.items()]
    return ", ".join(words)
