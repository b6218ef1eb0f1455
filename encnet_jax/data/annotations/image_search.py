"""The image files that annotation files name, looked for where tools put them."""

import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from encnet_jax.data.annotations.annotated import (
    composed,
    stored_path,
    unicode_forms,
)
from encnet_jax.data.input_files import read_file
from encnet_jax.errors import UserError


class ImageSearch:
    """Looks for the images of an annotation file.

    Args:
        path: The annotation file.
        split: Its split.
        root: The folder that was given as source, or that of the file that was.
        names: The names of all its images, as stored.
        taken: The image files read so far, by any annotation file, and for what.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        root: Path,
        names: Iterable[str],
        taken: dict[str, str],
    ):
        folders = path.parent, root, _above(path.parent)
        self._folders = [*dict.fromkeys(folders)]
        digits = path.stem.rpartition("_")[2]  # train2017
        below = "", "images", split, f"images/{split}", digits, f"images/{digits}"
        self._places = [folder / part for folder in self._folders for part in below]
        self._split = split
        distinct = {composed(stored_path(name)) for name in names}
        self._same_name = Counter(name.name.casefold() for name in distinct)
        self._taken = taken

    def read(self, stored: str, where: str) -> bytes:
        """Returns the content of an image file.

        If it is not found in the folders that its name gives, these are ignored, unless
        another image has the same name in other folders. Names in another Unicode form
        are the same.

        Args:
            stored: Its name in the annotation file.
            where: File and image, for error messages.

        Raises:
            UserError: There is no such file, or it cannot be read, or is that of
                another image too.
        """
        given = stored_path(stored)
        alone = self._same_name[composed(given).name.casefold()] == 1
        names = [given, PurePosixPath(given.name)] if alone else [given]
        spelled = [form for name in names for form in unicode_forms(name)]
        for name in dict.fromkeys(spelled):
            for place in self._places:
                if _is_file(place / name, where):
                    claim(place / name, where, self._taken)
                    return read_file(place / name)
        tried = ", ".join(map(str, self._folders))
        note = "" if alone else f"; others are named {given.name} in other folders"
        raise UserError(
            f"{where}: no such image in {tried}, or in images/ or {self._split}/ there"
            f"{note}"
        )


def claim(file: Path, where: str, taken: dict[str, str]) -> None:
    """Notes for what an image file is read.

    Args:
        file: The image file.
        where: File and image, for error messages.
        taken: The image files read so far, by their absolute path, and for what.

    Raises:
        UserError: It is that of another image too.
    """
    other = taken.setdefault(os.path.abspath(file), where)
    if other != where:
        raise UserError(f"{where}: found {file}, which is also that of {other}")


def _above(folder: Path) -> Path:
    """Returns the parent of a folder, that of `.` and of `..` too."""
    if folder.name in ("", ".."):
        folder = Path(os.path.abspath(folder))
    return folder.parent


def _is_file(path: Path, where: str) -> bool:
    """Returns whether a file exists; raises `UserError` if none can have the name."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # too long
        raise UserError(f"{where}: cannot be looked for: {error.strerror}") from error
    except ValueError as error:  # a null character, or no Unicode
        raise UserError(f"{where}: cannot be looked for: {error}") from error
