"""TIFF files through tifffile: opened, checked, read."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from encnet_jax.data.image_io import (
    ORIENTATION_TAG,
    TIFF_MARKS,
    image_size,
    unreadable,
)
from encnet_jax.errors import UserError, reason_of, require_package

_PALETTE = 3


def open_tiff_file(file: Path | io.BytesIO, name: str, purpose: str) -> Any:
    """Opens a TIFF; returns a `tifffile.TiffFile`, to be closed by the caller.

    Args:
        file: The file.
        name: Its name, for error messages.
        purpose: What needs tifffile, for the error if it is not installed.

    Raises:
        UserError: Not installed, or not a TIFF that can be read.
    """
    require_package("tifffile", "tiff", purpose)
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # more than one line
    with unreadable_tiff(name):
        return tifffile.TiffFile(file)


@contextlib.contextmanager
def unreadable_tiff(name: str) -> Iterator[None]:
    """Turns errors of tifffile and its codecs, which are of many kinds, into one."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from error
        raise UserError(
            f"{name}: cannot be read as a TIFF: {reason_of(error)}"
        ) from error


def read_tiff(data: bytes, channels: int, name: str) -> tuple[np.ndarray, bool]:
    """Returns the first series of a TIFF, and whether its channels are stored last.

    It is (h, w), (h, w, c) or (c, h, w).

    Args:
        data: Content of the file.
        channels: How many there must be.
        name: Its name, for error messages.

    Raises:
        UserError: It cannot be read, is too large, of a kind that is not supported, or
            has another number of channels.
    """
    with open_tiff_file(io.BytesIO(data), name, name) as file, unreadable_tiff(name):
        series = file.series[0]
        page = series.keyframe
        check_values(page, name)
        check_size(page, name)
        # Before they are decoded: a small file may declare very many.
        shape = series.shape
        if channels not in shape and (channels != 1 or len(shape) > 2):
            # tifffile writes (h, w, c) as h pages of w x c pixels by default.
            found = min(shape[0], shape[-1]) if len(shape) > 2 else 1
            if "S" in series.axes:
                found = shape[series.axes.index("S")]
            raise UserError(f"{name}: {found} channels; {channels} are expected")
        # A file may hold an image, or each of its channels, as a page of its own.
        values, axes = series.asarray(), series.axes
        single = [
            axis
            for axis, (length, kind) in enumerate(zip(values.shape, axes))
            if length == 1 and kind not in "YX"
        ]
        return values.squeeze(tuple(single)), axes.endswith("S")


def bands_size(data: bytes, channels: int, name: str) -> tuple[int, int]:
    """Reads height and width of an image of `channels` channels from its header.

    Raises:
        UserError: Not an image, or a TIFF while tifffile is missing.
    """
    if data[:4] not in TIFF_MARKS:
        return image_size(data, name)
    with open_tiff_file(io.BytesIO(data), name, name) as file, unreadable_tiff(name):
        series = file.series[0]
        shape = [length for length in series.shape if length > 1]
        if len(shape) == 3 and shape[2] == channels:  # see `read_tiff`
            return shape[0], shape[1]
        return series.keyframe.imagelength, series.keyframe.imagewidth


def check_upright(page: Any, name: str) -> None:
    """Raises `UserError` for a page that viewers turn."""
    orientation = page.tags.get(ORIENTATION_TAG)
    if orientation is not None and orientation.value not in (0, 1):
        raise UserError(f"{name}: is stored rotated or mirrored: convert it")


def check_values(page: Any, name: str) -> None:
    """Raises `UserError` for a page that does not hold channels as they are shown."""
    check_upright(page, name)
    if int(page.photometric) == _PALETTE:
        raise UserError(f"{name}: a palette image, not values of channels: convert it")


def check_size(page: Any, name: str) -> None:
    """Raises `UserError` for a page of more pixels than Pillow takes of any format."""
    pixels, limit = page.imagelength * page.imagewidth, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > 2 * limit:
        error = Image.DecompressionBombError(
            f"Image size ({pixels} pixels) exceeds limit of {2 * limit} pixels"
        )
        raise unreadable(name, error)
