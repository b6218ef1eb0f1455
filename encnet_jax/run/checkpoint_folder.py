"""Checkpoint folders as files: which steps there are, and under which names."""

import json
from collections.abc import Mapping
from pathlib import Path

from encnet_jax import migrations
from encnet_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps of all finished checkpoints, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


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
        scores = {s: _score(folder / str(s), metric) for s in steps}
        known = {s: score for s, score in scores.items() if score is not None}
        return max(known, key=known.__getitem__) if known else steps[-1]
    if int(step) not in steps:
        names = ", ".join(map(str, steps))
        raise UserError(f"step {step}: not in {folder}; there are {names}")
    return int(step)


def _score(checkpoint: Path, metric: str) -> float | None:
    path = checkpoint / "metrics" / "metrics"
    try:
        return float(json.loads(path.read_text())[metric])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # saved without an evaluation


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
