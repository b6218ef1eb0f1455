"""TIFF files of any size as arrays of which parts are read."""

import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from encnet_jax.data.bands import RGB_INFO, Pixels, scale_bands
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.image_io import to_rgb_array
from encnet_jax.data.tiff_file import (
    check_upright,
    check_values,
    open_tiff_file,
    unreadable_tiff,
)
from encnet_jax.data.tiff_pages import COPY_OR_MASK
from encnet_jax.errors import UserError

SUFFIXES = (".tif", ".tiff")
_CACHE_BYTES = 256 << 20
_MAX_SEGMENT_BYTES = 256 << 20
_CONTIGUOUS_ROWS = 64  # read at a time from a file without compression
# Where the image lies on the Earth: scale, tie points, transformation, keys.
_GEOGRAPHIC = (33550, 33922, 34264, 34735, 34736, 34737)
# Photometric interpretation, samples, kind of the last -> Pillow's mode.
_MODES = {
    (0, 1, None): "inverted",
    (1, 1, None): "L",
    (1, 2, 2): "LA",
    (2, 3, None): "RGB",
    (2, 4, 0): "RGBX",
    (2, 4, 1): "RGBa",
    (2, 4, 2): "RGBA",
    (3, 1, None): "palette",
    (6, 3, None): "RGB",  # decoded to it
}
_ALLOWED = "allowed are 8 bits per color: gray, RGB, palette, with or without alpha"


@contextlib.contextmanager
def open_tiff(path: Path, info: DatasetInfo = RGB_INFO) -> Iterator["TiffImage"]:
    """Opens the first page of a TIFF.

    Args:
        path: The file.
        info: What the model was trained on.

    Raises:
        UserError: Not a TIFF, truncated, of a kind that is not supported, or tifffile
            is missing. The block raises it as well, for damaged pixels.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: --slide reads TIFF (.tif, .tiff): convert it")
    with open_tiff_file(path, str(path), f"{path}: --slide") as file:
        with unreadable_tiff(str(path)):
            page = file.pages.first
        if (pages := _gray_pages(file)) > 1:
            raise UserError(
                f"{path}: a TIFF of {pages} gray pages of {page.imagewidth}x"
                f"{page.imagelength} pixels; must be one page"
            )
        with unreadable_tiff(str(path)):
            image = TiffImage(path, page, info)
        yield image


def _gray_pages(file: Any) -> int:
    """Returns how many gray pages a TIFF has of the size of the first, if that is gray.

    As `tiff_pages.check_one_page` counts them; a damaged page ends the count.
    """
    first, count = file.pages.first, 0
    if first.samplesperpixel != 1:
        return 0
    with contextlib.suppress(Exception):
        for page in file.pages:
            alike = page.samplesperpixel == 1 and page.shape == first.shape
            aside = page.subfiletype & COPY_OR_MASK
            count += alike and page.bitspersample > 1 and not aside
    return count


class TiffImage:
    """A TIFF as `LargeImage`, converted as `decode_pixels` does: RGB or bands.

    Args:
        path: The file, for error messages.
        page: A page of an open `tifffile.TiffFile`.
        info: What the model was trained on.
    """

    def __init__(self, path: Path, page: Any, info: DatasetInfo):
        self._path, self._page, self._info = path, page, info
        self._value_range: Any = info.value_range
        self.dtype = np.dtype(np.uint16 if info.banded else np.uint8)
        self._mode = self._check_kind()
        planes, _, height, width, samples = page.shaped
        self.shape: tuple[int, ...] = (height, width, info.channels)
        self._planes, self._samples = planes, samples
        self._direct = page.is_contiguous and page.compression == 1 and planes == 1
        if page.is_tiled:
            self._segment = (page.tilelength, page.tilewidth)
        elif self._direct:
            self._segment = (min(_CONTIGUOUS_ROWS, height), width)
        else:
            self._segment = (min(page.rowsperstrip, height), width)
        self._columns = -(-width // self._segment[1])
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._check_size()

    def geographic_tags(self) -> list[tuple[int, int, int, Any, bool]]:
        """Returns the tags of a GeoTIFF, as tifffile's `extratags`."""
        with unreadable_tiff(str(self._path)):  # values may be read here
            found = [self._page.tags.get(code) for code in _GEOGRAPHIC]
            return [(t.code, t.dtype, t.count, t.value, True) for t in found if t]

    def __getitem__(self, key: Any) -> Pixels:
        """Returns the pixels of `[rows, columns]`, slices or the arrays of `np.ix_`."""
        rows, columns = (
            np.arange(k.start, k.stop) if isinstance(k, slice) else k.ravel()
            for k in key
        )
        result = np.empty((len(rows), len(columns), self.shape[2]), self.dtype)
        (height, width), (in_rows, in_columns) = self._segment, (rows, columns)
        for i in np.unique(in_rows // height).tolist():
            to_row = _run(in_rows // height, i)
            for j in np.unique(in_columns // width).tolist():
                to_column = _run(in_columns // width, j)
                box = np.ix_(rows[to_row] - i * height, columns[to_column] - j * width)
                result[to_row, to_column] = self._read(i, j)[box]
        return result

    def _read(self, i: int, j: int) -> np.ndarray:
        """Returns the segment in row i and column j of them, converted."""
        segment = self._cache.get((i, j))
        if segment is None:
            with unreadable_tiff(str(self._path)):
                segment = self._converted(self._decode(i, j))
            self._cache[i, j] = segment
            limit = max(_CACHE_BYTES // segment.nbytes, 1)
            while len(self._cache) > limit:
                self._cache.popitem(last=False)
        self._cache.move_to_end((i, j))
        return segment

    def _decode(self, i: int, j: int) -> np.ndarray:
        """Returns a segment as stored, (rows, columns, samples)."""
        page, (height, width), samples = self._page, self._segment, self._samples
        file = page.parent.filehandle
        if self._direct and not page.is_tiled:
            rows = min(height, self.shape[0] - i * height)
            count = rows * width * samples
            dtype = page.dtype.newbyteorder(page.parent.byteorder)
            file.seek(
                page.dataoffsets[0] + i * height * width * samples * dtype.itemsize
            )
            data = np.frombuffer(file.read(count * dtype.itemsize), dtype)
            return data.reshape(rows, width, samples).astype(page.dtype)
        parts = []
        for plane in range(self._planes):
            per_plane = len(page.dataoffsets) // self._planes
            index = plane * per_plane + i * self._columns + j
            file.seek(page.dataoffsets[index])
            data = file.read(page.databytecounts[index])
            tables = page.jpegtables
            part, _, shape = page.decode(data or None, index, jpegtables=tables)
            if part is None:  # left out: all zeros
                part = np.zeros((1, height, width, samples), page.dtype)
            parts.append(part[0])
        return np.concatenate(parts, -1)

    def _converted(self, pixels: np.ndarray) -> np.ndarray:
        if self._mode == "bands":
            return scale_bands(pixels, self._value_range, str(self._path))
        if self._mode == "RGB":
            return pixels
        if self._mode == "palette":
            return (self._page.colormap.T >> 8).astype(np.uint8)[pixels[..., 0]]
        if self._mode == "inverted":
            pixels = 255 - pixels
        if pixels.shape[-1] == 1:
            image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
        else:
            size = (pixels.shape[1], pixels.shape[0])
            image = Image.frombytes(self._mode, size, pixels.tobytes())
        return to_rgb_array(image, self._value_range, str(self._path))

    def _check_kind(self) -> str:
        """Returns how pixels are converted; raises `UserError` if they cannot be."""
        page, path = self._page, self._path
        kind = f"{page.samplesperpixel} samples of {page.bitspersample} bits"
        depth = page.shaped[1] if page.shaped else 1
        (check_values if self._info.banded else check_upright)(page, str(path))
        last = page.extrasamples[-1] if page.extrasamples else None
        form = (
            int(page.photometric),
            page.samplesperpixel,
            None if last is None else int(last),
        )
        mode = _MODES.get(form)
        if self._info.banded:
            found = page.samplesperpixel
            if found != self._info.channels or page.dtype.kind not in "uif":
                raise UserError(
                    f"{path}: {found} channels, {page.dtype}; "
                    f"{self._info.channels} are expected"
                )
            mode = "bands"
        elif page.dtype == np.uint16 and mode == "L":
            if self._value_range is None:
                raise UserError(
                    f'{path}: 16 bits; give the range as "value_range": [low, high] '
                    "in classes.json, or convert it to 8 bits"
                )
        elif page.dtype != np.uint8 or page.bitspersample != 8 or mode is None:
            name = getattr(page.photometric, "name", page.photometric)
            raise UserError(f"{path}: {name}, {kind}, {page.dtype}; {_ALLOWED}")
        if depth != 1 or 0 in page.shaped:
            raise UserError(f"{path}: not one image with pixels, {page.shape}")
        if int(page.photometric) == 6 and page.compression not in (6, 7):
            raise UserError(f"{path}: YCbCr without JPEG compression: convert it")
        return mode

    def _check_size(self) -> None:
        """Raises `UserError` if pixels are missing or cannot be read in parts."""
        page, path = self._page, self._path
        height, width = self.shape[:2]
        bytes_per_pixel = self._samples * self._planes * page.dtype.itemsize
        segment = math.prod(self._segment) * max(bytes_per_pixel, 3)
        if segment > _MAX_SEGMENT_BYTES:
            raise UserError(
                f"{path}: parts of {self._segment[1]} x {self._segment[0]} pixels, too "
                "large to be read one at a time: store it in tiles"
            )
        if self._direct and not page.is_tiled:
            end = page.dataoffsets[0] + height * width * bytes_per_pixel
        else:
            end = max(map(sum, zip(page.dataoffsets, page.databytecounts)))
            expected = -(-height // self._segment[0]) * self._columns * self._planes
            if len(page.dataoffsets) != expected:
                raise UserError(f"{path}: cannot be read as a TIFF: pixels are missing")
        size = page.parent.filehandle.size
        if end > size:
            raise UserError(f"{path}: truncated: {size} of {end} bytes")


def _run(segments: np.ndarray, segment: int) -> slice:
    """Returns the slice of ascending `segments` that are equal to `segment`."""
    first, last = np.searchsorted(segments, [segment, segment + 1]).tolist()
    return slice(first, last)
