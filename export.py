"""Exports a trained model: python export.py --workdir=runs/NAME --output=DIR.

DIR, which must be new or empty, gets model.stablehlo, or with --format=onnx model.onnx,
with the weights inside, classes.json, and a README.md that says how to run it.
"""

from pathlib import Path

from absl import flags

from encnet_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_FORMAT = flags.DEFINE_string("format", "stablehlo", "stablehlo or onnx.")
_STEP = flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a number.")
_SIZE = flags.DEFINE_string("size", "", "ONNX for one image of HEIGHTxWIDTH alone.")


def main(arguments: list[str]) -> None:
    """Runs the export."""
    from encnet_jax.export.workdir_run import export_workdir

    cli.reject_positional(arguments)
    text = export_workdir(
        Path(_WORKDIR.value),
        Path(_OUTPUT.value),
        _FORMAT.value,
        _STEP.value,
        _SIZE.value,
    )
    print(text)


if __name__ == "__main__":
    cli.run(main)
