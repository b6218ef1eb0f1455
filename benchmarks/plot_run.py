"""Draws the course of runs: python -m benchmarks.plot_run --output=FILE.png WORKDIR...

Training loss (smoothed) and validation mean IoU against the step, from metrics.jsonl.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from encnet_jax import command
from encnet_jax.errors import UserError

_OUTPUT = flags.DEFINE_string("output", None, "The picture to write.", required=True)
_SPAN = 20  # lines of metrics that the loss is averaged over


def read(workdir: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Returns (step, loss) and (step, mean IoU) of a run."""
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if line.get("loss")]
    scores = [(line["step"], line["mean_iou"]) for line in lines if "mean_iou" in line]
    return losses, scores


def main(arguments: list[str]) -> None:
    """Draws one line a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not arguments:
        raise UserError("no workdir: give the folders of runs after the flags")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.4))
    for name in arguments:
        losses, scores = read(Path(name))
        steps, values = np.array(losses).T
        kernel = np.ones(min(_SPAN, len(values))) / min(_SPAN, len(values))
        smooth = np.convolve(values, kernel, "valid")
        left.plot(steps[len(steps) - len(smooth) :], smooth, label=Path(name).name)
        if scores:
            right.plot(*np.array(scores).T, "o-", label=Path(name).name)
    left.set_ylabel("training loss")
    right.set_ylabel("mean IoU on val")
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(_OUTPUT.value, dpi=110)


if __name__ == "__main__":
    command.run(main)
