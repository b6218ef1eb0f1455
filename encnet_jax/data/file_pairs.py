"""Image and label files in a folder."""

import os
from pathlib import Path

from PIL import Image

from encnet_jax.errors import UserError

FilePair = tuple[Path, Path]  # image, labels


def pair_files(images: Path, labels: Path) -> tuple[list[FilePair], list[str]]:
    """Pairs images with label files of the same relative path.

    Label files end in `.png`, images in any suffix that Pillow reads. Hidden files are
    skipped.

    Returns:
        The pairs, sorted by path, and one line for each file without a counterpart.

    Raises:
        UserError: A folder is missing, or contains no images.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    files = [path for path in files_below(images) if is_image(path)]
    if not files:
        raise UserError(f"{images}: no images (.jpg, .png, ...) in it")
    unpaired = {
        path.relative_to(labels).with_suffix(""): path
        for path in files_below(labels)
        if path.suffix == ".png"
    }
    pairs: dict[Path, FilePair] = {}
    problems = []
    for path in files:
        stem = path.relative_to(images).with_suffix("")
        if stem in pairs:
            problems.append(
                f"{path} and {pairs[stem][0]}: two images for one label file"
            )
        elif stem in unpaired:
            pairs[stem] = (path, unpaired.pop(stem))
        else:
            problems.append(f"{labels / stem}.png: missing, the label file of {path}")
    problems += [f"{path}: a label file without an image" for path in unpaired.values()]
    return list(pairs.values()), problems


def is_image(path: Path) -> bool:
    """Returns whether a file's suffix is that of an image format Pillow reads."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def read_file(path: Path) -> bytes:
    """Returns the content of a file; raises `UserError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def files_below(folder: Path) -> list[Path]:
    """Returns all files below a folder, sorted, except hidden ones."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)
