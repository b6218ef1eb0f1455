"""Small images for pages: as data URIs, and label maps as text."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from encnet_jax.data.dataset_info import IGNORE_LABEL
from encnet_jax.visualize.overlay import Color, palette_image

SMALL = 128  # pixels of the long side, also of the predictions that are kept
LARGE = 256
# Of error maps: right, wrong, not labeled.
ERROR_COLORS = ((222, 222, 222), (200, 0, 0), (0, 0, 0))


def small_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns a height and width scaled to a long side of at most `side` pixels."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def shrink_labels(
    labels: UInt8[np.ndarray, "h w"], side: int = SMALL
) -> UInt8[np.ndarray, "H W"]:
    """Returns labels at the size of a thumbnail, the nearest pixel for each."""
    return resample_labels(labels, small_size(labels.shape, side))


def labels_to_text(labels: UInt8[np.ndarray, "h w"]) -> str:
    """Returns labels at the size of a thumbnail as text: a PNG file in base 64."""
    return _base64(Image.fromarray(shrink_labels(labels)), "PNG", compress_level=3)


def labels_from_text(text: str) -> UInt8[np.ndarray, "h w"]:
    """Returns the labels that `labels_to_text` stored.

    Raises:
        ValueError: The text is damaged: not base 64.
        OSError: Not a PNG file, or a truncated one.
        SyntaxError: A damaged PNG file.
    """
    file = io.BytesIO(base64.b64decode(text, validate=True))
    with Image.open(file, formats=["PNG"]) as image:
        return np.asarray(image.convert("L"))


def image_uri(image: UInt8[np.ndarray, "h w 3"], side: int = SMALL) -> str:
    """Returns a JPEG file of the image at the size of a thumbnail as a data URI."""
    height, width = small_size(image.shape[:2], side)
    thumbnail = Image.fromarray(image)
    thumbnail = thumbnail.resize((width, height), Image.Resampling.BOX)
    return f"data:image/jpeg;base64,{_base64(thumbnail, 'JPEG', quality=78)}"


def labels_uri(
    labels: UInt8[np.ndarray, "h w"], colors: Sequence[Color], side: int = SMALL
) -> str:
    """Returns labels in the colors of their classes as a data URI, a palette PNG."""
    image = palette_image(shrink_labels(labels, side), colors)
    return f"data:image/png;base64,{_base64(image, 'PNG', optimize=True)}"


def errors_uri(
    labels: UInt8[np.ndarray, "h w"],
    predictions: UInt8[np.ndarray, "h w"],
    side: int = SMALL,
) -> str:
    """Returns where predictions are wrong as a data URI; labels may be larger."""
    small = shrink_labels(predictions, side)
    truth = resample_labels(labels, small.shape)
    errors = np.where(truth == small, 0, 1)
    errors = np.where(truth == IGNORE_LABEL, 2, errors)
    return labels_uri(errors.astype(np.uint8), ERROR_COLORS, side)


def resample_labels(
    labels: UInt8[np.ndarray, "h w"], size: Sequence[int]
) -> UInt8[np.ndarray, "H W"]:
    """Returns labels at another size, that of a kept prediction, the nearest pixel."""
    rows, columns = (
        (2 * np.arange(small) + 1) * full // (2 * small)
        for full, small in zip(labels.shape, size)
    )
    return labels[rows[:, None], columns]


def _base64(image: Image.Image, kind: str, **options: int | bool) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode("ascii")
