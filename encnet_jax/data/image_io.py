"""Decodes any image to uint8 RGB."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from encnet_jax.data.stored_form import (
    SAMPLE_FORMAT,
    check_kind,
    gray_step,
    is_deep_color,
    stored_form,
    stored_tiles,
)
from encnet_jax.data.tiff_pages import check_one_page, is_gray
from encnet_jax.errors import UserError, reason_of

ValueRange = tuple[float, float]

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION_TAG = 0x0112  # of EXIF and TIFF; 1 is upright
_PHOTOMETRIC = 262  # TIFF tag; 0: white is 0
# Formats that Pillow opens but that are no raster images: video, vector graphics (which
# it has Ghostscript run), and containers of which it reads the header alone.
_NOT_RASTER = ("MPEG", "EPS", "IPTC")
# A 16-bit image that is darker throughout holds 10, 12 or 14 bits.
MIN_BRIGHTEST = 1 << 14
_RANGE_REMEDY = (
    'give the range as "value_range": [low, high] in classes.json, or convert it to '
    "8 bits"
)


def set_max_image_pixels(limit: int) -> None:
    """Allows images of up to `limit` pixels; 0: of up to Pillow's limit.

    Pillow refuses images of more than about 179 million pixels, as files of a few
    kilobytes can expand to any size, and warns from half of that on. It no longer warns
    once this has been called. The limit is never lowered: it holds for figures too.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    present = Image.MAX_IMAGE_PIXELS
    if present is not None:  # Pillow refuses what exceeds the double
        Image.MAX_IMAGE_PIXELS = max(-(-limit // 2), present)


def decode_image(
    data: bytes, name: str, value_range: ValueRange | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file to RGB, 0-255.

    The EXIF orientation is applied; gray, palette and CMYK images are converted, and
    transparent pixels are blended with white. Gray images of more than 8 bits are
    scaled to 8: from `value_range`, or else from all 16 bits.

    Args:
        data: Content of the file.
        name: Name of the file, for error messages.
        value_range: The values that become 0 and 255 in images of more than 8 bits;
            those beyond are clipped.

    Raises:
        UserError: Not an image, or a truncated one, or one whose range of values is
            unknown, or a TIFF of several gray pages of one size; `name` is in the
            message.
    """
    image = open_image(data, name)
    if is_gray(image):
        remedy = ", unless the training sets data.channels"
        check_one_page(image, data, name, remedy)
    with decoding(name):
        return to_rgb_array(image, value_range, name)


def to_rgb_array(
    image: Image.Image, value_range: ValueRange | None = None, name: str = "image"
) -> UInt8[np.ndarray, "h w 3"]:
    """Converts an opened image as `decode_image` does."""
    tiles = stored_tiles(image)
    check_kind(image, tiles, name)
    tags = dict(getattr(image, "tag_v2", {}))
    image = ImageOps.exif_transpose(image)
    # The color that stands for transparency is in units of the file.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and image.mode == "L":
        image.info["transparency"] = transparent * gray_step(tiles)
    if image.mode.startswith("I") or image.mode == "F":
        if tags.get(_PHOTOMETRIC) == 0:
            raise UserError(f"{name}: more than 8 bits with 0 as white: convert it")
        if tags.get(SAMPLE_FORMAT) == (1,) and image.mode == "I":
            image = _unsigned(image)
        opaque = None
        if isinstance(transparent, int):
            opaque = Image.fromarray(np.asarray(image) != transparent).convert("L")
        image = _scale_gray(image, tiles, value_range, name)
        if opaque is not None:
            image.putalpha(opaque)
    elif is_deep_color(tiles):
        if transparent is not None:
            raise UserError(
                f"{name}: 16 bits per color, one of which stands for transparency: "
                "convert it to 8 bits"
            )
        _check_deep_color(image, value_range, name)
    if image.mode == "La":  # which Pillow converts to no mode but this
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return np.asarray(image.convert("RGB"))


def _unsigned(image: Image.Image) -> Image.Image:
    """Returns the 32-bit integers that Pillow took for signed ones as floats."""
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(values.astype(np.float32))


def _scale_gray(
    image: Image.Image, tiles: list, value_range: ValueRange | None, name: str
) -> Image.Image:
    """Scales an image of integers or floats to 8 bits; `tiles` are those of its file.

    Raises:
        UserError: The range of the values is unknown.
    """
    values = np.asarray(image).astype(np.float64)
    codec, mode, declared = stored_form(tiles)
    if codec == "ppm":  # Pillow has scaled them from the declared maximum to 65535
        values *= declared / 65535
    elif (step := gray_step(tiles)) > 1:
        values //= step
    if value_range is None:
        sixteen_bits = image.mode.startswith("I;16") or codec == "ppm"
        sixteen_bits |= mode.startswith("I;16") and not mode.endswith("S")
        if not sixteen_bits:
            kind = "floats" if image.mode == "F" else "32-bit or signed integers"
            raise UserError(f"{name}: {kind} of unknown range: {_RANGE_REMEDY}")
        value_range = (0, declared)
        highest = int(values.max(initial=0))
        # JPEG 2000 states bits, which may be more than are used, not a range.
        states_range = codec != "jpeg2k" and declared < 65535
        if not states_range and 0 < highest < MIN_BRIGHTEST * (declared + 1) >> 16:
            raise UserError(
                f"{name}: {declared.bit_length()}-bit values of unknown range, none "
                f"above {highest}: {_RANGE_REMEDY}"
            )
    low, high = value_range
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    values = (values - low) * (255 / (high - low))
    return Image.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8))


def _check_deep_color(
    image: Image.Image, value_range: ValueRange | None, name: str
) -> None:
    """Raises `UserError` unless the upper 8 of 16 bits are the image."""
    if value_range not in (None, (0, 65535)):
        raise UserError(
            f"{name}: 16 bits per color, of which only the upper 8 are read, so that "
            "value_range does not apply: convert it to 8 bits"
        )
    highest = brightest_color(image)
    if value_range is None and 0 < highest < MIN_BRIGHTEST >> 8:
        raise UserError(
            f"{name}: 16 bits per color of unknown range, none above "
            f"{(highest + 1 << 8) - 1}: convert it to 8 bits"
        )


def brightest_color(image: Image.Image) -> int:
    """Returns the greatest value of an image of 8 bits per color; not of alpha."""
    gray = image.mode in ("L", "LA")
    bands = [image.getchannel(index) for index in range(1 if gray else 3)]
    return max(int(np.asarray(band).max(initial=0)) for band in bands)


def ensure_rgb_bytes(
    data: bytes, name: str, value_range: ValueRange | None = None
) -> bytes:
    """Returns an image file that all decoders read identically.

    Upright JPEG and 8-bit PNG files in RGB or gray are returned as they are. Others are
    decoded by `decode_image` and encoded as PNG, as decoders differ in their support
    for EXIF orientation, transparency, CMYK, palettes and more than 8 bits.

    Raises:
        UserError: As `decode_image`.
    """
    image = open_image(data, name)
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    if (
        image.format in ("JPEG", "PNG")
        and plain
        and not is_deep_color(stored_tiles(image))
    ):
        if orientation(image, name) == 1:
            return data
    file = io.BytesIO()
    pixels = decode_image(data, name, value_range)
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Reads height and width from the header of an image file."""
    image = open_image(data, name)
    return image.height, image.width


def orientation(image: Image.Image, name: str) -> int:
    """Returns the EXIF orientation of an opened image, 1 (upright) to 8."""
    with decoding(name):
        value = image.getexif().get(ORIENTATION_TAG, 1)
    return value if value in range(2, 9) else 1


def is_raster(kind: str) -> bool:
    """Returns whether a format of Pillow is one of raster images that it reads."""
    if kind not in Image.OPEN or kind in _NOT_RASTER:
        return False
    reader = Image.OPEN[kind][0]
    is_stub = isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile)
    return not is_stub


def open_image(data: bytes, name: str, *, load: bool = False) -> Image.Image:
    """Opens an image file: reads the header, with `load` all of it.

    Its content tells the format, whatever its name: one that `is_raster`.

    Raises:
        UserError: Not an image, too large, or truncated; `name` is in the message.
    """
    Image.init()
    formats = [*filter(is_raster, Image.ID)]
    formats.sort(key=lambda kind: Image.OPEN[kind][1] is None)  # without a mark: last
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        if load:
            image.load()
    except Exception as error:
        kind = _tiff_kind(data) if isinstance(error, UnidentifiedImageError) else ""
        if kind:
            raise UserError(
                f"{name}: a TIFF of {kind}; must be gray or 8-bit RGB, unless the "
                "training sets data.channels or data.value_range"
            ) from error
        raise unreadable(name, error) from error
    return image


def _tiff_kind(data: bytes) -> str:
    """Returns channels and dtype of a TIFF that Pillow cannot read; "" if unknown."""
    if data[:4] not in TIFF_MARKS:
        return ""
    try:
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            return f"{page.samplesperpixel} channels, {page.dtype}"
    except Exception:  # not installed, or damaged in one of many ways
        return ""


@contextlib.contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turns errors of Pillow for damaged files, which are of many kinds, into one."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> UserError:
    """Returns the error for a file that Pillow cannot decode."""
    reason = reason_of(error).removesuffix(".")
    if isinstance(error, UnidentifiedImageError):
        reason = "unknown format"  # Pillow's own message holds an address in memory
    elif isinstance(error, Image.DecompressionBombError):
        reason += "; a larger data.max_image_pixels (--max_image_pixels) allows it"
    return UserError(f"{name}: cannot be decoded as an image: {reason}")
