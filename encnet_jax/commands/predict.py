"""Segments images: encnet predict --workdir=runs/NAME --output=DIR IMAGE...

IMAGE is a file, a folder or a glob. For each image, writes DIR/NAME.png (labels in the
values of the data set's label files, a palette image) and DIR/NAME-overlay.png (labels
over the image, with a legend); with --explain also DIR/NAME-explain.png (what the
context does in the image). A classifier (CIFAR-10) writes DIR/classes.json instead.
--save chooses what is written, and has DIR/NAME-probabilities.npz to offer. --slide is
for TIFF files larger than memory and writes the labels as DIR/NAME.tif.
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
    flags.DEFINE_list(
        "save", "labels,overlay", "Any of labels, probabilities, overlay."
    )
    flags.DEFINE_bool("slide", False, "Read and write TIFF files in tiles.")
    flags.DEFINE_integer(
        "base_size",
        None,
        "Long side of images in the network for --slide, in pixels; 0 is their own. By "
        "default that of the evaluation.",
        0,
    )
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
        "Allow images of up to so many pixels, over Pillow's limit of 179 million and "
        "the data.max_image_pixels of the run.",
        0,
    )


def main(arguments: list[str]) -> int:
    """Runs the prediction; returns 2 if an image failed."""
    from encnet_jax.data.image_io import set_max_image_pixels
    from encnet_jax.errors import UserError
    from encnet_jax.predict import write
    from encnet_jax.predict.find_images import find_images
    from encnet_jax.predict.predictor import Classifier, Segmenter
    from encnet_jax.run.workdir import load_run_config, load_run_info

    values = flags.FLAGS
    kinds = write.parse_kinds(values.save)
    if not arguments:
        raise UserError("no images: pass files, folders or globs after the flags")
    _check_flags(kinds)  # before anything is downloaded
    set_max_image_pixels(values.max_image_pixels)
    workdir = cli.run_folder(values.workdir)
    info = load_run_info(workdir)
    images = find_images(arguments)
    output = cli.flag_path("output", values.output)
    if info.task == "classification":
        _check_no_flags_of_segmenters(workdir)
    set_max_image_pixels(load_run_config(workdir).data.max_image_pixels)
    # Files are planned before a model is loaded: one of the user's may be in the way.
    if info.task == "classification":
        plan = write.plan_classes(images, output)
        classifier = Classifier.from_workdir(workdir, values.step)
        failed = write.write_classes(classifier, plan, output)
    elif values.slide:
        failed = _predict_large(images, output, workdir, kinds)
    else:
        plan = write.plan_predictions(images, output, values.explain, kinds)
        others = find_images(values.reference) if values.reference else None
        segmenter = Segmenter.from_workdir(workdir, values.step)
        mean_gate = segmenter.mean_gate(others) if values.explain else None
        failed = write.write_predictions(segmenter, plan, output, mean_gate, kinds)
    return 2 if failed else 0


def _check_no_flags_of_segmenters(workdir: Path) -> None:
    from encnet_jax.errors import UserError

    for name in ("explain", "slide", "save"):
        flag = flags.FLAGS[name]
        if flag.present and flag.value is not False:
            raise UserError(f"--{name}: {workdir} classifies; a segmenter is needed")


def _check_flags(kinds: tuple[str, ...]) -> None:
    """Raises `UserError` for flags that do not go together."""
    from encnet_jax.errors import UserError

    values = flags.FLAGS
    if values.reference and not values.explain:
        raise UserError("--reference: only with --explain")
    if values.base_size is not None and not values.slide:
        raise UserError("--base_size: only with --slide")
    if values.explain and values.slide:
        raise UserError("--explain: not with --slide")
    if values.slide and "probabilities" in kinds:
        raise UserError(
            f"--save={','.join(values.save)}: with --slide, allowed are labels, overlay"
        )


def _predict_large(
    images: list[Path], output: Path, workdir: Path, kinds: tuple[str, ...]
) -> int:
    """Returns how many images failed."""
    from encnet_jax.errors import require_package
    from encnet_jax.predict import slide
    from encnet_jax.predict.predictor import Segmenter

    values = flags.FLAGS
    require_package("tifffile", "tiff", "--slide")
    plan = slide.plan_large_predictions(images, output, kinds)
    segmenter = Segmenter.from_workdir(workdir, values.step)
    large = slide.LargeSegmenter(segmenter, values.base_size)
    return slide.write_large_predictions(large, plan, output, kinds)
