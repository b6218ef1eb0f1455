"""One example of a data set object, in any of the forms that are read, as arrays."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Real, UInt8
from PIL import Image, ImageOps

from encnet_jax.data.bands import as_bands, pillow_values
from encnet_jax.data.image_io import brightest_color, orientation, to_rgb_array
from encnet_jax.data.stored_form import check_kind, gray_step, stored_tiles
from encnet_jax.errors import UserError

# Keys of examples that are mappings: one of each must be there.
IMAGE_KEYS = ("image", "img", "pixel_values")
LABEL_KEYS = ("label", "labels", "mask", "annotation", "segmentation_mask")

# What to pass beside labels that were masked.
FILLED_LABELS = " and ignore_label=value"

# Formats of which Pillow reads 8 of 16 bits per color.
_DEEP_FORMATS = ("JPEG2000", "PNG", "PPM", "SGI", "TIFF")

# Pillow decodes on first use, and one image not in several threads at once.
_LOCKS = tuple(threading.Lock() for _ in range(64))


@contextlib.contextmanager
def errors_named(name: str) -> Iterator[None]:
    """Turns what an object or Pillow raises into a `UserError` that names the example.

    It is caused by the original, whose traceback leads into the object.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: {type(error).__name__}: {error}") from error


def image_and_label(example: Any, name: str) -> tuple[Any, Any]:
    """Returns the image and the label of a pair or a mapping, as they are.

    Raises:
        UserError: It is neither, or a mapping without either or with several keys.
    """
    if hasattr(example, "_asdict"):  # a named tuple
        example = example._asdict()
    if isinstance(example, Mapping):
        keys = (only_key(example, keys, name) for keys in (IMAGE_KEYS, LABEL_KEYS))
        image, label = (example[key] for key in keys)
        return image, label
    if isinstance(example, tuple | list) and len(example) == 2:
        return example[0], example[1]
    raise UserError(
        f"{name} is {kind_of(example)}; must be an image and a label, or a mapping "
        f"with one of {', '.join(IMAGE_KEYS)} and one of {', '.join(LABEL_KEYS)}"
    )


def only_key(example: Mapping[str, Any], allowed: Sequence[str], name: str) -> str:
    """Returns the key of an example that is allowed; raises unless it is one."""
    found = [key for key in allowed if key in example]
    if len(found) != 1:
        raise UserError(
            f"{name}: keys {', '.join(map(str, example))}; must have exactly one of "
            f"{', '.join(allowed)}"
        )
    return found[0]


def unmasked(values: Any, name: str, remedy: str = "") -> np.ndarray:
    """Returns an array, or nested lists, of any library as an array of NumPy.

    Args:
        values: The array; a masked one may hide nothing.
        name: What error messages call it.
        remedy: What to pass beside the filled array, as the end of the message.

    Raises:
        UserError: Values are masked, which NumPy would bring back as if they were not.
        ValueError: It is no array, such as a list of several shapes.
    """
    parts = values if isinstance(values, list | tuple) else [values]
    if any(map(np.ma.is_masked, parts)):
        raise UserError(f"{name}: masked values; pass .filled(value){remedy}")
    return np.asarray(values)


def rgb_pixels(image: Any, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image as RGB, 0-255.

    Raises:
        UserError: Neither a Pillow image nor an array of a shape that can be one; or
            values of it are masked.
    """
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise UserError(
                f"{name} has mode {image.mode}; convert it to 8 bits, or give "
                "data.channels"
            )
        with _lock(image):
            return to_rgb_array(image, None, name)
    pixels = unmasked(image, name)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    shaped = pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size > 0
    if not shaped or not np.issubdtype(pixels.dtype, np.integer):
        raise UserError(
            f"{name} is {kind_of(image)}; must be a Pillow image, or integers 0 to 255 "
            "of shape (h, w, 3) or (h, w), not normalized; others need data.channels "
            "or data.value_range"
        )
    if pixels.dtype != np.uint8 and not 0 <= pixels.min() <= pixels.max() <= 255:
        raise UserError(
            f"{name}: values {pixels.min()} to {pixels.max()}; allowed are 0 to 255"
        )
    pixels = pixels.astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def orientation_of(value: Any, name: str) -> int:
    """Returns the EXIF orientation of an image or a label, 1 (upright) to 8."""
    if not isinstance(value, Image.Image):
        return 1
    with _lock(value):
        return orientation(value, name)


def brightest_of_unknown(image: Any) -> int:
    """Returns the greatest value of an image that may have had 16 bits, else 255.

    Pillow reads 8 bits per color and, once it has loaded a file, no longer knows how
    many the file held. The images of Hugging Face `datasets` are of this kind.
    """
    unknown = (
        isinstance(image, Image.Image)
        and image.format in _DEEP_FORMATS
        and image.mode in ("RGB", "RGBA", "LA")
        and not getattr(image, "tile", None)
    )
    return brightest_color(image) if unknown else 255


def raw_bands(
    image: Any, channels: int, name: str, value_range: Any = None
) -> Real[np.ndarray, "h w c"]:
    """Returns an image of any number of channels, with the values it has.

    Args:
        image: A Pillow image, or an array (h, w, c), (c, h, w), or (h, w).
        channels: How many there must be.
        name: Its name, for error messages.
        value_range: A pair per channel, that the values are to be scaled from; or None.

    Raises:
        UserError: Neither a Pillow image nor an array, or of other channels, or with
            masked values; or a Pillow image of 8 bits while the range is that of more.
    """
    if not isinstance(image, Image.Image):
        return as_bands(unmasked(image, name), channels, name)
    with _lock(image):
        values = pillow_values(image, name)
    highest = max((high for _, high in value_range or ()), default=0)
    if values.dtype == np.uint8 and highest > 255:
        raise UserError(
            f"{name}: an image of mode {image.mode}, 8 bits, and value_range is up to "
            f"{highest:g}: Pillow keeps 8 bits of 16 per color; pass an array that has "
            "all, or give a range up to 255"
        )
    return as_bands(values, channels, name, channels_last=True)


def label_array(label: Any, name: str) -> np.ndarray:
    """Returns a label as an array; without an axis of length 1 at either end.

    Raises:
        UserError: A Pillow image of 2 or 4 bits, which Pillow expands to 8, or of
            JPEG 2000 in which it changes values; if it is loaded already, nothing
            tells. Or an array of masked values.
    """
    if isinstance(label, Image.Image):
        with _lock(label):
            tiles = stored_tiles(label)
            check_kind(label, tiles, name)
            step = gray_step(tiles)
            if step > 1:
                raise UserError(
                    f"{name}: gray values that Pillow multiplies by {step}: pass an "
                    f"array of the stored values, such as np.asarray(image) // {step}"
                )
            return np.asarray(ImageOps.exif_transpose(label))
    labels = unmasked(label, name, FILLED_LABELS)
    for axis in (0, -1):
        if labels.ndim == 3 and labels.shape[axis] == 1:
            labels = labels.squeeze(axis)
    return labels


def _lock(image: Image.Image) -> threading.Lock:
    return _LOCKS[id(image) // 16 % len(_LOCKS)]


def kind_of(value: Any) -> str:
    """Describes what is in place of an image or a label."""
    if isinstance(value, Image.Image):
        return f"an image of mode {value.mode}"
    kind = type(value).__name__
    if not hasattr(value, "shape"):
        return kind
    return f"{kind} {getattr(value, 'dtype', '')} {tuple(value.shape)}"
