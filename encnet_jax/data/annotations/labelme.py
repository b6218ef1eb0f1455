"""Annotation files of labelme: one JSON file an image."""

import base64
import functools
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from encnet_jax.data.annotations.annotated import (
    BACKGROUND,
    AnnotatedImage,
    AnnotatedSet,
    Mask,
    Region,
    class_name,
    split_of,
    stored_path,
    stored_size,
    unicode_forms,
)
from encnet_jax.data.annotations.image_search import claim
from encnet_jax.data.annotations.masks import shape_mask
from encnet_jax.data.file_pairs import files_below
from encnet_jax.data.image_io import open_image
from encnet_jax.data.input_files import read_file, read_json
from encnet_jax.errors import UserError

IGNORED = "__ignore__"  # what labelme's own converters call such pixels
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}


def read_labelme(source: Path, chosen: list[str] | None = None) -> AnnotatedSet:
    """Reads the files of labelme in a folder; its subfolders may be splits.

    Args:
        source: The folder.
        chosen: Classes in order, in place of all labels, sorted by name.

    Raises:
        UserError: There is no annotation file, or some are in folders of splits and
            others are not.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    paths = [path for path in files_below(source) if path.suffix.lower() == ".json"]
    images: list[AnnotatedImage] = []
    problems: list[str] = []
    skipped: list[Path] = []
    # Images and masks are not kept but read again, those of a file one after the other.
    reread = functools.lru_cache(maxsize=1)(read_json)
    taken: dict[str, str] = {}  # see `claim`
    for path in paths:
        try:
            content = read_json(path)
            if isinstance(content, dict) and isinstance(content.get("shapes"), list):
                image = _image(content, path, source, problems, reread, taken)
                images.append(image)
            else:
                skipped.append(path)
        except UserError as error:
            problems.append(str(error))
    if not images and not problems:
        raise UserError(f"{source}: no file of labelme, JSON with a list of shapes")
    images = _with_splits(images)
    if chosen is None:
        used = {region.class_name for image in images for region in image.regions}
        names = sorted(name for name in used if name and name != BACKGROUND)
        # No second class beside the user's own, such as `Background`.
        own = any(name.casefold() == BACKGROUND for name in names)
        return AnnotatedSet(
            [*([BACKGROUND] if BACKGROUND in used and not own else []), *names],
            images,
            problems,
            skipped,
            [],
        )
    known = {None, BACKGROUND, *chosen}
    for image in images:
        for region in image.regions:
            if region.class_name not in known:
                label = repr(region.class_name)
                problems.append(
                    f"{region.where}: label {label}: is none of the classes"
                )
        image.regions[:] = [r for r in image.regions if r.class_name in known]
    return AnnotatedSet(chosen, images, problems, skipped, [])


def _with_splits(images: list[AnnotatedImage]) -> list[AnnotatedImage]:
    """Returns the images, of the split `train` if none is in the folder of a split."""
    divided = [image.where for image in images if image.split]
    others = [image.where for image in images if not image.split]
    if divided and others:
        raise UserError(
            f"{others[0]}: in no folder train, val, or test, unlike {divided[0]}: "
            f"must hold for all; {len(divided)} are in such, {len(others)} are not"
        )
    return images if divided else [image._replace(split="train") for image in images]


def _image(
    content: dict[str, Any],
    path: Path,
    source: Path,
    problems: list[str],
    reread: Callable[[Path], Any],
    taken: dict[str, str],
) -> AnnotatedImage:
    stored = content.get("imagePath")
    if not isinstance(stored, str) or not stored:
        raise UserError(f"{path}: imagePath={stored!r}: must be the path of the image")
    where = f"{path}: image {stored}"
    files = [path.parent / form for form in unicode_forms(stored_path(stored))]
    file = next(filter(_exists, files), files[0])
    regions = []
    for index, shape in enumerate(content["shapes"]):
        place = f"{where}, shape {index}"
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str) or not label.strip():
            problems.append(f"{place}: label {label!r}: must be a name")
            continue
        name = None if label.strip() == IGNORED else class_name(label)
        draw = functools.partial(shape_mask, shape)
        if shape.get("mask"):
            draw = functools.partial(_draw, reread, path, index)
        regions.append(Region(place, name, draw))
    lengths = content.get("imageHeight"), content.get("imageWidth")
    size = stored_size(*lengths, where)
    if _exists(file):
        claim(file, where, taken)
        read, suffix = functools.partial(read_file, file), file.suffix
    elif content.get("imageData"):
        image = open_image(_image_data(content, where), f"{where}: imageData")
        kind = image.format or ""
        read = functools.partial(_embedded, reread, path, where)
        suffix = _SUFFIXES.get(kind, f".{kind.lower()}")
    else:
        raise UserError(f"{where}: no such file as {file}, and no imageData")
    # Named as the annotation file: two may annotate images of one name.
    copy = PurePosixPath(path.relative_to(source).as_posix()).with_suffix(suffix)
    split = split_of(path.parent / "-", source) if path.parent != source else None
    return AnnotatedImage(where, split or "", copy, read, size, regions)


def _exists(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # no file can have that name
        return False


def _image_data(content: dict[str, Any], where: str) -> bytes:
    try:
        return base64.b64decode(content["imageData"], validate=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: imageData: not base64: {error}") from error


def _embedded(reread: Callable[[Path], Any], path: Path, where: str) -> bytes:
    return _image_data(reread(path), where)


def _draw(
    reread: Callable[[Path], Any], path: Path, index: int, height: int, width: int
) -> Mask:
    return shape_mask(reread(path)["shapes"][index], height, width)
