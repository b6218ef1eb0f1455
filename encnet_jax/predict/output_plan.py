"""Which files the results of each image go to, settled before the first is predicted.

No result replaces an image, a file of another origin, or the result of another image.
"""

import contextlib
import errno
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from encnet_jax.data.result_file import result_source, source_digest
from encnet_jax.errors import UserError
from encnet_jax.files import existing_parent

_REMEDY = "choose another --output"


class PlannedImage(NamedTuple):
    """An image to predict.

    Attributes:
        path: The image file.
        name: What its results are called, without the ending of a kind of result.
        outputs: One file for each kind of result.
    """

    path: Path
    name: str
    outputs: tuple[Path, ...] = ()


class OutputPlan(NamedTuple):
    """What `predict.py` will do.

    Attributes:
        images: The images to predict.
        problems: One line for each image whose results would have names too long for
            the file system.
    """

    images: list[PlannedImage]
    problems: list[str]


def plan_outputs(
    images: Sequence[Path], output: Path, endings: Sequence[str]
) -> OutputPlan:
    """Names the results of all images, `NAME` + ending in the output folder.

    Args:
        images: The image files, each once.
        output: The output folder; need not exist.
        endings: How the files of each kind of result end.

    Raises:
        UserError: A result would replace an image, a file that `predict.py` did not
            write, or the result of another image.
    """
    existing = existing_parent(output)
    sources = {identity for path in images if (identity := _identity(path))}
    planned, problems = [], []
    for path, name in zip(images, distinct_names(images, endings)):
        outputs = tuple(output / f"{name}{ending}" for ending in endings)
        try:
            for file in outputs:
                with contextlib.suppress(FileNotFoundError):  # not if it is too long
                    existing.joinpath(file.name).lstat()
                _check_replaceable(file, path, sources)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise UserError(f"{file}: {error.strerror}; {_REMEDY}") from error
            problems.append(f"{path}: {error.strerror}: {file.name}, its result")
            continue
        planned.append(PlannedImage(path, name, outputs))
    return OutputPlan(planned, problems)


def distinct_names(paths: Sequence[Path], endings: Sequence[str]) -> list[str]:
    """Returns a name for each path such that no two results share a file.

    The name is that of the file without its suffix. Files that would collide keep the
    suffix; if that is not enough, they get the folders below the common one, and at
    last a number. Names that differ only in case, or by the Unicode form of a letter,
    collide, because some file systems take them for the same.

    Args:
        paths: Distinct files.
        endings: What is appended to a name.
    """
    root = os.path.commonpath([path.absolute().parent for path in paths])
    name_of: tuple[Callable[[int, Path], str], ...] = (
        lambda index, path: path.stem,
        lambda index, path: path.name,
        lambda index, path: "_".join(path.absolute().relative_to(root).parts),
        lambda index, path: f"{index:06d}_{path.stem}",
    )
    level = [0] * len(paths)
    while True:
        names = [name_of[level[i]](i, path) for i, path in enumerate(paths)]
        users: defaultdict[str, set[int]] = defaultdict(set)
        for index, name in enumerate(names):
            for ending in endings:
                key = unicodedata.normalize("NFC", name + ending).casefold()
                users[key].add(index)
        colliding = {
            i for indices in users.values() if len(indices) > 1 for i in indices
        }
        if not colliding:
            return names
        for index in colliding:  # numbered names never collide with each other
            level[index] = min(level[index] + 1, len(name_of) - 1)


def _check_replaceable(file: Path, source: Path, sources: set[tuple[int, int]]) -> None:
    """Raises `UserError` if the result of `source` may not be written to `file`."""
    try:
        file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if _identity(file) in sources:
        raise UserError(f"{file}: is one of the images to predict; {_REMEDY}")
    written_for = result_source(file)
    if written_for is None:
        raise UserError(f"{file}: exists, and is not a result of predict; {_REMEDY}")
    if written_for != source_digest(source):
        raise UserError(f"{file}: is the result of another image; {_REMEDY}")


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns what tells a file from others, whatever its path; None if missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
