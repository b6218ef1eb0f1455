"""Augmentation inside the compiled step, without TensorFlow.

Of data sets cached on the device the host sends only indices, and the parameters are
sampled here, from the same distribution as `augmentation.sample_crop`. Of data sets in
files it sends decoded pixels with the parameters that it sampled.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Integer, UInt8

from encnet_jax.data.augmentation import Augmentation, jitter, max_offsets
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import Dataset, Encoded, Example
from encnet_jax.data.fingerprint import fingerprint
from encnet_jax.data.sampler import batch_indices, process_rows
from encnet_jax.data.statistics import Statistics
from encnet_jax.errors import UserError


class ArrayDataset:
    """A data set in memory, of images of one size.

    Args:
        info: Metadata of the data set.
        images: uint8 (n, h, w, 3), RGB 0-255.
        labels: Class indices or `IGNORE_LABEL`, (n, h, w), or (n,) for classification.

    Attributes:
        statistics: Counts of the labels, where `fit` has taken them.
    """

    statistics: Statistics | None = None

    def __init__(
        self,
        info: DatasetInfo,
        images: UInt8[np.ndarray, "n h w 3"],
        labels: Integer[np.ndarray, "n ..."],
    ):
        self.info = info
        self.images = images
        self.labels = labels.astype(np.uint8, copy=False)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        """Returns one example; its name is its index."""
        return Example(self.images[index], self.labels[index], str(index))

    def encoded(self, index: int, *, raw_labels: bool = False) -> Encoded:
        """Raises `TypeError`: arrays have no encoded form."""
        raise TypeError("arrays have no encoded form; index the data set")

    def fingerprint(self) -> str:
        """Returns a digest of the arrays."""
        return fingerprint(self.info, self.images, self.labels)


def load_arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    """Reads a split into memory.

    Returns:
        `images` uint8 (n, h, w, 3) and `labels` uint8 (n, h, w), or (n,) for
        classification.

    Raises:
        UserError: The images differ in size.
    """
    first = dataset[0]
    images = np.empty((len(dataset), *first.image.shape), np.uint8)
    labels = np.empty((len(dataset), *first.labels.shape), np.uint8)
    for index in range(len(dataset)):
        example = dataset[index]
        if example.image.shape != first.image.shape:
            raise UserError(
                f"{example.name} has shape {example.image.shape} and {first.name} "
                f"{first.image.shape}: data.cache_on_device requires images of one size"
            )
        images[index], labels[index] = example.image, example.labels
    return {"images": images, "labels": labels}


def index_batches(
    size: int,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Int32[np.ndarray, " b"]]]:
    """Yields this host's rows of every global batch: `index` and `epoch`.

    Args:
        size: Number of examples.
        batch_size: Size of the global batch.
        seed: Seed of the run.
        start_step: Index of the first batch.
        process_index: Index of this host.
        process_count: Number of hosts.
    """
    rows = process_rows(batch_size, process_index, process_count)
    step = start_step
    while True:
        indices, epochs = batch_indices(seed, size, batch_size, step)
        yield {
            "index": indices[rows].astype(np.int32),
            "epoch": epochs[rows].astype(np.int32),
        }
        step += 1


def augmented_batch(
    arrays: dict[str, jax.Array],
    batch: dict[str, jax.Array],
    seed: jax.Array | int,
    augmentation: Augmentation,
) -> tuple[Float32[Array, "b crop crop 3"], UInt8[Array, "b ..."]]:
    """Gathers and augments the examples of a batch; to be called under `jax.jit`.

    Args:
        arrays: The output of `load_arrays`, on the device.
        batch: `index` and `epoch`, int32 (b,), from `index_batches`.
        seed: Seed of the run.
        augmentation: Settings of the augmentation.

    Returns:
        Images, 0-255 RGB, and labels, (b, crop, crop), or (b,) for classification.
    """
    augment = _scaled_crop if arrays["labels"].ndim == 3 else _padded_crop

    def augment_one(index: jax.Array, epoch: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        key = jax.random.fold_in(key, index)
        image, labels = arrays["images"][index], arrays["labels"][index]
        return augment(image, labels, key, augmentation)

    return jax.vmap(augment_one)(batch["index"], batch["epoch"])


def resized_batch(
    batch: dict[str, jax.Array], augmentation: Augmentation
) -> tuple[Float32[Array, "b crop crop 3"], UInt8[Array, "b crop crop"]]:
    """Resizes a batch of padded source pixels to crops, under `jax.jit`.

    Args:
        batch: The batch that `augment_host.DeviceResizer` filled, with `labels` uint8
            (b, crop, crop): cropped on the host, they are a ninth of the bytes.
        augmentation: The settings by which the batch was sampled.

    Returns:
        Images, 0-255 RGB, and labels.
    """

    def resize_one(padded: jax.Array, *params: jax.Array) -> jax.Array:
        *axes, flipped, colors = params
        rows, columns = (
            _Axis(length, step, start, visible, augmentation.crop_size, size)
            for (start, step, visible, length), size in zip(axes, padded.shape)
        )
        if augmentation.flip:
            columns.flip(flipped)
        return _resample(padded, rows, columns, colors, augmentation)

    keys = "padded", "rows", "columns", "flipped", "colors"
    return jax.vmap(resize_one)(*(batch[key] for key in keys)), batch["labels"]


def _scaled_crop(
    image: UInt8[Array, "h w 3"],
    labels: UInt8[Array, "h w"],
    key: jax.Array,
    augmentation: Augmentation,
) -> tuple[Float32[Array, "crop crop 3"], UInt8[Array, "crop crop"]]:
    """Scales, crops, flips and jitters an image with its label map at random."""
    draws = jax.random.uniform(key, (7,))
    original = jnp.asarray(labels.shape, jnp.float32)
    low, high = augmentation.scale_range
    long_side = jnp.round((low + (high - low) * draws[0]) * augmentation.base_size)
    size = jnp.maximum(jnp.round(original * long_side / original.max()), 1)
    max_start = jnp.maximum(size - augmentation.crop_size, 0)
    start = jnp.minimum(jnp.floor(draws[1:3] * (max_start + 1)), max_start)
    visible, crop = size - start, augmentation.crop_size
    rows, columns = (
        _Axis(length, length / size[i], start[i], visible[i], crop)
        for i, length in enumerate(labels.shape)
    )
    if augmentation.flip:
        columns.flip(draws[3] < 0.5)
    pixels = _resample(image, rows, columns, draws[4:], augmentation)
    nearest = labels[rows.nearest()][:, columns.nearest()]
    inside = rows.inside[:, None] & columns.inside[None, :]
    return pixels, jnp.where(inside, nearest, jnp.uint8(IGNORE_LABEL))


def _padded_crop(
    image: UInt8[Array, "h w 3"],
    label: UInt8[Array, ""],
    key: jax.Array,
    augmentation: Augmentation,
) -> tuple[Float32[Array, "crop crop 3"], UInt8[Array, ""]]:
    """Pads an image with black, then crops, flips and jitters it at random."""
    draws = jax.random.uniform(key, (6,))
    border = (augmentation.pad, augmentation.pad)
    padded = jnp.pad(image, (border, border, (0, 0))).astype(jnp.float32)
    limits = jnp.asarray(max_offsets(augmentation, image.shape))
    start = jnp.minimum((draws[:2] * (limits + 1)).astype(jnp.int32), limits)
    crop = jax.lax.dynamic_slice(
        padded,
        (start[0], start[1], 0),
        (augmentation.crop_size, augmentation.crop_size, 3),
    )
    if augmentation.flip:
        crop = jnp.where(draws[2] < 0.5, crop[:, ::-1], crop)
    if augmentation.color_jitter:
        crop = jnp.clip(jitter(crop, draws[3:], augmentation.color_jitter), 0, 255)
    return crop, label


class _Axis:
    """Source position of each crop pixel along one axis.

    Args:
        length: Source pixels.
        step: Source pixels per crop pixel.
        start: First pixel of the crop, in scaled pixels.
        visible: Crop pixels inside the image.
        crop_size: Crop pixels.
        size: Pixels of the array that holds the source pixels; default: `length`.
    """

    def __init__(
        self,
        length: jax.Array | int,
        step: jax.Array,
        start: jax.Array,
        visible: jax.Array,
        crop_size: int,
        size: int | None = None,
    ):
        self.length = length
        self.size = size or length
        self.step = step
        self.inside = jnp.arange(crop_size) < visible
        self.position = (jnp.arange(crop_size) + start + 0.5) * step

    def flip(self, flipped: Bool[Array, ""]) -> None:
        self.inside = jnp.where(flipped, self.inside[::-1], self.inside)
        self.position = jnp.where(flipped, self.position[::-1], self.position)

    def nearest(self) -> Int32[Array, " crop"]:
        return jnp.minimum(self.position.astype(jnp.int32), self.length - 1)

    def weights(self) -> Float32[Array, "crop size"]:
        """Bilinear weights, antialiased when downscaling; 0 outside the image."""
        pixel = jnp.arange(self.size)
        distance = jnp.abs(self.position[:, None] - 0.5 - pixel)
        weights = jnp.maximum(0.0, 1 - distance / jnp.maximum(self.step, 1.0))
        weights = jnp.where(pixel < self.length, weights, 0.0)
        weights = weights / weights.sum(1, keepdims=True)
        return jnp.where(self.inside[:, None], weights, 0.0)


def _resample(
    image: UInt8[Array, "h w 3"],
    rows: _Axis,
    columns: _Axis,
    colors: Float[Array, "3"],
    augmentation: Augmentation,
) -> Float32[Array, "crop crop 3"]:
    """Returns the jittered crop, 0-255, black outside the image."""
    pixels = image.astype(jnp.float32)
    pixels = jnp.einsum("oh,hwc->owc", rows.weights(), pixels, precision="highest")
    pixels = jnp.einsum("ow,hwc->hoc", columns.weights(), pixels, precision="highest")
    if augmentation.color_jitter:
        pixels = jitter(pixels, colors, augmentation.color_jitter)
        inside = rows.inside[:, None] & columns.inside[None, :]
        pixels = jnp.where(inside[..., None], pixels, 0.0)  # padding stays black
    return jnp.round(jnp.clip(pixels, 0, 255))
