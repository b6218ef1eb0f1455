"""Annotated images as a data set `folder`: images copied, annotations drawn."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from encnet_jax.data.annotations.annotated import (
    AnnotatedImage,
    AnnotatedSet,
    class_labels,
)
from encnet_jax.data.dataset_info import IGNORE_LABEL
from encnet_jax.data.file_pairs import is_image
from encnet_jax.data.image_io import TIFF_MARKS, open_image, orientation
from encnet_jax.data.statistics import Statistics, count_labels
from encnet_jax.data.tiff_file import (
    check_size,
    check_upright,
    open_tiff_file,
    unreadable_tiff,
)
from encnet_jax.errors import UserError
from encnet_jax.files import whole_file


def divide(annotated: AnnotatedSet, fraction: float) -> AnnotatedSet:
    """Moves a share of the training images to the split `val`.

    The images whose names have the smallest hashes: the same ones every time, and
    nearly the same once images are added.

    Raises:
        UserError: The files give splits of their own, the fraction is none, or one side
            would be empty.
    """
    if not 0 <= fraction < 1:  # also if it is not a number
        raise UserError(f"--val_fraction={fraction}: must be from 0 to below 1")
    if not fraction:
        return annotated
    if given := {image.split for image in annotated.images} - {"train"}:
        raise UserError(
            f"--val_fraction={fraction}: the files give splits already: "
            f"{', '.join(sorted(given))}"
        )
    encoded = [str(i.name).encode(errors="surrogateescape") for i in annotated.images]
    hashes = (hashlib.sha256(name).digest() for name in encoded)
    names = sorted((digest, index) for index, digest in enumerate(hashes))
    count = max(1, round(fraction * len(names)))
    if count >= len(names):
        raise UserError(
            f"--val_fraction={fraction}: leaves none of {len(names)} images to train on"
        )
    chosen = {index for _, index in names[:count]}
    images = [
        image._replace(split="val") if index in chosen else image
        for index, image in enumerate(annotated.images)
    ]
    return annotated._replace(images=images)


def write_folder(
    annotated: AnnotatedSet,
    unlabeled: str,
    root: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Statistics], list[str], list[str]]:
    """Writes images, labels, and `classes.json`, without what cannot be read.

    Args:
        annotated: The images and their annotations.
        unlabeled: What pixels without annotation are: `background` or `ignore`.
        root: An existing, empty folder.
        progress: Called with the number of images done so far.

    Returns:
        The statistics of each split; one line for each annotation or image that was
        left out, beside `annotated.problems`; and the images written that viewers turn
        or mirror, but whose size does not tell whether the annotations are as shown.

    Raises:
        UserError: See `class_labels`.
        OSError: The folder is not writable, or the disk full.
    """
    names, labels, blank = class_labels(annotated.class_names, unlabeled)
    problems: list[str] = []
    turned: list[str] = []
    statistics: dict[str, Statistics] = {}
    taken: set[tuple[str, str]] = set()
    for done, image in enumerate(annotated.images, 1):
        try:
            if not is_image(Path(image.name)):
                raise UserError(f"{image.where}: not the name of an image file")
            if any(part.startswith(".") for part in image.name.parts):
                raise UserError(f"{image.where}: hidden, which no data set reads")
            key = (image.split, str(image.name.with_suffix("")).casefold())
            if key in taken:
                raise UserError(f"{image.where}: a second image {image.name}")
            content = image.content()
            size, ambiguous = _upright_size(image, content)
            drawn = draw_labels(image, size, labels, blank, problems)
            taken.add(key)
        except UserError as error:
            problems.append(str(error))
        else:
            split = statistics.setdefault(image.split, Statistics.empty(len(names)))
            split.add(len(split.indices), *count_labels(drawn))
            _write_pair(root, image.split, image.name, content, drawn)
            turned += [image.where] * ambiguous
        progress(done)
    classes = {"classes": names, "ignore": [IGNORE_LABEL]}
    with whole_file(root / "classes.json") as file:
        text = json.dumps(classes, indent=2, ensure_ascii=False)
        file.write((text + "\n").encode())
    return statistics, problems, turned


def draw_labels(
    image: AnnotatedImage,
    size: tuple[int, int],
    labels: dict[str, int],
    blank: int,
    problems: list[str],
) -> UInt8[np.ndarray, "h w"]:
    """Draws the annotations of an image in their order, the later over the earlier.

    Args:
        image: The image.
        size: Its height and width.
        labels: Class -> label.
        blank: The label of other pixels.
        problems: Gets one line for each annotation that cannot be drawn.
    """
    drawn = np.full(size, blank, np.uint8)
    for region in image.regions:
        label = IGNORE_LABEL
        if region.class_name is not None:
            label = labels.get(region.class_name, -1)
        try:
            if label < 0:
                raise UserError(f"label {region.class_name!r}: is none of the classes")
            mask = region.draw(*size)
            if not mask.any():
                raise UserError(
                    f"covers no pixel of the image, {size[1]}x{size[0]}: degenerate, "
                    "or outside of it"
                )
        except UserError as error:
            problems.append(f"{region.where}: {error}")
        else:
            drawn[mask] = label
    return drawn


def _upright_size(
    image: AnnotatedImage, content: bytes
) -> tuple[tuple[int, int], bool]:
    """Returns the size of an image, and whether it may be turned unnoticed.

    Args:
        image: The image.
        content: Its file, which is decoded.

    Returns:
        Height and width as training reads it; and whether viewers turn or mirror it in
        a way that its size does not tell.

    Raises:
        UserError: No image, a truncated one, or not of the size that was annotated.
    """
    try:
        size, turned = _decoded_size(content, image.where)
    except UserError:  # as of a TIFF of 5 bands, or of planes
        if content[:4] not in TIFF_MARKS:
            raise
        size, turned = _tiff_size(content, image.where), 1
    if image.size not in (None, size):
        assert image.size is not None
        note = f", turned by its EXIF orientation {turned}" if turned > 1 else ""
        raise UserError(
            f"{image.where}: is {size[1]}x{size[0]} pixels{note}, and the annotations "
            f"are of {image.size[1]}x{image.size[0]}"
        )
    told = turned > 4 and image.size is not None and size[0] != size[1]
    return size, turned > 1 and not told


def _decoded_size(content: bytes, where: str) -> tuple[tuple[int, int], int]:
    """Returns the upright height and width, and the EXIF orientation, by Pillow."""
    # Reading turns some formats, and finds the orientation of others.
    turned = orientation(open_image(content, where), where)
    opened = open_image(content, where, load=True)
    left = orientation(opened, where)
    size = opened.height, opened.width
    return size[::-1] if left > 4 else size, max(turned, left)


def _tiff_size(content: bytes, where: str) -> tuple[int, int]:
    """Returns height and width of a TIFF that Pillow cannot read, such as of 5 bands.

    Raises:
        UserError: It is turned, too large, truncated, or no TIFF, or tifffile is not
            installed.
    """
    file = io.BytesIO(content)
    with open_tiff_file(file, where, where) as tiff, unreadable_tiff(where):
        first = tiff.pages.first
        check_upright(first, where)
        check_size(first, where)
        for page in tiff.pages:
            ends = map(sum, zip(page.dataoffsets, page.databytecounts))
            if max(ends, default=0) > len(content):
                raise UserError(f"{where}: a truncated TIFF")
        return first.imagelength, first.imagewidth


def _write_pair(
    root: Path,
    split: str,
    name: PurePosixPath,
    content: bytes,
    labels: UInt8[np.ndarray, "h w"],
) -> None:
    """Writes an image byte for byte, and its label file."""
    image = root / "images" / split / name
    label = root / "labels" / split / name.with_suffix(".png")
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(content)
    with whole_file(label) as file:
        Image.fromarray(labels).save(file, "PNG")
