"""Plots training curves: python -m benchmarks.plot_run --output=FILE.png WORKDIR...

Plots the smoothed training loss, and the mean IoU or the classification error, over the
steps in metrics.jsonl.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from encnet_jax import cli
from encnet_jax.errors import UserError

_OUTPUT = flags.DEFINE_string("output", None, "The image file to write.", required=True)
_WINDOW = 20  # lines of metrics.jsonl over which the loss is averaged
_SCORES = {"mean_iou": "mean IoU on val", "error": "error on test"}

Curve = list[tuple[int, float]]


def read(workdir: Path) -> tuple[Curve, dict[str, Curve]]:
    """Reads (step, loss) of a run, and (step, value) of its scores."""
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if line.get("loss")]
    scored = [line for line in lines if "loss" not in line]
    scores = {
        score: [(line["step"], line[score]) for line in scored if score in line]
        for score in _SCORES
    }
    return losses, scores


def main(arguments: list[str]) -> None:
    """Plots one line per run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    if not arguments:
        raise UserError("no workdir given; list the workdirs after the flags")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.4))
    for name in arguments:
        losses, scores = read(Path(name))
        steps, values = np.array(losses).T
        kernel = np.ones(min(_WINDOW, len(values))) / min(_WINDOW, len(values))
        smooth = np.convolve(values, kernel, "valid")
        left.plot(steps[len(steps) - len(smooth) :], smooth, label=Path(name).name)
        for score, curve in scores.items():
            if curve:
                right.plot(*np.array(curve).T, "o-", label=Path(name).name)
                right.set_ylabel(_SCORES[score])
    left.set_ylabel("training loss")
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(_OUTPUT.value, dpi=110)


if __name__ == "__main__":
    cli.run(main)
