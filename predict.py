"""Segments pictures: python predict.py --workdir=runs/NAME --output=DIR IMAGE...

IMAGE is a file, a folder or a glob. For each, DIR gets NAME.png (labels, a palette
image) and NAME-overlay.png (the picture under its labels, with a legend). A model for
whole images (CIFAR-10) writes DIR/classes.json instead.
"""

from pathlib import Path

from absl import flags

from encnet_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.", required=True)
_STEP = flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a number.")


def main(arguments: list[str]) -> int:
    """Runs the prediction; returns 2 if an image could not be read."""
    from encnet_jax.data.dataset_info import load_info
    from encnet_jax.errors import UserError
    from encnet_jax.predict.classifier import Classifier, write_classes
    from encnet_jax.predict.segmenter import Segmenter, find_images, write_predictions

    if not arguments:
        raise UserError("no image: give files, folders or globs after the flags")
    images, output = find_images(arguments), Path(_OUTPUT.value)
    if load_info(Path(_WORKDIR.value) / "classes.json").task == "classification":
        classifier = Classifier.from_workdir(_WORKDIR.value, _STEP.value)
        failed = write_classes(classifier, images, output)
    else:
        segmenter = Segmenter.from_workdir(_WORKDIR.value, _STEP.value)
        failed = write_predictions(segmenter, images, output)
    return 2 if failed else 0


if __name__ == "__main__":
    cli.run(main)
