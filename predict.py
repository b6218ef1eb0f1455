"""Segments images: python predict.py --workdir=runs/NAME --output=DIR IMAGE...

IMAGE is a file, a folder or a glob. For each image, writes DIR/NAME.png (labels, a
palette image) and DIR/NAME-overlay.png (labels over the image, with a legend). A
classifier (CIFAR-10) writes DIR/classes.json instead.
"""

from pathlib import Path

from absl import flags

from encnet_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Output folder.", required=True)
_STEP = flags.DEFINE_string(
    "step", "best", "Checkpoint: best, latest or a step number."
)


def main(arguments: list[str]) -> int:
    """Runs the prediction; returns 2 if an image could not be read."""
    from encnet_jax.data.dataset_info import load_info
    from encnet_jax.errors import UserError
    from encnet_jax.predict.predictor import Classifier, Segmenter
    from encnet_jax.predict.write import find_images, write_classes, write_predictions

    if not arguments:
        raise UserError("no images: pass files, folders or globs after the flags")
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
