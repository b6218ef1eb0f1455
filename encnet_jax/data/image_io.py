"""Decodes any image to uint8 RGB, and label files to uint8 labels."""

import io
import struct
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageOps, UnidentifiedImageError

from encnet_jax.errors import UserError

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
)


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file to RGB, 0-255.

    The EXIF orientation is applied; gray, palette and CMYK images are converted, 16-bit
    gray is scaled to 8 bits, and transparent pixels are blended with white.

    Raises:
        UserError: Not an image, or a truncated one; `name` is in the message.
    """
    return to_rgb_array(_open(data, name))


def to_rgb_array(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Converts an opened image as `decode_image` does."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        gray = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.clip(gray.round(), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return np.asarray(image.convert("RGB"))


def ensure_rgb_bytes(data: bytes, name: str) -> bytes:
    """Returns an image file that all decoders read identically.

    Upright JPEG and 8-bit PNG files in RGB or gray are returned as they are. Others are
    decoded by `decode_image` and encoded as PNG, as decoders differ in their support
    for EXIF orientation, transparency, CMYK and palettes.

    Raises:
        UserError: As `decode_image`.
    """
    image = _identify(data, name)
    try:
        upright = image.getexif().get(_ORIENTATION, 1) == 1
    except _UNREADABLE as error:
        raise _unreadable(name, error) from error
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    if image.format in ("JPEG", "PNG") and plain and upright:
        return data
    file = io.BytesIO()
    Image.fromarray(decode_image(data, name)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Reads height and width from the header of an image file."""
    image = _identify(data, name)
    return image.height, image.width


def decode_labels(
    data: bytes, name: str, colors: UInt16[np.ndarray, "16777216"] | None = None
) -> UInt8[np.ndarray, "h w"]:
    """Decodes a label file to its gray values or palette indices.

    Args:
        data: Content of the file.
        name: Name of the file, for error messages.
        colors: The `color_table` by which RGB label files are decoded; None if they
            are not allowed. Transparency is ignored.

    Raises:
        UserError: Not decodable, an unsupported mode, or a color not in the table.
    """
    image = _open(data, name)
    if image.mode in ("RGB", "RGBA") and colors is not None:
        return _labels_by_color(image, name, colors)
    if image.mode not in ("L", "P", "1"):
        allowed = "8-bit gray (L) and palette (P)"
        if colors is not None:
            allowed = "8-bit gray (L), palette (P) and colors (RGB, RGBA)"
        raise UserError(
            f"{name}: a label image of mode {image.mode}; allowed are {allowed}"
        )
    return np.asarray(image).astype(np.uint8)


def color_table(
    labels: Mapping[tuple[int, int, int], int],
) -> UInt16[np.ndarray, "16777216"]:
    """Returns a table from the color R + 256 G + 65536 B to label + 1; 0: unknown."""
    table = np.zeros(1 << 24, np.uint16)  # only pages that are written take memory
    for (red, green, blue), label in labels.items():
        table[red | green << 8 | blue << 16] = label + 1
    return table


def _labels_by_color(
    image: Image.Image, name: str, colors: UInt16[np.ndarray, "16777216"]
) -> UInt8[np.ndarray, "h w"]:
    pixels = np.asarray(image.convert("RGBA"))
    found = colors[pixels.view("<u4")[..., 0] & 0xFFFFFF]
    if not found.all():
        y, x = np.argwhere(found == 0)[0]
        red, green, blue, _ = pixels[y, x]
        raise UserError(
            f"{name}: the color #{red:02x}{green:02x}{blue:02x} at x={x}, y={y} is "
            f"none of those given; {np.sum(found == 0)} pixels have such colors"
        )
    return (found - 1).astype(np.uint8)


def _open(data: bytes, name: str) -> Image.Image:
    image = _identify(data, name)
    try:
        image.load()
    except _UNREADABLE as error:
        raise _unreadable(name, error) from error
    return image


def _identify(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except _UNREADABLE as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> UserError:
    # Pillow's own message for an unknown format holds an address in memory.
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "unknown format" if unknown else error
    return UserError(f"{name}: cannot be decoded as an image: {reason}")
