"""Files that predictions are saved as: marked, and recognized later."""

import hashlib
import os
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

# Keys of PNG text. The second holds a digest of the path of the predicted image.
_SOFTWARE, _SOURCE = "Software", "encnet_jax source"
_DESCRIPTION = 270  # tag of a TIFF
_UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    KeyError,
    TypeError,
    struct.error,
    zipfile.BadZipFile,
)


def save_result(image: Image.Image, file: BinaryIO, source: Path) -> None:
    """Writes a PNG that `result_source` recognizes.

    Args:
        image: Labels, an overlay, or the like.
        file: Opened for writing.
        source: The image that was predicted.
    """
    text = PngImagePlugin.PngInfo()
    text.add_text(_SOFTWARE, "encnet_jax")
    text.add_text(_SOURCE, source_digest(source))
    image.save(file, "PNG", pnginfo=text)


def save_arrays(arrays: dict[str, Any], file: BinaryIO, source: Path) -> None:
    """Writes a `.npz` that `result_source` recognizes; arguments as `save_result`."""
    np.savez(file, allow_pickle=False, **arrays, **{_SOURCE: source_digest(source)})


def tiff_tags(source: Path) -> dict[str, Any]:
    """Returns the arguments by which tifffile marks a file for `result_source`."""
    return {
        "software": "encnet_jax",
        "description": f"{_SOURCE} {source_digest(source)}",
    }


def source_digest(source: Path) -> str:
    """Returns what a result stores of its source: no path, but one digest a file."""
    return hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:32]


def result_source(path: Path) -> str | None:
    """Returns the `source_digest` in a file; None if no prediction wrote it.

    Reads the file only up to its pixels.
    """
    reader = _READERS.get(path.suffix.lower())
    try:
        return reader(path) if reader else None
    except _UNREADABLE:
        return None


# Not `Image.open`, which warns of large images; no pixel is read here.
def _source_of_png(path: Path) -> str | None:
    with PngImagePlugin.PngImageFile(path) as image:
        return image.info.get(_SOURCE)


def _source_of_tiff(path: Path) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged tags
        with TiffImagePlugin.TiffImageFile(path) as image:
            description = str(image.tag_v2.get(_DESCRIPTION, ""))
    mark, _, digest = description.rpartition(" ")
    return digest if mark == _SOURCE else None


def _source_of_npz(path: Path) -> str | None:
    with np.load(path) as arrays:
        return str(arrays[_SOURCE]) if _SOURCE in arrays else None


_READERS = {
    ".png": _source_of_png,
    ".tif": _source_of_tiff,
    ".npz": _source_of_npz,
}


def is_result(path: Path) -> bool:
    """Returns whether a prediction wrote a file."""
    return result_source(path) is not None
