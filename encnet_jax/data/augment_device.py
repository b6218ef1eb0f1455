"""Augmentation inside the compiled step: no TensorFlow.

Of images in memory the host sends only indices, the pixels stay on the device, and the
choices are drawn here, distributed as those of `augmentation.sample_crop`. Of images on
disk it sends the pixels that it decoded and the choices that it drew.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from encnet_jax.data.augmentation import Augmentation, jitter, room_in_border
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import Dataset, Example
from encnet_jax.data.sampler import batch_indices, process_rows
from encnet_jax.errors import UserError


class ArrayDataset:
    """Images of one size that are in memory already.

    Args:
        info: What is known of them.
        images: uint8 (n, h, w, 3).
        labels: Classes or `IGNORE_LABEL`, (n, h, w); or (n,), classes of whole images.
    """

    def __init__(self, info: DatasetInfo, images: np.ndarray, labels: np.ndarray):
        self.info = info
        self.images = images
        self.labels = labels.astype(np.uint8)

    def __len__(self) -> int:
        """Returns the index of images."""
        return len(self.images)

    def encoded(
        self, index: int, *, raw_labels: bool = False
    ) -> tuple[bytes, np.ndarray]:
        """Arrays have no encoded form."""
        raise TypeError("arrays are not encoded; read them with `example`")

    def __getitem__(self, index: int) -> Example:
        """Returns one image; its name is its index."""
        return Example(self.images[index], self.labels[index], str(index))


def load_arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    """Reads a split into memory: uint8 `images` (n, h, w, 3), `labels` (n, h, w).

    Of images in classes the labels are (n,).

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
                f"{example.name} has the shape {example.image.shape} and {first.name} "
                f"{first.image.shape}: data.cache_on_device needs images of one size"
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
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this host's rows of the order of `order.py`: `index`, `epoch`, int32."""
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
) -> tuple[jax.Array, jax.Array]:
    """Gathers and augments the examples of a batch; to be called under `jax.jit`.

    Args:
        arrays: What `load_arrays` returned, on the device.
        batch: `index` and `epoch`, int32 (b,), from `index_batches`.
        seed: Of the run.
        augmentation: The augmentation.

    Returns:
        float32 images (b, crop, crop, 3), 0-255, and uint8 labels (b, crop, crop), or
        (b,) for images in classes.
    """
    augment = _augment if arrays["labels"].ndim == 3 else _padded_crop

    def one(index, epoch):
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        key = jax.random.fold_in(key, index)
        return augment(
            arrays["images"][index], arrays["labels"][index], key, augmentation
        )

    return jax.vmap(one)(batch["index"], batch["epoch"])


def resized_batch(
    batch: dict[str, jax.Array], augmentation: Augmentation
) -> tuple[jax.Array, jax.Array]:
    """Makes the crops of a batch of canvases; to be called under `jax.jit`.

    Args:
        batch: What `transforms.DeviceResizer` filled, and `labels` uint8 (b, crop,
            crop): the host has picked them, a ninth of the bytes of those of a canvas.
        augmentation: What it was drawn by.

    Returns:
        As `augmented_batch`.
    """

    def one(canvas, places, mirrored, colors):
        rows, columns = (
            _Axis(length, step, start, count, augmentation.crop_size, size)
            for (start, step, count, length), size in zip(places, canvas.shape)
        )
        if augmentation.flip:
            columns.mirror(mirrored)
        return _resized(canvas, rows, columns, colors, augmentation)

    places = batch["rows"], batch["columns"]
    images = jax.vmap(one)(batch["canvas"], places, batch["mirrored"], batch["colors"])
    return images, batch["labels"]


def _augment(
    image: jax.Array, labels: jax.Array, key: jax.Array, augmentation: Augmentation
) -> tuple[jax.Array, jax.Array]:
    draws = jax.random.uniform(key, (7,))
    original = jnp.asarray(labels.shape, jnp.float32)
    low, high = augmentation.scale_range
    long_side = jnp.round((low + (high - low) * draws[0]) * augmentation.base_size)
    size = jnp.maximum(jnp.round(original * long_side / original.max()), 1)
    room = jnp.maximum(size - augmentation.crop_size, 0)
    start = jnp.minimum(jnp.floor(draws[1:3] * (room + 1)), room)
    rows, columns = (
        _Axis(
            length,
            length / size[i],
            start[i],
            size[i] - start[i],
            augmentation.crop_size,
        )
        for i, length in enumerate(labels.shape)
    )
    if augmentation.flip:
        columns.mirror(draws[3] < 0.5)
    pixels = _resized(image, rows, columns, draws[4:], augmentation)
    picked = labels[rows.nearest()][:, columns.nearest()]
    inside = rows.inside[:, None] & columns.inside[None, :]
    return pixels, jnp.where(inside, picked, jnp.uint8(IGNORE_LABEL))


def _padded_crop(
    image: jax.Array, label: jax.Array, key: jax.Array, augmentation: Augmentation
) -> tuple[jax.Array, jax.Array]:
    """Takes a crop at random out of an image with a black border, and mirrors it."""
    draws = jax.random.uniform(key, (6,))
    border = (augmentation.pad, augmentation.pad)
    padded = jnp.pad(image, (border, border, (0, 0))).astype(jnp.float32)
    room = jnp.asarray(room_in_border(augmentation, image.shape))
    start = jnp.minimum((draws[:2] * (room + 1)).astype(jnp.int32), room)
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
    """Where the pixels of a crop come from, along one axis of the picture.

    Args:
        length: Pixels of the picture.
        step: Of those, from one pixel of the crop to the next.
        start: Where the crop starts, in its own pixels.
        count: How many of its pixels are in the picture.
        crop: How many it has.
        size: Pixels of the array that the picture is in; default: `length`.
    """

    def __init__(self, length, step, start, count, crop: int, size: int | None = None):
        self.length = length
        self.size = size or length
        self.step = step
        self.inside = jnp.arange(crop) < count
        self.position = (jnp.arange(crop) + start + 0.5) * step

    def mirror(self, mirrored: jax.Array) -> None:
        self.inside = jnp.where(mirrored, self.inside[::-1], self.inside)
        self.position = jnp.where(mirrored, self.position[::-1], self.position)

    def nearest(self) -> jax.Array:
        return jnp.minimum(self.position.astype(jnp.int32), self.length - 1)

    def weights(self) -> jax.Array:
        """Triangle kernel (crop, size), wider where the image shrinks; 0 outside."""
        pixel = jnp.arange(self.size)
        distance = jnp.abs(self.position[:, None] - 0.5 - pixel)
        weights = jnp.maximum(0.0, 1 - distance / jnp.maximum(self.step, 1.0))
        weights = jnp.where(pixel < self.length, weights, 0.0)
        weights = weights / weights.sum(1, keepdims=True)
        return jnp.where(self.inside[:, None], weights, 0.0)


def _resized(
    image: jax.Array,
    rows: _Axis,
    columns: _Axis,
    colors: jax.Array,
    augmentation: Augmentation,
) -> jax.Array:
    """Returns the crop as float32, black outside the picture."""
    pixels = image.astype(jnp.float32)
    pixels = jnp.einsum("oh,hwc->owc", rows.weights(), pixels, precision="highest")
    pixels = jnp.einsum("ow,hwc->hoc", columns.weights(), pixels, precision="highest")
    if augmentation.color_jitter:
        pixels = jitter(pixels, colors, augmentation.color_jitter)
        inside = rows.inside[:, None] & columns.inside[None, :]
        pixels = jnp.where(inside[..., None], pixels, 0.0)  # padding stays black
    return jnp.round(jnp.clip(pixels, 0, 255))
