"""Published archives: found where people have put them, or downloaded and checked."""

import dataclasses
import gzip
import hashlib
import logging
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from encnet_jax.errors import UserError

_BLOCK = 1 << 20  # bytes read at a time
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
)
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        file: Its name.
        contents: A folder or file that it unpacks to, by which an archive that is
            unpacked already is known.
        url: Where it is published; empty if that asks for a log-in.
        digest: `sha1:...` or `md5:...` of it; empty if none is published.
        homepage: Where people get it by hand.
        folder: Where people unpack it by hand, if not into the manual folder itself.
    """

    file: str
    contents: str
    url: str = ""
    digest: str = ""
    homepage: str = ""
    folder: str = ""


def unpacked(dl_manager: Any, archive: Archive) -> Path:
    """Returns the folder that holds `archive.contents`.

    Looks for the contents, then for the archive itself, in the folder for files placed
    by hand (`manual_dir` of TFDS), and downloads the archive otherwise.

    Raises:
        UserError: The archive is damaged, lacks its contents, or must be got by hand.
    """
    try:
        manual = Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS's word for a folder that is missing or empty
        manual = None
    place = manual or Path(dl_manager.download_dir, "manual")
    if manual and (manual / archive.folder / archive.contents).exists():
        return manual / archive.folder
    if manual and (manual / archive.file).is_file():
        path = manual / archive.file
    elif archive.url:
        path = _download(dl_manager, archive, place)
    else:
        raise UserError(
            f"{archive.file}: must be got by hand, from {archive.homepage}, and put "
            f"into {place}"
        )
    check_digest(path, archive.digest)
    return _unpack(path, archive, Path(dl_manager.download_dir, "extracted"))


def _download(dl_manager: Any, archive: Archive, place: Path) -> Path:
    try:
        return Path(dl_manager.download(archive.url))
    except (OSError, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        raise UserError(
            f"{archive.url}: cannot be downloaded: {_one_line(error)}; {archive.file} "
            f"can also be put into {place}"
        ) from error


def _unpack(path: Path, archive: Archive, parent: Path) -> Path:
    """Unpacks a file into a folder of its own in `parent`, once: whole or not at all.

    (TFDS's `extract` leaves behind what it wrote of a damaged file, and for a file that
    was replaced returns what the earlier one held.)
    """
    status = path.stat()
    folder = parent / f"{path.name}.{status.st_size}.{status.st_mtime_ns}"
    if folder.is_dir():
        return folder
    _log.info("unpacking %s", path)
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="incomplete.") as temporary:
        part = Path(temporary, "contents")
        try:
            _write_contents(path, part)
        except _DAMAGED as error:
            raise UserError(
                f"{path}: damaged: {_one_line(error)}; get it again"
            ) from error
        if not (part / archive.contents).exists():
            raise UserError(f"{path}: lacks {archive.contents}; is it {archive.file}?")
        part.rename(folder)
    return folder


def _write_contents(path: Path, folder: Path) -> None:
    method = tfds.download.Resource(path=path).extract_method
    with path.open("rb") as archive:
        for name, content in tfds.download.iter_archive(archive, method):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)


def check_digest(path: Path, digest: str) -> None:
    """Raises `UserError` unless a file has the digest, `sha1:...`; empty: any."""
    if not digest:
        return
    algorithm, _, expected = digest.partition(":")
    found = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    if found.hexdigest() != expected:
        raise UserError(
            f"{path}: {algorithm} {found.hexdigest()}; published is {expected}: the "
            "file is damaged or another version; remove it to download it again"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
