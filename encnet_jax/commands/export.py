"""Exports a trained model: encnet export --workdir=runs/NAME --output=DIR.

DIR must be new or empty. Writes model.stablehlo (model.onnx with --format=onnx), which
includes the weights, classes.json, and a README.md with code that runs the model.
"""

from pathlib import Path

from absl import flags

from encnet_jax import cli


def define_flags() -> None:
    """Defines the flags of the verb."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("output", None, "Output folder, new or empty.", required=True)
    flags.DEFINE_string("format", "stablehlo", "stablehlo or onnx.")
    flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a step number.")
    flags.DEFINE_string("size", "", "HEIGHTxWIDTH of a fixed-size ONNX model.")


def main(arguments: list[str]) -> None:
    """Runs the export."""
    from encnet_jax.export.run import export_workdir

    cli.reject_positional(arguments)
    values = flags.FLAGS
    text = export_workdir(
        Path(values.workdir).expanduser(),
        Path(values.output).expanduser(),
        values.format,
        values.step,
        values.size,
    )
    print(text)
