"""Images of any number of channels and of more than 8 bits: read, scaled, shown.

Every band is mapped from its range of values, low to high, to 0 to 65535 where it is
read: images travel as uint16 (h, w, c), and `ops.normalize` knows them by that.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Real, UInt8, UInt16
from PIL import Image, ImageOps

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.image_io import (
    TIFF_MARKS,
    decode_image,
    decoding,
    open_image,
)
from encnet_jax.data.stored_form import (
    check_kind,
    gray_step,
    is_deep_color,
    stored_form,
    stored_tiles,
)
from encnet_jax.data.tiff_file import read_tiff
from encnet_jax.errors import UserError
from encnet_jax.ops.normalize import to_byte_scale

Pixels = UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w c"]
RangeSetting = Sequence[float] | Sequence[Sequence[float]] | None


class ImageFormat(NamedTuple):
    """How images are stored: `data.channels` and `data.value_range`."""

    channels: int = 3
    value_range: RangeSetting = ()


RGB_INFO = DatasetInfo("", (), (), {})  # of images that are not bands
_WHITE = 65535
# Shown as black and white: the mean of a channel minus and plus this many deviations.
_SHOWN_DEVIATIONS = 2
_RANGE_REMEDY = (
    'give data.value_range, or "value_range" in classes.json: [low, high], or such a '
    "pair for each channel"
)


def declare_bands(
    info: DatasetInfo, channels: int, value_range: RangeSetting = ()
) -> DatasetInfo:
    """Returns the metadata of a data set whose images have these channels.

    Images are read as bands if `channels` is not 3, `value_range` is given, or that of
    `info` is per channel. Mean and deviation are then unknown, 0 and 1.

    Args:
        info: The data set.
        channels: Value of `data.channels`.
        value_range: Value of `data.value_range`, in place of that of `info`.

    Raises:
        UserError: A range that is no pair of finite numbers, low < high, another number
            of pairs than of channels, or a display channel that there is not.
    """
    if isinstance(value_range, np.ndarray):
        value_range = value_range.tolist()
    given = value_range or info.value_range or ()
    pairs = isinstance(next(iter(given), None), Sequence | np.ndarray)
    if given and not all(map(_is_range, given if pairs else (given,))):
        raise UserError(
            f"value_range={given!r}: must be (low, high), two finite numbers, low < "
            "high, or such a pair for each channel"
        )
    if any(index >= channels for index in info.display_channels):
        raise UserError(
            f"display_channels={[*info.display_channels]}: data.channels={channels}, "
            f"so that allowed are 0 to {channels - 1}"
        )
    if channels == 3 and not value_range and not pairs:
        return info
    if pairs and len(given) != channels:
        raise UserError(
            f"value_range: {len(given)} pairs; data.channels is {channels}: must be "
            "one for each channel, or [low, high]"
        )
    ranges: Any = given if pairs else (given,) * channels
    return dataclasses.replace(
        info,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        value_range=tuple((float(a), float(b)) for a, b in ranges) if given else None,
    )


def _is_range(pair: Any) -> bool:
    try:
        low, high = map(float, pair)
    except (TypeError, ValueError, OverflowError):
        return False
    if any(isinstance(value, str | bool) for value in pair):
        return False
    return math.isfinite(low) and math.isfinite(high) and low < high


def with_bands(info: DatasetInfo, known: DatasetInfo) -> DatasetInfo:
    """Returns `info` with the channels, ranges and normalization of another.

    Unchanged unless that has bands.
    """
    if not known.banded:
        return info
    return dataclasses.replace(
        info,
        mean=known.mean,
        std=known.std,
        value_range=known.value_range,
        display_channels=info.display_channels or known.display_channels,
    )


def model_input(info: DatasetInfo) -> str:
    """Returns in a sentence what channels and values a model of bands takes."""
    pairs: Any = info.value_range
    shown = pairs[:1] if len({*pairs}) == 1 else pairs
    ranges = ", ".join(f"{low:g} to {high:g}" for low, high in shown)
    return (
        f"Images have {info.channels} channels; values of {ranges} are mapped to 0 to "
        "255 by the model, others clipped."
    )


def describe_bands(info: DatasetInfo) -> str:
    """Returns range, mean and deviation of each channel in one line."""
    if info.value_range is None:
        return f"{info.channels} channels"
    parts = []
    for channel, pair in enumerate(info.value_range):
        low, high = np.array(pair, np.float64)
        mean, std = (v[channel] * (high - low) for v in (info.mean, info.std))
        parts.append(f"{channel}: {low:g} to {high:g}, {low + mean:.4g} +- {std:.4g}")
    return f"{info.channels} channels ({'; '.join(parts)})"


def decode_pixels(data: bytes, name: str, info: DatasetInfo) -> Pixels:
    """Decodes an image file as a data set has it read: RGB, or scaled bands.

    Raises:
        UserError: See `decode_image` and `read_bands`.
    """
    if info.banded:
        raw = read_bands(data, name, info.channels)
        return scale_bands(raw, info.value_range, name)
    value_range: Any = info.value_range
    return decode_image(data, name, value_range)


def read_bands(data: bytes, name: str, channels: int) -> Real[np.ndarray, "h w c"]:
    """Returns the values that an image file holds.

    TIFF is read by tifffile, other formats by Pillow; alpha is a channel like others.

    Args:
        data: Content of the file.
        name: Its name, for error messages.
        channels: How many there must be.

    Raises:
        UserError: The file cannot be read, or has another number of channels.
    """
    if data[:4] in TIFF_MARKS:
        values, channels_last = read_tiff(data, channels, name)
        return as_bands(values, channels, name, channels_last=channels_last)
    tiles = stored_tiles(open_image(data, name))  # gone once it is loaded
    with decoding(name):
        values = pillow_values(open_image(data, name, load=True), name, tiles)
    return as_bands(values, channels, name, channels_last=True)


def pillow_values(
    image: Image.Image, name: str, tiles: list | None = None
) -> Real[np.ndarray, "h w *c"]:
    """Returns the values of a Pillow image, upright; those of a palette in RGB.

    Args:
        image: The image.
        name: Its name, for error messages.
        tiles: Those of its file, see `stored_tiles`, if it is loaded.

    Raises:
        UserError: Pillow reads 8 bits of more, or signed integers as unsigned.
    """
    tiles = stored_tiles(image) if tiles is None else tiles
    check_kind(image, tiles, name)
    codec, mode, declared = stored_form(tiles)
    white = _WHITE if image.mode == "I" else 255
    if is_deep_color(tiles) or (codec == "ppm" and declared > white):
        raise UserError(
            f"{name}: 16 bits per color, of which only the upper 8 are read: convert "
            "it to TIFF"
        )
    if image.mode in ("P", "1"):
        image = image.convert("RGB" if image.mode == "P" else "L")
    values = np.asarray(ImageOps.exif_transpose(image))
    if codec == "jpeg2k":  # PNG means shares of white, which Pillow keeps
        values = values // values.dtype.type(gray_step(tiles))
    if codec == "ppm":  # Pillow has scaled them from the declared maximum
        values = np.rint(values * (declared / white))
    if image.mode == "I" and (codec == "ppm" or mode in ("I;16", "I;16B")):
        return values.astype(np.uint16)
    return values.astype(np.uint8) if codec == "ppm" else values


def as_bands(
    values: np.ndarray,
    channels: int,
    name: str,
    *,
    channels_last: bool | None = None,
) -> Real[np.ndarray, "h w c"]:
    """Returns an array (h, w, c), (c, h, w) or, of one channel, (h, w) as (h, w, c).

    With `channels_last=None` the array is taken as (c, h, w) only if its first axis has
    `channels` entries and its last has not; True never moves axes; False moves them
    whenever the first axis fits.

    Raises:
        UserError: It has another number of channels, no pixels, or no real numbers.
    """
    shape = values.shape
    if values.ndim == 2:
        values = values[..., None]
    elif values.ndim == 3 and not channels_last and shape[0] == channels:
        if channels_last is False or shape[2] != channels:
            values = np.moveaxis(values, 0, -1)
    if values.ndim != 3 or values.dtype.kind not in "uif" or not values.size:
        raise UserError(
            f"{name}: {values.dtype} {shape}; must be numbers of shape (h, w, c)"
        )
    if values.shape[2] != channels:
        found = values.shape[2] if channels_last else min(values.shape[::2])
        raise UserError(f"{name}: {found} channels; {channels} are expected")
    return values


def scale_bands(
    raw: Real[np.ndarray, "h w c"], value_range: Any, name: str
) -> UInt16[np.ndarray, "h w c"]:
    """Maps each channel from its range to 0-65535; NaN to 0, values beyond clipped.

    Args:
        raw: Values as stored.
        value_range: A pair per channel; None: from all values of 8 or 16 bits.
        name: Name of the image, for error messages.

    Raises:
        UserError: No range is given, of floats or signed or longer integers.
    """
    if value_range is None:
        value_range = ((0, full_scale(raw, name)),) * raw.shape[2]
    low, high = np.array(value_range, np.float64).T
    if raw.dtype == np.uint16 and not low.any() and (high == _WHITE).all():
        return np.ascontiguousarray(raw)
    if raw.dtype == np.uint8 and not low.any() and (high == 255).all():
        return raw.astype(np.uint16) * np.uint16(257)
    exact = raw.dtype.itemsize <= 2 or raw.dtype == np.float32
    dtype: Any = np.float32 if exact else np.float64
    scaled: Any = raw.astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # -3.4e38 marks missing values
        scaled -= low.astype(dtype)
        scaled *= (_WHITE / (high - low)).astype(dtype)
    scaled = np.nan_to_num(scaled, copy=False, nan=0.0)
    return np.clip(scaled, 0, _WHITE, out=scaled).round().astype(np.uint16)


def full_scale(raw: np.ndarray, name: str) -> int:
    """Returns the greatest value of unsigned integers of 8 or 16 bits.

    Raises:
        UserError: Numbers of another kind, whose range is unknown.
    """
    if raw.dtype.newbyteorder("=") in (np.uint8, np.uint16):
        return int(np.iinfo(raw.dtype).max)
    values = raw[np.isfinite(raw)]
    found = f", {values.min():g} to {values.max():g}" if values.size else ""
    raise UserError(f"{name}: {raw.dtype} of unknown range{found}: {_RANGE_REMEDY}")


def displayed(pixels: Pixels, info: DatasetInfo) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image as it is shown: 8-bit RGB as it is, of bands three or one.

    They are `info.display_channels`, by default the first three, or the first of fewer,
    each stretched to two deviations around its mean.
    """
    if pixels.dtype == np.uint8:
        return pixels
    count = pixels.shape[-1]
    shown = list(info.display_channels or (range(3) if count >= 3 else (0,)))
    mean, std = (np.array(v, np.float32)[shown] for v in (info.mean, info.std))
    values = to_byte_scale(pixels[..., shown]) / 255
    values = (values - mean) / (2 * _SHOWN_DEVIATIONS * std) + 0.5
    rgb = np.clip(255 * values, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rgb, (*rgb.shape[:2], 3)))
