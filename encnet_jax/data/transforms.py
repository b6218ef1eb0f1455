"""One training example on the host: only what its crop needs is decoded, resized once.

`Crops` makes the crop itself. `Canvases` leaves the resize to the device: it decodes
the same pixels into a canvas of fixed size, with the numbers by which
`arrays.resized_batch` makes the same crop.
"""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from encnet_jax.data.augmentation import Augmentation, Choice, Span, jitter
from encnet_jax.data.classes import IGNORE_LABEL
from encnet_jax.data.images import decode_image, to_rgb_array
from encnet_jax.errors import UserError

Batch = dict[str, np.ndarray]

# At the border of a part of a JPEG, colours at half resolution are interpolated without
# the pixels beyond: one pixel differs from the whole. With one to spare:
_MARGIN = 2
_JPEG_START = b"\xff\xd8\xff"
_JPEG_RATIOS = (1, 2, 4, 8)  # by which the decoder can shrink
# PIL decodes whole pictures only, but without a copy of the pixels between decoding and
# resizing; above this share of the picture that is quicker (docs/input.md).
_WORTH_CUTTING = 0.3


class Crops:
    """Batches of finished crops.

    The image is resampled by PIL's bilinear filter, which is as wide as the pixels are
    far apart where it shrinks; the labels are the nearest.
    """

    def __init__(self, how: Augmentation):
        self.how = how

    def empty(self, count: int) -> Batch:
        """Returns black `images` (b, crop, crop, 3), ignored `labels` (b, crop, crop).

        Both are uint8.
        """
        crop = self.how.crop_size
        return {
            "images": np.zeros((count, crop, crop, 3), np.uint8),
            "labels": _no_labels(count, crop),
        }

    def fill(
        self, batch: Batch, row: int, encoded: bytes, labels: np.ndarray, choice: Choice
    ) -> None:
        """Makes a crop in an empty row.

        Args:
            batch: From `empty`.
            row: Of it.
            encoded: The image, JPEG or PNG.
            labels: uint8 (h, w).
            choice: What was drawn.
        """
        image, top, left = _open(encoded, choice)
        image = image.resize(
            (choice.columns.count, choice.rows.count),
            Image.Resampling.BILINEAR,
            box=_box(choice, image, top, left),
        )
        if choice.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        inside = _inside(choice, self.how.crop_size)
        crop = batch["images"][row]
        crop[inside] = np.asarray(image)
        batch["labels"][row][inside] = _pick(labels, choice)
        if self.how.color_jitter:
            pixels = crop.astype(np.float32)
            pixels = jitter(pixels, choice.colors, self.how.color_jitter)
            crop[inside] = np.clip(pixels[inside], 0, 255).round()


class Canvases:
    """Batches of canvases that hold the pixels of which the device makes crops.

    Where these are too many for the canvas and the picture shrinks anyway, they are
    shrunk by a power of two first. The labels are finished here: a ninth of the bytes,
    and they cannot differ from those of `Crops`.

    Args:
        how: The augmentation.
        size: Height and width of the canvases; 0: enough for pictures of any size.
    """

    def __init__(self, how: Augmentation, size: int):
        self.how = how
        # A crop needs less than twice its size, once shrunk by the greatest power of
        # two that the picture shrinks by; then come the ends of the kernel and margins.
        self.size = size or 2 * how.crop_size + 16

    def empty(self, count: int) -> Batch:
        """Returns a batch to fill.

        `canvas` uint8 (b, s, s, 3) holds the pixels in its upper left corner, `labels`
        uint8 (b, crop, crop) is finished. `rows` and `columns`, float32 (b, 4), are
        where the crop starts, in its own pixels; canvas pixels from one to the next;
        how many of the crop are in the picture; and how many of the canvas. `mirrored`
        bool (b,) and `colors` float32 (b, 3) are those of `Choice`.
        """
        return {
            "canvas": np.zeros((count, self.size, self.size, 3), np.uint8),
            "labels": _no_labels(count, self.how.crop_size),
            "rows": np.zeros((count, 4), np.float32),
            "columns": np.zeros((count, 4), np.float32),
            "mirrored": np.zeros(count, bool),
            "colors": np.zeros((count, 3), np.float32),
        }

    def fill(
        self, batch: Batch, row: int, encoded: bytes, labels: np.ndarray, choice: Choice
    ) -> None:
        """Decodes into an empty row; arguments are those of `Crops.fill`.

        Raises:
            UserError: The canvas is too small.
        """
        spans = choice.rows, choice.columns
        shrink = self._shrink(spans)
        parts = [span.needed(_MARGIN * shrink) for span in spans]
        pixels = _decode_part(encoded, *parts, shrink=shrink)
        batch["canvas"][row, : pixels.shape[0], : pixels.shape[1]] = pixels
        for axis, name in enumerate(("rows", "columns")):
            span, first = spans[axis], parts[axis][0] // shrink * shrink
            batch[name][row] = (
                span.start - first / span.step,
                span.step / shrink,
                span.count,
                pixels.shape[axis],
            )
        batch["mirrored"][row] = choice.mirrored
        batch["colors"][row] = choice.colors
        inside = _inside(choice, self.how.crop_size)
        batch["labels"][row][inside] = _pick(labels, choice)

    def _shrink(self, spans: tuple[Span, Span]) -> int:
        """Returns the least power of two by which the pixels needed fit the canvas."""
        shrink, step = 1, max(span.step for span in spans)
        while True:
            parts = [span.needed(_MARGIN * shrink) for span in spans]
            longest = max(-(-end // shrink) - first // shrink for first, end in parts)
            if longest <= self.size:
                return shrink
            if 2 * shrink > step:  # the crop would show that detail is lost
                height, width = (span.length for span in spans)
                raise UserError(
                    f"data.canvas_size={self.size}: a crop of a picture of {width}x"
                    f"{height} pixels needs {longest}; 0 is enough for any picture"
                )
            shrink *= 2


def _open(encoded: bytes, choice: Choice) -> tuple[Image.Image, int, int]:
    """Returns a picture, or a part of it that holds all that a crop needs.

    Returns:
        RGB; the row and the column of the picture where it starts.
    """
    parts = [span.needed(_MARGIN) for span in (choice.rows, choice.columns)]
    if encoded.startswith(_JPEG_START):
        shares = [
            (end - first) / span.length
            for (first, end), span in zip(parts, (choice.rows, choice.columns))
        ]
        if shares[0] * shares[1] < _WORTH_CUTTING:
            pixels = _decode_part(encoded, *parts, shrink=1)
            return Image.fromarray(pixels), parts[0][0], parts[1][0]
    image = Image.open(io.BytesIO(encoded))
    if image.mode != "RGB":
        image = Image.fromarray(to_rgb_array(image))
    return image, 0, 0


def _box(
    choice: Choice, image: Image.Image, top: int, left: int
) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of a crop in a picture or a part of it."""
    ends = []
    for span, first, length in (
        (choice.columns, left, image.width),
        (choice.rows, top, image.height),
    ):
        start = span.start * span.step - first
        end = (span.start + span.count) * span.step - first
        ends.append((start, min(end, length)))  # rounding may carry beyond
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _decode_part(
    encoded: bytes, rows: tuple[int, int], columns: tuple[int, int], *, shrink: int
) -> np.ndarray:
    """Decodes a part of a JPEG or PNG, its start moved up to a multiple of `shrink`."""
    is_jpeg = encoded.startswith(_JPEG_START)
    # JPEG shrinks by some ratios as it is decoded; the rest is left to us.
    ratio = max(r for r in _JPEG_RATIOS if r <= shrink) if is_jpeg else 1
    rest = shrink // ratio
    top, left = rows[0] // shrink * rest, columns[0] // shrink * rest
    bottom, right = -(-rows[1] // ratio), -(-columns[1] // ratio)
    if is_jpeg:
        # The default inverse cosine transform differs from PIL's by up to 23 levels.
        pixels = tf.io.decode_and_crop_jpeg(
            encoded,
            [top, left, bottom - top, right - left],
            channels=3,
            ratio=ratio,
            dct_method="INTEGER_ACCURATE",
        ).numpy()
    else:
        pixels = decode_image(encoded, "image")[top:bottom, left:right]
    return np.asarray(Image.fromarray(pixels).reduce(rest)) if rest > 1 else pixels


def _inside(choice: Choice, crop: int) -> tuple[slice, slice]:
    """Returns where in the crop the picture is: mirrored, its padding is on the left."""
    width = choice.columns.count
    columns = slice(crop - width, crop) if choice.mirrored else slice(width)
    return slice(choice.rows.count), columns


def _no_labels(count: int, crop: int) -> np.ndarray:
    return np.full((count, crop, crop), IGNORE_LABEL, np.uint8)


def _pick(labels: np.ndarray, choice: Choice) -> np.ndarray:
    """Returns the labels of the pixels of the crop that are in the picture."""
    columns = choice.columns.nearest()
    if choice.mirrored:
        columns = columns[::-1]
    return labels[choice.rows.nearest()].take(columns, axis=1)
