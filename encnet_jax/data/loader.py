"""Training batches from files and records: parallel, deterministic, resumed by index.

Threads do the work, since nearly all of it is done in C without Python's lock: decoding
by TensorFlow and PIL, resizing by PIL. Each writes its example into the arrays of the
batch, which nothing copies again.
"""

import collections
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from encnet_jax.data.augment_host import Batch, DeviceResizer, EncodedImage, HostResizer
from encnet_jax.data.augmentation import Augmentation, padded_crop, sample_crop
from encnet_jax.data.dataset_info import IGNORE_LABEL
from encnet_jax.data.datasets import Dataset, map_labels
from encnet_jax.data.sampler import batch_indices, process_rows
from encnet_jax.errors import UserError

# (batch, row, index of the example, draws)
FillFn = Callable[[Batch, int, int, np.random.Generator], None]

_AHEAD = 2  # batches in the making; more where they are smaller than the threads many
_DRAWS = 1  # tells these draws from the order's, which are by the same seed


def train_batches(
    dataset: Dataset,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    padded_size: int | None = None,
) -> Iterator[Batch]:
    """Yields this host's rows of every global batch from `start_step` on, forever.

    Args:
        dataset: Where examples are read; each host reads only its rows.
        augmentation: The augmentation.
        batch_size: Size of the global batch.
        seed: Of the run; order and augmentation are functions of it, the epoch and the
            index of the example.
        start_step: The first batch: nothing before it is read.
        process_index: Of this host.
        process_count: Number of hosts.
        padded_size: Leave the resize to the device, which gets canvases of this height
            and width; 0: as large as any picture can need.

    Yields:
        `images` uint8 (b, crop, crop, 3) and `labels` uint8 (b, crop, crop), or (b,)
        for images in classes; with `padded_size` the batch of which
        `arrays.resized_batch` makes these.

    Raises:
        UserError: An example cannot be read; names it.
    """
    # TensorFlow only feeds; by default it would also take the accelerator's memory.
    tf.config.set_visible_devices([], "GPU")
    maker = (
        HostResizer(augmentation)
        if padded_size is None
        else DeviceResizer(augmentation, padded_size)
    )
    rows = process_rows(batch_size, process_index, process_count)
    count, threads = rows.stop - rows.start, _cores()
    if dataset.info.task == "classification":
        fill: FillFn = functools.partial(_fill_class, dataset, augmentation)
        shape: tuple[int, ...] = (count,)
    else:
        fill = functools.partial(_fill_pixels, dataset, augmentation, maker)
        shape = (count, augmentation.crop_size, augmentation.crop_size)
    load = functools.partial(_load, dataset, fill, seed)
    making: collections.deque[tuple[Batch, list[Future]]] = collections.deque()
    pool = ThreadPoolExecutor(threads, "encnet-input")
    step = start_step
    try:
        while True:
            while len(making) < _AHEAD + threads // count:
                indices, epochs = batch_indices(seed, len(dataset), batch_size, step)
                examples = zip(indices[rows].tolist(), epochs[rows].tolist())
                batch = {**maker.empty(count), "labels": np.empty(shape, np.uint8)}
                tasks = [
                    pool.submit(load, batch, row, index, epoch)
                    for row, (index, epoch) in enumerate(examples)
                ]
                making.append((batch, tasks))
                step += 1
            batch, tasks = making.popleft()
            for task in tasks:
                task.result()
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _load(
    dataset: Dataset,
    fill: FillFn,
    seed: int,
    batch: Batch,
    row: int,
    index: int,
    epoch: int,
) -> None:
    """Has an example made in a row of a batch."""
    rng = np.random.default_rng((seed, epoch, index, _DRAWS))
    try:
        fill(batch, row, index, rng)
    except Exception:
        dataset[index]  # raises, with the name of the file, if that is bad
        raise


def _fill_pixels(
    dataset: Dataset,
    augmentation: Augmentation,
    maker: HostResizer | DeviceResizer,
    batch: Batch,
    row: int,
    index: int,
    rng: np.random.Generator,
) -> None:
    """Reads an example, draws its crop, and has it made."""
    encoded, labels = dataset.encoded(index, raw_labels=True)
    picture = EncodedImage.open(encoded)
    height, width = picture.size
    if labels.shape != (height, width):
        raise UserError(
            f"example {index}: the image is {width}x{height} pixels and its "
            f"labels are {labels.shape[1]}x{labels.shape[0]}: must be equal"
        )
    params = sample_crop(augmentation, picture.size, rng)
    maker.fill(batch, row, picture, params)
    crop = batch["labels"][row]
    crop[:] = IGNORE_LABEL
    picked = map_labels(params.pick(labels), dataset.info, "labels")
    crop[params.inside(augmentation.crop_size)] = picked


def _fill_class(
    dataset: Dataset,
    augmentation: Augmentation,
    batch: Batch,
    row: int,
    index: int,
    rng: np.random.Generator,
) -> None:
    """Reads an image in a class and crops it; it is small, and decoded whole."""
    encoded, batch["labels"][row] = dataset.encoded(index)
    image = np.asarray(EncodedImage.open(encoded).decode())
    batch["images"][row] = padded_crop(image, augmentation, rng)


def _cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
