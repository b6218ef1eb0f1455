"""Exports a trained model: python export.py --workdir=runs/NAME --output=DIR.

DIR, which must be new or empty, gets model.stablehlo, or with --format=onnx model.onnx,
with the weights inside, classes.json, and a README.md that says how to run it.
"""

from pathlib import Path

from absl import flags

from encnet_jax import cli


def define_flags() -> None:
    """Defines the flags of the verb."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("output", None, "Folder to write.", required=True)
    flags.DEFINE_string("format", "stablehlo", "stablehlo or onnx.")
    flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a number.")
    flags.DEFINE_string("size", "", "ONNX for one image of HEIGHTxWIDTH alone.")


def main(arguments: list[str]) -> None:
    """Runs the export."""
    from encnet_jax.export.workdir_run import export_workdir

    cli.reject_positional(arguments)
    values = flags.FLAGS
    text = export_workdir(
        Path(values.workdir),
        Path(values.output),
        values.format,
        values.step,
        values.size,
    )
    print(text)
