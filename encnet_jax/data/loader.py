"""Training batches from files and records: parallel, deterministic, resumed by number.

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

from encnet_jax.data.augment_host import Batch, DeviceResizer, HostResizer, Picture
from encnet_jax.data.augmentation import Augmentation, choose, padded_crop
from encnet_jax.data.dataset_info import IGNORE_LABEL
from encnet_jax.data.datasets import Source, map_labels
from encnet_jax.data.sampler import batch_indices, process_rows
from encnet_jax.errors import UserError

# (batch, row, number of the example, draws)
FillFn = Callable[[Batch, int, int, np.random.Generator], None]

_AHEAD = 2  # batches in the making; more where they are smaller than the threads many
_DRAWS = 1  # tells these draws from the order's, which are by the same seed


def train_batches(
    source: Source,
    how: Augmentation,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    canvas_size: int | None = None,
) -> Iterator[Batch]:
    """Yields this host's rows of every global batch from `start_step` on, forever.

    Args:
        source: Where examples are read; each host reads only its rows.
        how: The augmentation.
        batch_size: Size of the global batch.
        seed: Of the run; order and augmentation are functions of it, the epoch and the
            number of the example.
        start_step: The first batch: nothing before it is read.
        process_index: Of this host.
        process_count: Number of hosts.
        canvas_size: Leave the resize to the device, which gets canvases of this height
            and width; 0: as large as any picture can need.

    Yields:
        `images` uint8 (b, crop, crop, 3) and `labels` uint8 (b, crop, crop), or (b,)
        for images in classes; with `canvas_size` the batch of which
        `arrays.resized_batch` makes these.

    Raises:
        UserError: An example cannot be read; names it.
    """
    # TensorFlow only feeds; by default it would also take the accelerator's memory.
    tf.config.set_visible_devices([], "GPU")
    maker = HostResizer(how) if canvas_size is None else DeviceResizer(how, canvas_size)
    rows = process_rows(batch_size, process_index, process_count)
    count, threads = rows.stop - rows.start, _cores()
    if source.info.task == "classification":
        fill: FillFn = functools.partial(_fill_class, source, how)
        shape: tuple[int, ...] = (count,)
    else:
        fill = functools.partial(_fill_pixels, source, how, maker)
        shape = (count, how.crop_size, how.crop_size)
    load = functools.partial(_load, source, fill, seed)
    making: collections.deque[tuple[Batch, list[Future]]] = collections.deque()
    pool = ThreadPoolExecutor(threads, "encnet-input")
    step = start_step
    try:
        while True:
            while len(making) < _AHEAD + threads // count:
                numbers, epochs = batch_indices(seed, len(source), batch_size, step)
                examples = zip(numbers[rows].tolist(), epochs[rows].tolist())
                batch = {**maker.empty(count), "labels": np.empty(shape, np.uint8)}
                tasks = [
                    pool.submit(load, batch, row, number, epoch)
                    for row, (number, epoch) in enumerate(examples)
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
    source: Source,
    fill: FillFn,
    seed: int,
    batch: Batch,
    row: int,
    number: int,
    epoch: int,
) -> None:
    """Has an example made in a row of a batch."""
    rng = np.random.default_rng((seed, epoch, number, _DRAWS))
    try:
        fill(batch, row, number, rng)
    except Exception:
        source.example(number)  # raises, with the name of the file, if that is bad
        raise


def _fill_pixels(
    source: Source,
    how: Augmentation,
    maker: HostResizer | DeviceResizer,
    batch: Batch,
    row: int,
    number: int,
    rng: np.random.Generator,
) -> None:
    """Reads an example, draws its crop, and has it made."""
    encoded, labels = source.encoded(number, published=True)
    picture = Picture.open(encoded)
    height, width = picture.size
    if labels.shape != (height, width):
        raise UserError(
            f"example {number}: the image is {width}x{height} pixels and its "
            f"labels are {labels.shape[1]}x{labels.shape[0]}: must be equal"
        )
    choice = choose(how, picture.size, rng)
    maker.fill(batch, row, picture, choice)
    crop = batch["labels"][row]
    crop[:] = IGNORE_LABEL
    picked = map_labels(choice.pick(labels), source.info, "labels")
    crop[choice.inside(how.crop_size)] = picked


def _fill_class(
    source: Source,
    how: Augmentation,
    batch: Batch,
    row: int,
    number: int,
    rng: np.random.Generator,
) -> None:
    """Reads an image in a class and crops it; it is small, and decoded whole."""
    encoded, batch["labels"][row] = source.encoded(number)
    image = np.asarray(Picture.open(encoded).decode())
    batch["images"][row] = padded_crop(image, how, rng)


def _cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
