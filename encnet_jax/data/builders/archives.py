"""Archives of the data sets: found where the user placed them, or downloaded."""

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

from encnet_jax.errors import UserError, reason_of

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
    """A published archive.

    Attributes:
        file: File name.
        contents: A folder or file inside, by which an unpacked archive is recognized.
        url: Download address; empty if it requires a login.
        digest: `ALGORITHM:HEX`; empty if none is published.
        homepage: Where to download it by hand.
        folder: Where it is unpacked by hand, relative to the manual folder.
    """

    file: str
    contents: str
    url: str = ""
    digest: str = ""
    homepage: str = ""
    folder: str = ""


def unpacked(dl_manager: Any, archive: Archive) -> Path:
    """Returns the folder that holds `archive.contents`.

    Looks in the manual folder (`manual_dir` of TFDS) for the contents, then for the
    archive, and downloads the archive otherwise.

    Raises:
        UserError: The archive is damaged, incomplete, or must be downloaded by hand.
    """
    try:
        manual = Path(dl_manager.manual_dir)
    except AssertionError:  # raised by TFDS if the folder is missing or empty
        manual = None
    manual_folder = manual or Path(dl_manager.download_dir, "manual")
    if manual and (manual / archive.folder / archive.contents).exists():
        return manual / archive.folder
    if manual and (manual / archive.file).is_file():
        path = manual / archive.file
    elif archive.url:
        path = _download(dl_manager, archive, manual_folder)
    else:
        raise UserError(
            f"{archive.file}: must be downloaded by hand from {archive.homepage} and "
            f"put into {manual_folder}"
        )
    check_digest(path, archive.digest)
    return _unpack(path, archive, Path(dl_manager.download_dir, "extracted"))


def _download(dl_manager: Any, archive: Archive, manual_folder: Path) -> Path:
    try:
        return Path(dl_manager.download(archive.url))
    except (OSError, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        raise UserError(
            f"{archive.url}: cannot be downloaded: {reason_of(error)}; {archive.file} "
            f"can also be put into {manual_folder}"
        ) from error


def _unpack(path: Path, archive: Archive, parent: Path) -> Path:
    """Unpacks an archive into its own folder in `parent`, once and atomically.

    (TFDS's `extract` leaves partial output of a damaged file behind, and for a file
    that was replaced returns the contents of the previous one.)
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
                f"{path}: damaged: {reason_of(error)}; download it again"
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
    """Raises `UserError` if the file differs from the digest, if there is one."""
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
