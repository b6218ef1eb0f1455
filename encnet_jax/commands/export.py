"""Exports a trained model: encnet export --workdir=runs/NAME --output=DIR.

DIR must be new or empty. Writes model.stablehlo (model.onnx with --format=onnx), which
includes the weights, classes.json, and a README.md with code that runs the model. With
--format=pretrained DIR is a model folder: model.safetensors, config.json and a model
card, for Segmenter.from_pretrained, the Hugging Face hub, and --workdir; it may replace
an earlier one whose files have not been edited. With --int8 the ONNX graph is
quantized, for CPUs: --calibration names a folder of images like those it will see.
"""

from absl import flags

from encnet_jax import cli


def define_flags() -> None:
    """Defines the flags of the verb."""
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run, a model folder, or hf://OWNER/REPO.",
        required=True,
    )
    flags.DEFINE_string("output", None, "Output folder, new or empty.", required=True)
    flags.DEFINE_string("format", "stablehlo", "stablehlo, onnx or pretrained.")
    flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a step number.")
    flags.DEFINE_string("size", "", "HEIGHTxWIDTH of a fixed-size ONNX model.")
    flags.DEFINE_bool("int8", False, "Quantize the ONNX model to int8.")
    flags.DEFINE_string(
        "calibration",
        None,
        "Folder of images for --int8, preferably from the training split.",
    )
    flags.DEFINE_integer(
        "calibration_images", 64, "Images of that folder to use, at most.", 1
    )


def main(arguments: list[str]) -> None:
    """Runs the export."""
    from encnet_jax.errors import UserError
    from encnet_jax.export.run import export_workdir

    cli.reject_positional(arguments)
    values = flags.FLAGS
    if values.int8 and values.format != "onnx":
        raise UserError(f"--int8: only for --format=onnx, not {values.format}")
    if values.int8 and not values.calibration:
        raise UserError("--int8: needs --calibration=DIR, a folder of images")
    for flag in () if values.int8 else ("calibration", "calibration_images"):
        if values[flag].present:
            raise UserError(f"--{flag}: only with --int8")
    text = export_workdir(
        cli.run_folder(values.workdir),
        cli.flag_path("output", values.output),
        values.format,
        values.step,
        values.size,
        cli.flag_path("calibration", values.calibration) if values.int8 else None,
        values.calibration_images,
    )
    print(text)
