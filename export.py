"""Exports a trained model: python export.py --workdir=runs/NAME --output=DIR.

DIR must be new or empty. Writes model.stablehlo (model.onnx with --format=onnx), which
includes the weights, classes.json, and a README.md with code that runs the model.
"""

from pathlib import Path

from absl import flags

from encnet_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Output folder, new or empty.", required=True
)
_FORMAT = flags.DEFINE_string("format", "stablehlo", "stablehlo or onnx.")
_STEP = flags.DEFINE_string(
    "step", "best", "Checkpoint: best, latest or a step number."
)
_SIZE = flags.DEFINE_string("size", "", "HEIGHTxWIDTH of a fixed-size ONNX model.")


def main(arguments: list[str]) -> None:
    """Runs the export."""
    from encnet_jax.export.run import export_workdir

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
