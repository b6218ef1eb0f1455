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

INCOMPLETE = ".encnet-"  # prefix of the names of unfinished files and folders


def user_path(path: str | os.PathLike[str]) -> Path:
    """Returns a path as a user gave it, with the home folder in place of `~`.

    Raises:
        UserError: Nothing, `~NAME` of an unknown user, a URL, or a null character.
    """
    if path == "":  # else it would be the current folder
        raise UserError("'': an empty path, as of a shell variable that is not set")
    if "\0" in str(path):
        raise UserError(f"{path}: holds a null character; no path can")
    if isinstance(path, str) and is_address(path):
        raise UserError(f"{path}: must be a folder or file of this machine")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no such user; ./~... is a path with ~") from error


def is_address(path: str) -> bool:
    """Returns whether a text is the address of a folder elsewhere, as `gs://...`."""
    return re.match(r"\w+://", path) is not None


def absolute_path(path: str) -> str:
    """Returns a path as it is stored: meaning the same in any current folder.

    `~` is expanded. Symbolic links and addresses such as `gs://...` stay as they are,
    and so does `..`, which after a link leads elsewhere than its text says.

    Raises:
        UserError: See `user_path`.
    """
    return path if is_address(path) else str(user_path(path).absolute())


def check_folder(
    folder: Path, setting: str, remedy: str = "choose another folder"
) -> None:
    """Raises `UserError` unless a folder is writable, or can be created.

    Creates nothing, so that a command that stops on another mistake leaves nothing.

    Args:
        folder: The folder.
        setting: What names it, for the error: `--output` or `workdir`.
        remedy: What to do if it cannot be written to, likewise.
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
        raise _unwritable(folder, setting, error, remedy) from error


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
    new = path.with_name(f"{INCOMPLETE}{uuid.uuid4().hex}.tmp")
    try:
        with new.open("xb") as file:
            yield file
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(folder: Path, setting: str) -> Iterator[Path]:
    """Creates a folder whose contents become those of another, empty or absent one.

    Until the block is done, the new folder is `.encnet-*.tmp`: beside an absent one,
    whose name it then takes, or inside an existing one, which is kept because it may be
    a mount point or the current folder. If the block raises, the file system stays as
    it was, except for new parents.

    Args:
        folder: Where the contents will be.
        setting: What names it, for the error: `--output`.

    Raises:
        UserError: It cannot be written to, or is not empty. `OSError`s of the block
            become one as well, which names the file if that is elsewhere.
    """
    check_empty(folder, setting)
    target = folder.resolve()
    inside = target.is_dir()
    parent = target if inside else target.parent
    make_folder(parent, setting)
    new = parent / f"{INCOMPLETE}{uuid.uuid4().hex}.tmp"
    try:
        new.mkdir()
        yield new
        if inside:
            check_empty(folder, setting)  # another command may have filled it
            _move_entries(new, target)
        else:
            new.rename(target)
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if error.filename else new
        if parent not in named.absolute().parents:
            raise UserError(f"{named}: {error.strerror}") from error
        raise _unwritable(folder, setting, error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _move_entries(source: Path, target: Path) -> None:
    """Moves what is in a folder to another, or nothing."""
    moved = []
    try:
        for path in source.iterdir():
            path.rename(target / path.name)
            moved.append(path)
    except BaseException:
        for path in moved:
            (target / path.name).rename(path)
        raise


def check_empty(folder: Path, setting: str) -> None:
    """Raises `UserError` unless a folder is writable and empty, or can be created.

    What a killed command left in it does not count.
    """
    check_folder(folder, setting)
    if folder.is_dir() and not all(
        path.name.startswith(INCOMPLETE) for path in folder.iterdir()
    ):
        raise UserError(f"{setting}={folder}: is not empty; choose another folder")


def _unwritable(
    folder: Path, setting: str, error: OSError, remedy: str = "choose another folder"
) -> UserError:
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(f"{setting}={folder}: cannot be written to: {reason}; {remedy}")
