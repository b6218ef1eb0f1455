"""Annotated images, whatever tool wrote them, and what the readers share."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from encnet_jax.data.class_table import check_class_names
from encnet_jax.data.dataset_info import IGNORE_LABEL
from encnet_jax.errors import UserError

Mask = Bool[np.ndarray, "h w"]
BACKGROUND = "background"
# What labelme's own converters call pixels of no class, in COCO files too.
_LABELME_BACKGROUND = "_background_"
_SPLIT = re.compile(r"(?:^|[^a-z])(train|valid|validation|val|test)(?:\d+)?(?![a-z])")


def class_name(name: str) -> str:
    """Returns a name without spaces around it; that of labelme for the background."""
    name = name.strip()
    return BACKGROUND if name == _LABELME_BACKGROUND else name


class Region(NamedTuple):
    """One annotation.

    Attributes:
        where: File, image, and annotation, for error messages.
        class_name: Its class; None: its pixels are ignored.
        draw: Returns its pixels, given height and width; raises `UserError`.
    """

    where: str
    class_name: str | None
    draw: Callable[[int, int], Mask]


class AnnotatedImage(NamedTuple):
    """An image and its annotations.

    Attributes:
        where: File and image, for error messages.
        split: Its split.
        name: Path of the copy below `images/SPLIT`.
        content: Returns the image file; raises `UserError`.
        size: Height and width on which the annotations were drawn; None: not stored.
        regions: The annotations, in the file's order.
    """

    where: str
    split: str
    name: PurePosixPath
    content: Callable[[], bytes]
    size: tuple[int, int] | None
    regions: list[Region]


class AnnotatedSet(NamedTuple):
    """What a reader found.

    Attributes:
        class_names: The classes, in order; background is among them where annotated.
        images: The images.
        problems: One line for each annotation or image that cannot be read.
        skipped: Files that are not annotation files of the format.
        notes: One line for each thing that was read in another way than it is written.
    """

    class_names: list[str]
    images: list[AnnotatedImage]
    problems: list[str]
    skipped: list[Path]
    notes: list[str]


def split_of(path: Path, source: Path) -> str | None:
    """Returns the split that a file's name, or else its folder, gives; None if none.

    `instances_train2017.json`, `train.json`, and `valid/_annotations.coco.json` do.
    Folders count below `source` only.
    """
    folders = path.relative_to(source).parts[:-1] if path != source else ()
    for name in (path.stem, *reversed(folders)):
        if found := _SPLIT.search(name.lower()):
            return "val" if found[1].startswith("val") else found[1]
    return None


def stored_path(stored: str) -> PurePosixPath:
    r"""Returns the path of an image as an annotation file has it; `\` separates too."""
    return PurePosixPath(PureWindowsPath(stored).as_posix())


def unicode_forms(path: PurePosixPath) -> list[PurePosixPath]:
    """Returns a path as stored, composed, and decomposed, without repetitions.

    Names in archives made on macOS are decomposed: `é` is an `e` and an accent.
    """
    text = path.as_posix()
    forms = text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    return [*map(PurePosixPath, dict.fromkeys(forms))]


def composed(path: PurePosixPath) -> PurePosixPath:
    """Returns a path in composed Unicode (NFC), by which spellings are compared."""
    return PurePosixPath(unicodedata.normalize("NFC", path.as_posix()))


def output_name(stored: str) -> PurePosixPath:
    r"""Returns the path of an image in the output; folders stay where they are below.

    Absolute paths and those with `..` keep the file name only; `\` is a separator.
    """
    path = stored_path(stored)
    if PureWindowsPath(stored).anchor or ".." in path.parts:
        return PurePosixPath(path.name)
    return path


def stored_size(height: Any, width: Any, where: str) -> tuple[int, int] | None:
    """Returns the size in a file, None if it has none; raises `UserError` if bad."""
    if height is None and width is None:
        return None
    for length in (height, width):
        whole = type(length) is int or type(length) is float and length.is_integer()
        if not whole or length < 1:
            raise UserError(
                f"{where}: height {height!r}, width {width!r}: must be integers above 0"
            )
    return int(height), int(width)


def class_labels(
    class_names: Iterable[str], unlabeled: str
) -> tuple[list[str], dict[str, int], int]:
    """Returns the classes, their labels, and the label of pixels without annotation.

    Args:
        class_names: The classes of the annotations, in order.
        unlabeled: `background`: a class, added in front unless it is among them, in
            any letter case; `ignore`: ignored.

    Raises:
        UserError: A name is empty or given twice, or there are too few or too many.
    """
    names = [name.strip() for name in class_names]
    named = [name for name in names if name.casefold() == BACKGROUND]
    background = BACKGROUND if BACKGROUND in names or not named else named[0]
    if not named and unlabeled == BACKGROUND:
        names.insert(0, background)
    check_class_names(names, "classes")
    if not 2 <= len(names) <= IGNORE_LABEL:
        listed = f" ({', '.join(names)})" if len(names) == 1 else ""
        raise UserError(
            f"{len(names)} classes{listed}; allowed are 2 to 255, the background "
            "included; --classes chooses them, --unlabeled=background adds one"
        )
    labels = {name: index for index, name in enumerate(names)}
    if background in labels:  # also by the name that labelme's own has here
        labels[BACKGROUND] = labels[background]
    blank = labels[BACKGROUND] if unlabeled == BACKGROUND else IGNORE_LABEL
    return names, labels, blank
