"""Checkpoint folders as files: which steps there are, their scores, which are kept."""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from encnet_jax import migrations
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.errors import UserError
from encnet_jax.files import check_folder, user_path, whole_file

Shapes = Mapping[str, tuple[int, ...]]
# By step. None: not evaluated; infinite: cannot be read.
Scores = Mapping[int, float | None]

_LATEST_KEPT = 2
_log = logging.getLogger(__name__)
_UNREADABLE = "*?[\\"  # Orbax globs paths, TensorStore takes a backslash for a slash
_REMOVED = "removed"  # suffix of a checkpoint that is being deleted


def check_path(folder: Path) -> None:
    """Raises `UserError` if checkpoints written to the folder could not be read again.

    Writing would succeed; reading finds nothing, or the files of another folder.
    """
    if any(part.endswith(":") and len(part) > 2 for part in folder.parts):
        raise UserError(f"{folder}: an address; the workdir must be a local folder")
    found = [c for c in _UNREADABLE if c in folder.as_posix()]
    if found:
        raise UserError(
            f"{folder}: checkpoints cannot be read from a path with "
            f"{' or '.join(found)}; use another workdir, or rename or link the folder"
        )


def check_workdir_path(workdir: str | Path) -> Path:
    """Returns the folder of a run as a path, with the home folder in place of `~`.

    Raises:
        UserError: It cannot be written to, or see `check_path` and `files.user_path`.
    """
    path = user_path(workdir)
    check_path(Path(os.path.abspath(path)))
    check_folder(path, "workdir")
    return path


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps of all finished checkpoints, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def best_metric_name(info: DatasetInfo) -> str:
    """Returns the name of the score that ranks checkpoints, greater is better."""
    return "accuracy" if info.task == "classification" else "mean_iou"


def choose_step(folder: Path, step: str | int, metric: str) -> int:
    """Returns the step of the checkpoint asked for.

    Args:
        folder: `WORKDIR/checkpoints`.
        step: `"best"` by the metric, or the latest if none was evaluated; `"latest"`;
            or a number.
        metric: Name of the score that ranks checkpoints, greater is better.

    Raises:
        UserError: There is no such checkpoint.
    """
    steps = saved_steps(folder)
    if not steps:
        raise UserError(f"{folder}: no checkpoint")
    if step == "latest":
        return steps[-1]
    if step == "best":
        best = best_step(read_scores(folder, metric))
        return steps[-1] if best is None else best
    if not str(step).isdecimal():
        raise UserError(f"step={step!r}: allowed are best, latest or a step number")
    if int(step) not in steps:
        names = ", ".join(map(str, steps))
        raise UserError(f"step {step}: not in {folder}; there are {names}")
    return int(step)


def read_scores(folder: Path, metric: str) -> dict[int, float | None]:
    """Returns the score of each checkpoint, ascending by step.

    Args:
        folder: `WORKDIR/checkpoints`.
        metric: Name of the score.
    """
    return {step: _score(folder / str(step), metric) for step in saved_steps(folder)}


def write_score(checkpoint: Path, metric: str, value: float) -> None:
    """Stores the score of a finished checkpoint, where Orbax keeps metrics."""
    path = checkpoint / "metrics" / "metrics"
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as file:
        file.write(json.dumps({metric: value}).encode())


def best_step(scores: Scores) -> int | None:
    """Returns the step of the highest score, the earliest if several have it."""
    known = {
        step: score
        for step, score in sorted(scores.items())
        if score is not None and math.isfinite(score)
    }
    return max(known, key=known.__getitem__) if known else None


def kept_steps(scores: Scores) -> set[int]:
    """Returns the latest two steps, in case one is damaged, and the best.

    Also those whose score cannot be read, as one of them may be the best.
    """
    kept = set(sorted(scores)[-_LATEST_KEPT:])
    kept |= {step for step, score in scores.items() if _unreadable(score)}
    best = best_step(scores)
    return kept if best is None else kept | {best}


def _unreadable(score: float | None) -> bool:
    return score is not None and math.isinf(score)


def remove_checkpoint(folder: Path, step: int) -> None:
    """Deletes a checkpoint so that, if killed meanwhile, no incomplete one is left."""
    removed = folder / f"{step}.{_REMOVED}"
    (folder / str(step)).rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def set_aside(folder: Path, step: int) -> None:
    """Renames a damaged checkpoint, so that its step can be saved again."""
    target, count = folder / f"{step}.damaged", 1
    while target.exists():
        count += 1
        target = folder / f"{step}.damaged-{count}"
    (folder / str(step)).rename(target)


def remove_leftovers(folder: Path) -> None:
    """Deletes what a killed run left: checkpoints half written and half deleted."""
    for pattern in ("[0-9]*.*tmp*", f"[0-9]*.{_REMOVED}"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _score(checkpoint: Path, metric: str) -> float | None:
    path = checkpoint / "metrics" / "metrics"
    try:
        return float(json.loads(path.read_text())[metric])
    except FileNotFoundError:
        return None  # saved without an evaluation
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        _log.warning("WARNING: %s: cannot be read: %s", path, error)
        return math.inf


def stored_paths(
    checkpoint: Path, stored: Shapes, params: Shapes, batch_stats: Shapes
) -> dict[str, str]:
    """Returns path -> path in the checkpoint, for arrays renamed since it was saved.

    Args:
        checkpoint: Named in the error.
        stored: Shapes of the parameters in the checkpoint, by path.
        params: Shapes of the model's parameters, by path.
        batch_stats: Shapes of its running statistics, by path.

    Raises:
        UserError: Parameters differ in name or shape: the model is another one.
    """
    old = {p: migrations.old_parameter_path(p, params) for p in (*params, *batch_stats)}
    if stored.keys() != params.keys() and stored.keys() == {old[p] for p in params}:
        stored = {path: stored[old[path]] for path in params}
    else:
        old = {}
    for path in sorted(params.keys() | stored.keys()):
        if stored.get(path) != params.get(path):
            raise UserError(
                f"{checkpoint}: the checkpoint of another model: {path} has the shape "
                f"{stored.get(path)} there and {params.get(path)} here"
            )
    return old
