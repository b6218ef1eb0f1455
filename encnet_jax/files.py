"""Folders and files for output: checked before the work starts, and written whole."""

import contextlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from encnet_jax.errors import UserError


def user_path(path: str | os.PathLike[str]) -> Path:
    """Returns a path as a user gave it, with the home folder in place of `~`.

    Raises:
        UserError: `~NAME` of an unknown user, a URL, or a null character.
    """
    if "\0" in str(path):
        raise UserError(f"{path}: holds a null character; no path can")
    if isinstance(path, str) and re.match(r"\w+://", path):
        raise UserError(f"{path}: must be a folder or file of this machine")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no such user; ./~... is a path with ~") from error


def check_folder(folder: Path, setting: str) -> None:
    """Raises `UserError` unless a folder is writable, or can be created.

    Creates nothing, so that a command that stops on another mistake leaves nothing.

    Args:
        folder: The folder.
        setting: What names it, for the error: `--output` or `workdir`.
    """
    try:
        existing = existing_parent(folder)
        if existing != folder.absolute() and folder.is_symlink():
            raise UserError(f"{setting}={folder}: is a broken link")
        if not existing.is_dir():
            which = ""
            if existing != folder.absolute():
                which = f"Not a directory: {existing} "
            raise UserError(f"{setting}={folder}: {which}is a file; choose a folder")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise _unwritable(folder, setting, error) from error


def existing_parent(path: Path) -> Path:
    """Returns a path itself if it exists, otherwise the nearest parent that does.

    Raises:
        OSError: A parent cannot be read, or a name is too long.
    """
    path = path.absolute()
    while True:
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent
        else:
            return path


def make_folder(folder: Path, setting: str) -> None:
    """Creates a folder and its parents; errors and arguments are as `check_folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, setting, error) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears, or replaces another, once it is complete.

    Until then it is `.encnet-*.tmp` in the same folder. If the block raises, the file
    system stays as it was.

    Raises:
        OSError: The folder is not writable, the name too long, or the disk full.
    """
    # Not by `tempfile`: its files are readable by their owner only.
    new = path.with_name(f".encnet-{uuid.uuid4().hex}.tmp")
    try:
        with new.open("xb") as file:
            yield file
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(folder: Path, setting: str) -> Iterator[Path]:
    """Creates a folder that takes the place of another, empty or absent one, when done.

    Until then it is `.encnet-*.tmp` beside it: on the same file system, so that moving
    is atomic. If the block raises, the file system stays as it was, but for new
    parents.

    Args:
        folder: Where it will be.
        setting: What names it, for the error: `--output`.

    Raises:
        UserError: It cannot be written to; in place of every `OSError` of the block.
    """
    target = folder.resolve()  # a link to a folder stays one
    make_folder(target.parent, setting)
    new = target.with_name(f".encnet-{uuid.uuid4().hex}.tmp")
    try:
        new.mkdir()
        yield new
        new.replace(target)
    except OSError as error:
        raise _unwritable(folder, setting, error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_empty(folder: Path, setting: str) -> None:
    """Raises `UserError` unless a folder is writable and empty, or can be created."""
    check_folder(folder, setting)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{setting}={folder}: is not empty; choose another folder")


def _unwritable(folder: Path, setting: str, error: OSError) -> UserError:
    return UserError(
        f"{setting}={folder}: cannot be written to: {error.strerror or error}; choose "
        "another folder"
    )
