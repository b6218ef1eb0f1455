"""The pixels of a training example: only what its crop needs is decoded, resized once.

`HostResizer` makes the crop on the host. `DeviceResizer` leaves that to the device: it
decodes the same pixels into a canvas of fixed size, with the numbers by which
`arrays.resized_batch` makes the same crop.
"""

import io
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from encnet_jax.data.augmentation import Augmentation, CropAxis, CropParams, jitter
from encnet_jax.data.image_io import to_rgb_array
from encnet_jax.errors import UserError

Batch = dict[str, np.ndarray]

# At the border of a part of a JPEG, colors at half resolution are interpolated without
# the pixels beyond: one pixel differs from the whole. With one to spare:
_MARGIN = 2
_JPEG_RATIOS = (1, 2, 4, 8)  # by which the decoder can shrink
# PIL decodes whole pictures only, but needs no copy of the pixels between decoding and
# resizing: above this share of the picture it is the quicker (docs/input.md).
_WORTH_CUTTING = 0.3


class EncodedImage(NamedTuple):
    """An image file, JPEG or PNG: its bytes, and as PIL opened it, not yet decoded."""

    encoded: bytes
    image: Image.Image

    @classmethod
    def open(cls, encoded: bytes) -> "EncodedImage":
        """Reads the header."""
        return cls(encoded, Image.open(io.BytesIO(encoded)))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.height, self.image.width

    @property
    def is_jpeg(self) -> bool:
        """Whether it is JPEG rather than PNG."""
        return self.image.format == "JPEG"

    def decode(self) -> Image.Image:
        """Decodes all of it into RGB."""
        if self.image.mode == "RGB":
            return self.image
        return Image.fromarray(to_rgb_array(self.image))


class HostResizer:
    """Batches of finished crops.

    They are resampled by PIL's bilinear filter, which is as wide as the pixels are far
    apart where the picture shrinks.
    """

    def __init__(self, augmentation: Augmentation):
        self.augmentation = augmentation

    def empty(self, count: int) -> Batch:
        """Returns a batch to fill: `images` uint8 (b, crop, crop, 3)."""
        crop = self.augmentation.crop_size
        return {"images": np.empty((count, crop, crop, 3), np.uint8)}

    def fill(
        self, batch: Batch, row: int, picture: EncodedImage, params: CropParams
    ) -> None:
        """Makes a crop in a row of a batch."""
        image, top, left = _whole_or_part(picture, params)
        image = image.resize(
            (params.columns.shown, params.rows.shown),
            Image.Resampling.BILINEAR,
            box=_box(params, image, top, left),
        )
        if params.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crop, inside = batch["images"][row], params.inside(self.augmentation.crop_size)
        if min(image.size) < self.augmentation.crop_size:
            crop[:] = 0
        crop[inside] = np.asarray(image)
        if self.augmentation.color_jitter:
            pixels = crop.astype(np.float32)
            pixels = jitter(pixels, params.colors, self.augmentation.color_jitter)
            crop[inside] = np.clip(pixels[inside], 0, 255).round()


class DeviceResizer:
    """Batches of canvases that hold the pixels of which the device makes crops.

    Where these are too many for the canvas and the picture shrinks anyway, they are
    shrunk by a power of two first.

    Args:
        augmentation: The augmentation.
        size: Height and width of the canvases; 0: enough for pictures of any size.
    """

    def __init__(self, augmentation: Augmentation, size: int):
        self.augmentation = augmentation
        # A crop needs less than twice its size, once shrunk by the greatest power of
        # two that the picture shrinks by; then come the ends of the kernel and margins.
        self.size = size or 2 * augmentation.crop_size + 16

    def empty(self, count: int) -> Batch:
        """Returns a batch to fill.

        `canvas` uint8 (b, s, s, 3) has the pixels in its upper left corner, and beyond
        them anything. `rows` and `columns`, float32 (b, 4), are where the crop starts,
        in its own pixels; canvas pixels from one to the next; how many of the
        crop are in the picture; and how many of the canvas. `mirrored` bool
        (b,) and `colors` float32 (b, 3) are those of `CropParams`.
        """
        return {
            "canvas": np.empty((count, self.size, self.size, 3), np.uint8),
            "rows": np.empty((count, 4), np.float32),
            "columns": np.empty((count, 4), np.float32),
            "mirrored": np.empty(count, bool),
            "colors": np.empty((count, 3), np.float32),
        }

    def fill(
        self, batch: Batch, row: int, picture: EncodedImage, params: CropParams
    ) -> None:
        """Decodes into a row of a batch.

        Raises:
            UserError: The canvas is too small.
        """
        spans = {"rows": params.rows, "columns": params.columns}
        shrink = self._shrink(params)
        parts = [span.needed(_MARGIN * shrink) for span in spans.values()]
        pixels = _decode_part(picture, *parts, shrink=shrink)
        batch["canvas"][row, : pixels.shape[0], : pixels.shape[1]] = pixels
        for axis, (name, span) in enumerate(spans.items()):
            first = parts[axis][0] // shrink * shrink
            batch[name][row] = (
                span.start - first / span.step,
                span.step / shrink,
                span.shown,
                pixels.shape[axis],
            )
        batch["mirrored"][row] = params.mirrored
        batch["colors"][row] = params.colors

    def _shrink(self, params: CropParams) -> int:
        """Returns the least power of two by which the pixels needed fit the canvas."""
        spans = params.rows, params.columns
        shrink, step = 1, max(span.step for span in spans)
        while True:
            parts = [span.needed(_MARGIN * shrink) for span in spans]
            longest = max(-(-end // shrink) - first // shrink for first, end in parts)
            if longest <= self.size:
                return shrink
            if 2 * shrink > step:  # the crop would show that detail is lost
                height, width = (span.length for span in spans)
                raise UserError(
                    f"data.padded_size={self.size}: a crop of a picture of {width}x"
                    f"{height} pixels needs {longest}; 0 is enough for any picture"
                )
            shrink *= 2


def _whole_or_part(
    picture: EncodedImage, params: CropParams
) -> tuple[Image.Image, int, int]:
    """Returns a picture, or a part of it that holds all that a crop needs.

    Returns:
        The image in RGB, and the row and the column of the picture where it starts.
    """
    rows, columns = params.rows.needed(_MARGIN), params.columns.needed(_MARGIN)
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])
    whole = params.rows.length * params.columns.length
    if picture.is_jpeg and area < _WORTH_CUTTING * whole:
        pixels = _decode_part(picture, rows, columns, shrink=1)
        return Image.fromarray(pixels), rows[0], columns[0]
    return picture.decode(), 0, 0


def _box(
    params: CropParams, image: Image.Image, top: int, left: int
) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of a crop in a picture or a part of it."""

    def ends(span: CropAxis, first: int, length: int) -> tuple[float, float]:
        start = span.start * span.step - first
        end = (span.start + span.shown) * span.step - first
        return start, min(end, length)  # beyond it by rounding

    left_end, right_end = ends(params.columns, left, image.width)
    top_end, bottom_end = ends(params.rows, top, image.height)
    return left_end, top_end, right_end, bottom_end


def _decode_part(
    picture: EncodedImage,
    rows: tuple[int, int],
    columns: tuple[int, int],
    *,
    shrink: int,
) -> np.ndarray:
    """Decodes a part of a JPEG or PNG, from the multiples of `shrink` before it on."""
    # JPEG shrinks by some ratios as it is decoded; the rest is left to us.
    ratio = max(r for r in _JPEG_RATIOS if r <= shrink) if picture.is_jpeg else 1
    rest = shrink // ratio
    top, left = rows[0] // shrink * rest, columns[0] // shrink * rest
    bottom, right = -(-rows[1] // ratio), -(-columns[1] // ratio)
    if picture.is_jpeg:
        # The default inverse cosine transform differs from PIL's by up to 23 levels.
        pixels = tf.io.decode_and_crop_jpeg(
            picture.encoded,
            [top, left, bottom - top, right - left],
            channels=3,
            ratio=ratio,
            dct_method="INTEGER_ACCURATE",
        ).numpy()
    else:
        pixels = np.asarray(picture.decode().crop((left, top, right, bottom)))
    return np.asarray(Image.fromarray(pixels).reduce(rest)) if rest > 1 else pixels
