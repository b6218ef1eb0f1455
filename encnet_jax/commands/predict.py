"""Segments images: encnet predict --workdir=runs/NAME --output=DIR IMAGE...

IMAGE is a file, a folder or a glob. For each image, writes DIR/NAME.png (labels in the
values of the data set's label files, a palette image) and DIR/NAME-overlay.png (labels
over the image, with a legend). A classifier (CIFAR-10) writes DIR/classes.json instead.
No image and no other file is overwritten, except earlier results of the same images.
"""

from absl import flags

from encnet_jax import cli
from encnet_jax.files import user_path


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
    images, output = write.find_images(arguments), user_path(values.output)
    # Before a model is loaded: that no file of the user's is in the way.
    if info.task == "classification":
        plan = write.plan_classes(images, output)
        classifier = Classifier.from_workdir(workdir, values.step)
        failed = write.write_classes(classifier, plan, output)
    else:
        plan = write.plan_predictions(images, output)
        segmenter = Segmenter.from_workdir(workdir, values.step)
        failed = write.write_predictions(segmenter, plan, output)
    return 2 if failed else 0
