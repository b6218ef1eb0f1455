"""Decoding and resizing of crops; only the pixels that a crop needs are decoded.

`HostResizer` resizes the crop on the host. `DeviceResizer` decodes the same pixels into
a padded buffer of fixed size, from which `augment_device.resized_batch` makes the same
crop on the device.
"""

import functools
import io
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import UInt8
from PIL import Image

from encnet_jax.data.augmentation import Augmentation, CropParams, jitter
from encnet_jax.data.band_image import BandImage
from encnet_jax.data.bands import Pixels
from encnet_jax.data.image_io import to_rgb_array
from encnet_jax.data.rotation import max_window
from encnet_jax.errors import UserError, require_package
from encnet_jax.ops.normalize import white_level

Batch = dict[str, np.ndarray]

# With subsampled chroma, upsampling at the edge of a decoded region lacks the pixels
# beyond, so that one pixel differs from decoding the whole image. One more to be safe:
_MARGIN = 2
_JPEG_RATIOS = (1, 2, 4, 8)  # downscaling factors that the JPEG decoder supports
_FORMATS = ("JPEG", "PNG")  # of files that `encoded` of data sets returns
# PIL can only decode whole images, but resizes without copying the decoded pixels: it
# is faster above this share of the image (docs/input.md).
_MAX_REGION_SHARE = 0.3


class EncodedImage(NamedTuple):
    """A JPEG or PNG file: its bytes, and the image PIL opened but did not decode.

    Of an image that came as pixels, the bytes are empty and the image is decoded.
    """

    data: bytes
    image: Image.Image

    @classmethod
    def open(cls, data: bytes | Pixels) -> "EncodedImage | BandImage":
        """Reads the header of a file, or takes pixels as they are."""
        if not isinstance(data, np.ndarray):
            return cls(data, Image.open(io.BytesIO(data), formats=_FORMATS))
        if data.dtype == np.uint16:
            return BandImage(data)
        return cls(b"", Image.fromarray(data))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.height, self.image.width

    @property
    def is_jpeg(self) -> bool:
        """Whether it is a JPEG file, rather than a PNG file or pixels."""
        return self.image.format == "JPEG"

    @property
    def pixels(self) -> UInt8[np.ndarray, "h w 3"]:
        """The whole image in RGB."""
        return np.asarray(self.decode())

    def decode(self) -> Image.Image:
        """Decodes the whole image to RGB."""
        if self.image.mode == "RGB":
            return self.image
        return Image.fromarray(to_rgb_array(self.image))

    def crop(self, params: CropParams) -> UInt8[np.ndarray, "rows columns 3"]:
        """Returns the visible part of a crop, black beyond a rotated image."""
        crop = _rotated_crop if params.angle else _crop
        return np.asarray(crop(self, params))

    def region(
        self, rows: tuple[int, int], columns: tuple[int, int], shrink: int
    ) -> UInt8[np.ndarray, "a b 3"]:
        """Returns a region downscaled by `shrink`; it starts at multiples of that."""
        return _decode_region(self, rows, columns, shrink=shrink)


class HostResizer:
    """Makes batches of finished crops.

    Crops are resampled by PIL's bilinear filter, which antialiases when downscaling.

    Args:
        augmentation: Settings of the augmentation.
        channels: Channels of the images.
        dtype: uint8, or uint16 of bands.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        channels: int = 3,
        dtype: DTypeLike = np.uint8,
    ):
        self.augmentation = augmentation
        self.channels, self.dtype = channels, np.dtype(dtype)

    def empty(self, count: int) -> Batch:
        """Returns a batch to fill: `images` of `dtype` (b, crop, crop, channels)."""
        crop = self.augmentation.crop_size
        return {"images": np.empty((count, crop, crop, self.channels), self.dtype)}

    def fill(
        self,
        batch: Batch,
        row: int,
        encoded: EncodedImage | BandImage,
        params: CropParams,
    ) -> None:
        """Writes a crop into a row of a batch."""
        image = encoded.crop(params)
        if params.flipped:
            image = image[:, ::-1]
        crop = batch["images"][row]
        if min(image.shape[:2]) < self.augmentation.crop_size:
            crop[:] = 0
        crop = crop[params.inside(self.augmentation.crop_size)]
        crop[:] = image if image.dtype == crop.dtype else image.round()
        if self.augmentation.color_jitter:
            pixels = jitter(
                crop.astype(np.float32),
                params.colors,
                self.augmentation.color_jitter,
                params.covered() if params.angle else None,
            )
            crop[:] = np.clip(pixels, 0, white_level(crop.dtype)).round()


class DeviceResizer:
    """Makes batches of padded source pixels that the device resizes to crops.

    Source regions larger than the buffer are first downscaled by a power of two,
    provided that the crop downscales them at least as much.

    Args:
        augmentation: Settings of the augmentation.
        padded_size: Height and width of the buffer of each image; 0: large enough for
            images of any size.
        channels: Channels of the images.
        dtype: uint8, or uint16 of bands.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        padded_size: int,
        channels: int = 3,
        dtype: DTypeLike = np.uint8,
    ):
        self.augmentation = augmentation
        self.channels, self.dtype = channels, np.dtype(dtype)
        # After downscaling by the largest power of two below the step, a crop covers
        # less than twice its size; add the reach of the kernel and the margins.
        window = max_window(augmentation.crop_size, augmentation.rotation)
        self.padded_size = padded_size or 2 * window + 16

    def empty(self, count: int) -> Batch:
        """Returns a batch to fill.

        `padded` of `dtype` (b, s, s, channels) holds the source pixels in its upper
        left corner; the rest is undefined. `rows` and `columns`, float32 (b, 4), hold
        the start of the crop in scaled pixels, the buffer pixels per scaled pixel, the
        number of visible pixels, and the number of source pixels. `flipped` bool (b,)
        and `colors` float32 (b, 3) are those of `CropParams`. With rotation `rows` and
        `columns` are those of the window, and `rotation` float32 (b, 6) is a
        `Rotation`.
        """
        size, rotates = self.padded_size, self.augmentation.rotation
        rotation = {"rotation": np.empty((count, 6), np.float32)} if rotates else {}
        return {
            **rotation,
            "padded": np.empty((count, size, size, self.channels), self.dtype),
            "rows": np.empty((count, 4), np.float32),
            "columns": np.empty((count, 4), np.float32),
            "flipped": np.empty(count, bool),
            "colors": np.empty((count, 3), np.float32),
        }

    def fill(
        self,
        batch: Batch,
        row: int,
        encoded: EncodedImage | BandImage,
        params: CropParams,
    ) -> None:
        """Decodes the source pixels of a crop into a row of a batch.

        Raises:
            UserError: The buffer is too small.
        """
        if self.augmentation.rotation:
            rotation, rows, columns = params.rotated()
            batch["rotation"][row] = rotation
            params = params._replace(rows=rows, columns=columns)
        axes = {"rows": params.rows, "columns": params.columns}
        shrink = self._shrink(params)
        ranges = [axis.source_range(_MARGIN * shrink) for axis in axes.values()]
        pixels = encoded.region(ranges[0], ranges[1], shrink)
        batch["padded"][row, : pixels.shape[0], : pixels.shape[1]] = pixels
        for dim, (key, axis) in enumerate(axes.items()):
            first = ranges[dim][0] // shrink * shrink
            batch[key][row] = (
                axis.start - first / axis.step,
                axis.step / shrink,
                axis.visible,
                pixels.shape[dim],
            )
        batch["flipped"][row] = params.flipped
        batch["colors"][row] = params.colors

    def _shrink(self, params: CropParams) -> int:
        """Returns the least power of two by which the source region fits the buffer."""
        axes = params.rows, params.columns
        shrink, step = 1, max(axis.step for axis in axes)
        while True:
            ranges = [axis.source_range(_MARGIN * shrink) for axis in axes]
            longest = max(-(-end // shrink) - first // shrink for first, end in ranges)
            if longest <= self.padded_size:
                return shrink
            if 2 * shrink > step:  # the crop would visibly lose detail
                height, width = (axis.length for axis in axes)
                raise UserError(
                    f"data.padded_size={self.padded_size}: a crop of an image of "
                    f"{width}x{height} pixels needs {longest}; 0 fits any image"
                )
            shrink *= 2


def _crop(encoded: EncodedImage, params: CropParams) -> Image.Image:
    """Decodes and resizes the visible part of a crop."""
    image, top, left = _whole_or_region(encoded, params)
    return image.resize(
        (params.columns.visible, params.rows.visible),
        Image.Resampling.BILINEAR,
        box=params.box((top, left), (image.height, image.width)),
    )


def _rotated_crop(encoded: EncodedImage, params: CropParams) -> Image.Image:
    """Returns the visible part of a crop of a rotated image, black beyond it."""
    rotation, rows, columns = params.rotated()
    window = _crop(encoded, params._replace(rows=rows, columns=columns))
    size = (params.columns.visible, params.rows.visible)
    pixels = np.empty((size[1], size[0], 3), np.uint8)
    for channel, band in enumerate(window.split()):
        rotated = band.convert("F").transform(  # as bytes, PIL would truncate them
            size, Image.Transform.AFFINE, rotation.matrix, Image.Resampling.BILINEAR
        )
        pixels[..., channel] = np.asarray(rotated).round()
    return Image.fromarray(pixels)


def _whole_or_region(
    encoded: EncodedImage, params: CropParams
) -> tuple[Image.Image, int, int]:
    """Decodes the image, or the region that a crop needs, whichever is faster.

    Returns:
        The RGB image, and the row and column of the whole image where it starts.
    """
    rows, columns = (
        axis.source_range(_MARGIN) for axis in (params.rows, params.columns)
    )
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])
    whole = params.rows.length * params.columns.length
    if encoded.is_jpeg and area < _MAX_REGION_SHARE * whole:
        pixels = _decode_region(encoded, rows, columns, shrink=1)
        return Image.fromarray(pixels), rows[0], columns[0]
    return encoded.decode(), 0, 0


def _decode_region(
    encoded: EncodedImage,
    rows: tuple[int, int],
    columns: tuple[int, int],
    *,
    shrink: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a region downscaled by `shrink`; it starts at multiples of `shrink`."""
    # The JPEG decoder downscales by some ratios; the rest is done here.
    ratio = max(r for r in _JPEG_RATIOS if r <= shrink) if encoded.is_jpeg else 1
    rest = shrink // ratio
    top, left = rows[0] // shrink * rest, columns[0] // shrink * rest
    bottom, right = -(-rows[1] // ratio), -(-columns[1] // ratio)
    if encoded.is_jpeg:
        # TensorFlow's default inverse DCT differs from PIL's by up to 23 levels.
        pixels = (
            _tensorflow()
            .io.decode_and_crop_jpeg(
                encoded.data,
                [top, left, bottom - top, right - left],
                channels=3,
                ratio=ratio,
                dct_method="INTEGER_ACCURATE",
            )
            .numpy()
        )
    else:
        pixels = np.asarray(encoded.decode().crop((left, top, right, bottom)))
    return np.asarray(Image.fromarray(pixels).reduce(rest)) if rest > 1 else pixels


@functools.cache
def _tensorflow() -> Any:
    """Imports TensorFlow: only regions of JPEG files need it."""
    require_package("tensorflow", "train", "training from JPEG files")
    import tensorflow as tf

    # It only reads data; by default it would claim the accelerator's memory.
    tf.config.set_visible_devices([], "GPU")
    return tf
