"""Fake copies of published archives: files as a mapping, path -> content."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy.io import savemat

from encnet_jax.errors import UserError

Files = Mapping[str, bytes]


def pack(path: Path, files: Files) -> None:
    """Writes an archive: a zip, or a tar, compressed if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def unpack(folder: Path, files: Files) -> None:
    """Writes the files into a folder, as people who have unpacked the archive do."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def jpeg(height: int, width: int, gray: int = 128) -> bytes:
    """Returns a JPEG of one gray."""
    return _saved(Image.new("RGB", (width, height), (gray, gray, gray)), "JPEG")


def png(labels: np.ndarray, palette: bool = False) -> bytes:
    """Returns uint8 labels (h, w) as a gray PNG, or as indices of a palette."""
    image = Image.fromarray(labels.astype(np.uint8))
    if palette:
        image.putpalette([(37 * n) % 256 for n in range(768)])
    return _saved(image, "PNG")


def mat(**variables: object) -> bytes:
    """Returns a MATLAB file; a dict is a struct."""
    file = io.BytesIO()
    savemat(file, variables, do_compression=True)
    return file.getvalue()


def names(*lines: str) -> bytes:
    """Returns a list file."""
    return "".join(f"{line}\n" for line in lines).encode()


def prepare(builder: Any, manual: Path) -> None:
    """Prepares a data set from what lies in a folder."""
    config = tfds.download.DownloadConfig(manual_dir=manual)
    builder.download_and_prepare(download_config=config)


def problem(builder: Any, manual: Path) -> str:
    """Returns the line with which preparing ends; nothing must be left of it.

    The data set is prepared in a folder next to that of its archives.
    """
    with pytest.raises(UserError) as raised:
        prepare(builder, manual)
    assert "\n" not in str(raised.value)
    left = [path.name for path in manual.parent.rglob("*")]
    assert not [name for name in left if "incomplete" in name or "tfrecord" in name]
    assert not builder.data_path.exists()
    return str(raised.value)


def _saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
