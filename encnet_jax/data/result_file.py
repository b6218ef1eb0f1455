"""Images that predictions are saved as: written whole, marked, and recognized later."""

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

from PIL import Image, PngImagePlugin

# Keys of PNG text. The second holds a digest of the path of the predicted image.
_SOFTWARE, _SOURCE = "Software", "encnet_jax source"


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


def source_digest(source: Path) -> str:
    """Returns what a result stores of its source: no path, but one digest a file."""
    return hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:32]


def result_source(path: Path) -> str | None:
    """Returns the `source_digest` in a file; None if `save_result` did not write it.

    Reads the file only up to its pixels.
    """
    if path.suffix.lower() != ".png":
        return None
    try:
        # Not `Image.open`, which warns of large images; no pixel is read here.
        with PngImagePlugin.PngImageFile(path) as image:
            return image.info.get(_SOURCE)
    except (OSError, SyntaxError, ValueError, struct.error):
        return None


def is_result(path: Path) -> bool:
    """Returns whether `save_result` wrote a file."""
    return result_source(path) is not None
