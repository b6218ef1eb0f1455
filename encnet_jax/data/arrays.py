"""Training from images in memory, augmented inside the compiled step: no TensorFlow.

The host sends the numbers of the examples; the pixels stay on the device. Choices are
distributed as those of `transforms.py`.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.classes import IGNORE_LABEL
from encnet_jax.data.order import batch_indices, process_rows
from encnet_jax.data.sources import Source
from encnet_jax.errors import UserError


def load_arrays(source: Source) -> dict[str, np.ndarray]:
    """Reads a split into memory: uint8 `images` (n, h, w, 3), `labels` (n, h, w).

    Raises:
        UserError: The images differ in size.
    """
    first = source.example(0)
    images = np.empty((len(source), *first.image.shape), np.uint8)
    labels = np.empty((len(source), *first.labels.shape), np.uint8)
    for number in range(len(source)):
        example = source.example(number)
        if example.image.shape != first.image.shape:
            raise UserError(
                f"{example.name} has the shape {example.image.shape} and {first.name} "
                f"{first.image.shape}: data.in_memory needs images of one size"
            )
        images[number], labels[number] = example.image, example.labels
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
    """Yields this host's rows of the order of `order.py`: `number`, `epoch`, int32."""
    rows = process_rows(batch_size, process_index, process_count)
    step = start_step
    while True:
        numbers, epochs = batch_indices(seed, size, batch_size, step)
        yield {
            "number": numbers[rows].astype(np.int32),
            "epoch": epochs[rows].astype(np.int32),
        }
        step += 1


def augmented_batch(
    arrays: dict[str, jax.Array],
    batch: dict[str, jax.Array],
    seed: jax.Array | int,
    how: Augmentation,
) -> tuple[jax.Array, jax.Array]:
    """Gathers and augments the examples of a batch; to be called under `jax.jit`.

    Args:
        arrays: What `load_arrays` returned, on the device.
        batch: `number` and `epoch`, int32 (b,), from `index_batches`.
        seed: Of the run.
        how: The augmentation.

    Returns:
        float32 images (b, crop, crop, 3), 0-255, and uint8 labels (b, crop, crop).
    """

    def one(number, epoch):
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        key = jax.random.fold_in(key, number)
        return _augment(arrays["images"][number], arrays["labels"][number], key, how)

    return jax.vmap(one)(batch["number"], batch["epoch"])


def _augment(
    image: jax.Array, labels: jax.Array, key: jax.Array, how: Augmentation
) -> tuple[jax.Array, jax.Array]:
    draws = jax.random.uniform(key, (7,))
    original = jnp.asarray(labels.shape, jnp.float32)
    low, high = how.scale_range
    long_side = jnp.round((low + (high - low) * draws[0]) * how.base_size)
    size = jnp.maximum(jnp.round(original * long_side / original.max()), 1)
    room = jnp.maximum(size - how.crop_size, 0)
    start = jnp.minimum(jnp.floor(draws[1:3] * (room + 1)), room)
    rows, columns = (
        _Axis(labels.shape[i], size[i], start[i], how.crop_size) for i in (0, 1)
    )
    if how.flip:
        columns.mirror(draws[3] < 0.5)
    pixels = image.astype(jnp.float32)
    pixels = jnp.einsum("oh,hwc->owc", rows.weights(), pixels, precision="highest")
    pixels = jnp.einsum("ow,hwc->hoc", columns.weights(), pixels, precision="highest")
    inside = rows.inside[:, None] & columns.inside[None, :]
    if how.color_jitter:
        pixels = _jitter(pixels, draws[4:], how.color_jitter)
        pixels = jnp.where(inside[..., None], pixels, 0.0)  # padding stays black
    picked = labels[rows.nearest()][:, columns.nearest()]
    labels = jnp.where(inside, picked, jnp.uint8(IGNORE_LABEL))
    return jnp.round(jnp.clip(pixels, 0, 255)), labels


class _Axis:
    """Where the pixels of a crop come from, along one axis of the original."""

    def __init__(self, length: int, size: jax.Array, start: jax.Array, crop: int):
        self.length = length
        self.step = length / size
        place = jnp.arange(crop) + start
        self.inside = place < size
        self.position = (place + 0.5) * self.step

    def mirror(self, mirrored: jax.Array) -> None:
        self.inside = jnp.where(mirrored, self.inside[::-1], self.inside)
        self.position = jnp.where(mirrored, self.position[::-1], self.position)

    def nearest(self) -> jax.Array:
        return jnp.minimum(self.position.astype(jnp.int32), self.length - 1)

    def weights(self) -> jax.Array:
        """Triangle kernel (crop, length), wider where the image shrinks; 0 outside."""
        distance = jnp.abs(self.position[:, None] - 0.5 - jnp.arange(self.length))
        weights = jnp.maximum(0.0, 1 - distance / jnp.maximum(self.step, 1.0))
        weights = weights / weights.sum(1, keepdims=True)
        return jnp.where(self.inside[:, None], weights, 0.0)


def _jitter(pixels: jax.Array, draws: jax.Array, strength: float) -> jax.Array:
    factors = 1 + strength * (2 * draws - 1)
    pixels = pixels * factors[0]
    pixels = (pixels - pixels.mean()) * factors[1] + pixels.mean()
    grey = (pixels * jnp.asarray([0.299, 0.587, 0.114])).sum(-1, keepdims=True)
    return (pixels - grey) * factors[2] + grey
