"""Image files to arrays: whatever people have becomes uint8 RGB."""

import io
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from encnet_jax.errors import UserError

_ORIENTATION = 0x0112  # of EXIF; 1 is upright
_UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
)


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes an image file into uint8 (h, w, 3), RGB 0-255.

    Turned upright by its EXIF orientation; grey, palette and CMYK images are converted,
    16-bit grey is scaled to 8 bits, and transparency is laid over white.

    Raises:
        UserError: The bytes are no image, or a truncated one; `name` is in the message.
    """
    return to_rgb_array(_open(data, name))


def to_rgb_array(image: Image.Image) -> np.ndarray:
    """Converts a loaded image as `decode_image` does."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.clip(grey.round(), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return np.asarray(image.convert("RGB"))


def plain_rgb(data: bytes, name: str) -> bytes:
    """Returns an image file that every decoder reads alike.

    That is the file itself if it is an upright JPEG or 8-bit PNG in RGB or grey, and
    else a PNG of what `decode_image` makes of it: rotation by EXIF, transparency, CMYK
    and palettes are not every decoder's.

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
    """Returns height and width of an image file from its header alone."""
    image = _identify(data, name)
    return image.height, image.width


def decode_labels(data: bytes, name: str) -> np.ndarray:
    """Decodes a label file into uint8 (h, w): grey values or palette indices.

    Raises:
        UserError: Not decodable, or an image in colours.
    """
    image = _open(data, name)
    if image.mode not in ("L", "P", "1"):
        raise UserError(
            f"{name}: a label image of mode {image.mode}; allowed are 8-bit grey (L) "
            "and palette (P)"
        )
    return np.asarray(image).astype(np.uint8)


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
    # Of bytes in no known format Pillow names the address in memory.
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "unknown format" if unknown else error
    return UserError(f"{name}: cannot be decoded as an image: {reason}")
