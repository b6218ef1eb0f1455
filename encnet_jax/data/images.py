"""Image files to arrays: whatever people have becomes uint8 RGB."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from encnet_jax.errors import UserError


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
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: cannot be decoded as an image: {error}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: {error}") from error
    return image
