"""Imports polygons as a data set: encnet data import SOURCE --format=coco --output=DIR.

Draws the polygons and masks of COCO or labelme as label files, the later annotations
over the earlier, and writes the layout of the data set `folder`: images (copied),
labels, classes.json, and a contact sheet a split, SPLIT.png. Annotations that cannot be
read are listed, one per line; then nothing is written and the exit code is 2, unless
--skip_invalid leaves them out.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from encnet_jax import cli
from encnet_jax.data import folder
from encnet_jax.data.annotations.annotated import class_name
from encnet_jax.data.annotations.coco import read_coco
from encnet_jax.data.annotations.labelme import IGNORED, read_labelme
from encnet_jax.data.annotations.write import divide, write_folder
from encnet_jax.data.class_table import listed_names
from encnet_jax.data.datasets import Example, map_examples
from encnet_jax.data.image_io import set_max_image_pixels
from encnet_jax.data.statistics import Statistics, describe, evenly_spaced
from encnet_jax.errors import UserError, one_line
from encnet_jax.files import check_empty, user_path, whole_folder
from encnet_jax.run.progress import Counter
from encnet_jax.visualize.panels import save_contact_sheet

_READERS = {"coco": read_coco, "labelme": read_labelme}
_SHEET_EXAMPLES = 12


def define_flags() -> None:
    """Defines the flags of the verb."""
    flags.DEFINE_enum("format", None, [*_READERS], "Format of the annotations.")
    flags.DEFINE_string("output", None, "Folder to write; must be empty, or absent.")
    flags.DEFINE_string(
        "classes",
        None,
        "Classes in order, comma-separated, or a file with one per line; default: all "
        "in the annotations.",
    )
    flags.DEFINE_enum(
        "unlabeled",
        "background",
        ["background", "ignore"],
        "Pixels without annotation: the class background, or ignored.",
    )
    flags.DEFINE_float(
        "val_fraction", 0.0, "Share of the images that becomes the split val.", 0.0, 1.0
    )
    flags.DEFINE_bool("skip_invalid", False, "Leave out what cannot be read.")
    flags.DEFINE_integer(
        "max_image_pixels", 0, "Largest image to read; 0: Pillow's own limit.", 0
    )


def main(arguments: list[str]) -> int:
    """Runs the command; returns 2 if annotations cannot be read."""
    values = flags.FLAGS
    if len(arguments) != 1:
        given = " ".join(arguments) or "nothing"
        raise UserError(f"{given!r}: give one source: encnet data import SOURCE ...")
    for flag in ("format", "output"):
        if not getattr(values, flag):
            raise UserError(f"--{flag}: must be given")
    set_max_image_pixels(values.max_image_pixels)
    output = cli.flag_path("output", values.output)
    check_empty(output, "--output")
    reader = _READERS[values.format]
    annotated = reader(user_path(arguments[0]), _chosen_classes(values.classes))
    for path in annotated.skipped:
        print(
            f"warning: {path}: not of format {values.format}; skipped", file=sys.stderr
        )
    for note in annotated.notes:
        print(one_line(f"{arguments[0]}: {note}"))
    _list(annotated.problems)
    if not annotated.images:
        raise UserError(f"{arguments[0]}: no image can be read; nothing was written")
    annotated = divide(annotated, values.val_fraction)
    with whole_folder(output, "--output") as root:
        counter = Counter(len(annotated.images), "images")
        found, problems, turned = write_folder(
            annotated, values.unlabeled, root, counter.show
        )
        counter.close()
        _list(problems)
        _warn_turned(turned)
        left_out = len(annotated.problems) + len(problems)
        if left_out and not values.skip_invalid:
            raise UserError(
                f"{left_out} problems; nothing was written; --skip_invalid leaves "
                "these annotations and images out"
            )
        if not found:
            raise UserError(
                f"{arguments[0]}: no image can be read; nothing was written"
            )
        _show(found, root, output)
    if left_out:
        print(f"left out: {left_out} annotations or images, listed above")
    folder = shlex.quote(str(output))
    print(
        f"written: {output}; next: encnet data folder --config.data.data_dir={folder}"
    )
    if "val" not in found:
        print(
            "No split val: import with --val_fraction=0.1, or evaluate on another, "
            "--config.evaluation.split=train"
        )
    return 0


def _list(problems: list[str]) -> None:
    for problem in problems:
        print(one_line(f"error: {problem}"), file=sys.stderr, flush=True)


def _warn_turned(images: list[str]) -> None:
    if images:
        warning = (
            f"warning: {len(images)} images with an EXIF orientation that their size "
            f"does not tell, such as {images[0]}: annotations are taken to be of the "
            "image as viewers show it"
        )
        print(one_line(warning), file=sys.stderr)


def _chosen_classes(value: str | None) -> list[str] | None:
    """Returns the classes of `--classes`, in the names of labelme's lists too."""
    if value is None:
        return None
    names = listed_names(value)
    names = [class_name(name) for name in names if name.strip() not in ("", IGNORED)]
    if not names:
        raise UserError(f"--classes={value}: names no class")
    return names


def _show(found: dict[str, Statistics], root: Path, output: Path) -> None:
    """Prints the share of each class, and writes a contact sheet for each split."""
    info = folder.read_info(root)
    for split, stats in found.items():
        dataset = folder.open_split(info, split, root)
        print(f"{split}: {len(dataset)} images\n{describe(stats, info)}")
        read = list(
            map_examples(
                dataset,
                evenly_spaced(range(len(dataset)), _SHEET_EXAMPLES),
                lambda example: example,
            )
        )
        if unread := [item for item in read if isinstance(item, UserError)]:
            message = str(unread[0]).replace(str(root), str(output))
            more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
            print(f"warning: not shown: {message}{more}", file=sys.stderr)
        if examples := [item for item in read if isinstance(item, Example)]:
            path = output / f"{split}.png"
            save_contact_sheet(examples, info, root / path.name, named=path)
            print(f"contact sheet: {path}\n")
