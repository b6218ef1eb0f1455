"""Training curves from metrics.jsonl: the loss and the scores over the steps."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from encnet_jax.config import load_config
from encnet_jax.errors import UserError

_WINDOW = 20  # lines of metrics.jsonl over which the loss is averaged
_SCORES = {"mean_iou": "mean IoU", "error": "error"}

Curve = list[tuple[int, float]]


def read(workdir: Path) -> tuple[Curve, dict[str, Curve]]:
    """Reads (step, loss) of a run, and (step, value) of its scores."""
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    lines = list(metric_lines(path))
    losses = [(line["step"], line["loss"]) for line in lines if line.get("loss")]
    scored = [line for line in lines if "loss" not in line]
    scores = {
        score: [(line["step"], line[score]) for line in scored if score in line]
        for score in _SCORES
    }
    return losses, scores


def metric_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of a metrics.jsonl, but those that were cut."""
    for line in path.read_text(errors="replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # cut by a kill or a full disk


def _split_of(workdir: Path) -> str:
    """Returns what a training scored, or "" where its configuration is missing."""
    path = workdir / "config.json"
    return load_config(path).evaluation.split if path.exists() else ""


def plot(workdirs: Sequence[Path], path: Path, split: str | None = None) -> None:
    """Plots the smoothed loss and the scores, one line per run.

    Args:
        workdirs: Folders of the runs.
        path: The image file to write.
        split: What was scored during the training; by default what each
            configuration says.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.4))
    for workdir in workdirs:
        losses, scores = read(workdir)
        steps, values = np.array(losses).reshape(-1, 2).T
        if losses:
            window = min(_WINDOW, len(values))
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            left.plot(steps[len(steps) - len(smooth) :], smooth, label=workdir.name)
        scored = f" on {split or _split_of(workdir)}".removesuffix(" on ")
        for score, curve in scores.items():
            if curve:
                right.plot(*np.array(curve).T, "o-", label=workdir.name)
                right.set_ylabel(_SCORES[score] + scored)
    left.set_ylabel("training loss")
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines:
            axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
