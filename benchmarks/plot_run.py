"""Plots training curves: python -m benchmarks.plot_run --output=FILE.png WORKDIR...

Plots the smoothed training loss, and the mean IoU or the classification error, over the
steps in metrics.jsonl.
"""

from pathlib import Path

from absl import flags

from benchmarks.curves import plot
from encnet_jax import cli
from encnet_jax.errors import UserError

_OUTPUT = flags.DEFINE_string("output", None, "The image file to write.", required=True)


def main(arguments: list[str]) -> None:
    """Plots one line per run."""
    if not arguments:
        raise UserError("no workdir given; list the workdirs after the flags")
    plot([Path(name) for name in arguments], Path(_OUTPUT.value))


if __name__ == "__main__":
    cli.run(main)
