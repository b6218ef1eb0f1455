"""Published archives: found where people have put them, or downloaded and checked."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from encnet_jax.errors import UserError

_BLOCK = 1 << 20  # bytes read at a time


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
    """

    file: str
    contents: str
    url: str = ""
    digest: str = ""
    homepage: str = ""


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
    if manual and (manual / archive.contents).exists():
        return manual
    if manual and (manual / archive.file).is_file():
        path = manual / archive.file
    elif archive.url:
        path = Path(dl_manager.download(archive.url))
    else:
        raise UserError(
            f"{archive.file}: must be got by hand, from {archive.homepage}, and put "
            f"into {manual or dl_manager.download_dir / 'manual'}"
        )
    check_digest(path, archive.digest)
    folder = Path(dl_manager.extract(path))
    if not (folder / archive.contents).exists():
        raise UserError(f"{path}: lacks {archive.contents}; is it {archive.file}?")
    return folder


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
