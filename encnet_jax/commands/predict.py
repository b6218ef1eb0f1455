"""Segments images: encnet predict --workdir=runs/NAME --output=DIR IMAGE...

IMAGE is a file, a folder or a glob. For each image, writes DIR/NAME.png (labels in the
values of the data set's label files, a palette image) and DIR/NAME-overlay.png (labels
over the image, with a legend); with --explain also DIR/NAME-explain.png (what the
context does in the image). A classifier (CIFAR-10) writes DIR/classes.json instead.
No image and no other file is overwritten, except earlier results of the same images.
"""

from pathlib import Path

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
    flags.DEFINE_string("output", None, "Output folder.", required=True)
    flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a step number.")
    flags.DEFINE_bool("explain", False, "Also draw what the context does in an image.")
    flags.DEFINE_multi_string(
        "reference",
        [],
        "Image, folder or glob for --explain: context is what differs from the mean of "
        "these images, not from that of the validation split. May be repeated.",
    )
    flags.DEFINE_integer(
        "max_image_pixels",
        0,
        "Allow images of up to so many pixels, over Pillow's limit of 179 million.",
        0,
    )


def main(arguments: list[str]) -> int:
    """Runs the prediction; returns 2 if an image failed."""
    from encnet_jax.data.image_io import set_max_image_pixels
    from encnet_jax.errors import UserError
    from encnet_jax.predict import write
    from encnet_jax.predict.predictor import Classifier, Segmenter
    from encnet_jax.run.workdir import load_run_info

    values = flags.FLAGS
    if not arguments:
        raise UserError("no images: pass files, folders or globs after the flags")
    set_max_image_pixels(values.max_image_pixels)
    workdir = cli.run_folder(values.workdir)
    info = load_run_info(workdir)
    images, output = write.find_images(arguments), Path(values.output).expanduser()
    # Before a model is loaded: that no file of the user's is in the way.
    if values.reference and not values.explain:
        raise UserError("--reference: only with --explain")
    if info.task == "classification":
        if values.explain:
            raise UserError(f"--explain: {workdir} classifies; a segmenter is needed")
        plan = write.plan_classes(images, output)
        classifier = Classifier.from_workdir(workdir, values.step)
        failed = write.write_classes(classifier, plan, output)
    else:
        plan = write.plan_predictions(images, output, values.explain)
        others = write.find_images(values.reference) if values.reference else None
        segmenter = Segmenter.from_workdir(workdir, values.step)
        mean_gate = segmenter.mean_gate(others) if values.explain else None
        failed = write.write_predictions(segmenter, plan, output, mean_gate)
    return 2 if failed else 0
