"""Training batches from any data set: parallel, deterministic, resumable.

Threads suffice, as nearly all the work is done in C with the GIL released: TensorFlow
and PIL decode, PIL resizes. Each thread writes its example directly into the arrays of
the batch.
"""

import collections
import functools
import os
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from encnet_jax.data.augment_host import Batch, DeviceResizer, EncodedImage, HostResizer
from encnet_jax.data.augmentation import Augmentation, padded_crop, sample_crop
from encnet_jax.data.class_crop import center_on_class
from encnet_jax.data.dataset_info import IGNORE_LABEL
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.label_map import label_table, map_labels
from encnet_jax.data.pair_checks import check_sizes
from encnet_jax.data.sampler import batch_indices, process_rows

# (batch, row, index of the example, random generator)
FillFn = Callable[[Batch, int, int, np.random.Generator], None]

_MIN_PENDING = 2  # batches; more if the batches are smaller than the number of threads
_AUGMENTATION_STREAM = 1  # separates these draws from the sampler's of the same seed


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
) -> Generator[Batch]:
    """Yields this host's rows of every global batch from `start_step` on, forever.

    To be closed by the caller, after which no thread reads the data set any more. Left
    to garbage collection that can be a deadlock, see `datasets.read_ahead`.

    Args:
        dataset: The data set; each host reads only its own rows.
        augmentation: Settings of the augmentation.
        batch_size: Size of the global batch.
        seed: Seed of the run. Order and augmentation are functions of the seed, the
            epoch and the index of the example.
        start_step: Index of the first batch; earlier batches are not read.
        process_index: Index of this host.
        process_count: Number of hosts.
        padded_size: Leave resizing to the device, in buffers of this height and width
            (0: large enough for any image); None: resize on the host.

    Yields:
        `images` uint8 (b, crop, crop, 3), 0-255 RGB, or uint16 (b, crop, crop, c) of
        bands, and `labels` uint8 (b, crop, crop), or (b,) for classification. With
        `padded_size`, in place of `images` the input of `augment_device.resized_batch`.

    Raises:
        UserError: An example cannot be read; the message names it.
    """
    channels = dataset.info.channels
    dtype = np.uint16 if dataset.info.banded else np.uint8
    resizer = (
        HostResizer(augmentation, channels, dtype)
        if padded_size is None
        else DeviceResizer(augmentation, padded_size, channels, dtype)
    )
    rows = process_rows(batch_size, process_index, process_count)
    count, threads = rows.stop - rows.start, _available_cores()
    if dataset.info.task == "classification":
        fill: FillFn = functools.partial(_fill_class, dataset, augmentation)
        shape: tuple[int, ...] = (count,)
    else:
        fill = functools.partial(_fill_pixels, dataset, augmentation, resizer)
        shape = (count, augmentation.crop_size, augmentation.crop_size)
    load = functools.partial(_load, dataset, fill, seed)
    pending: collections.deque[tuple[Batch, list[Future]]] = collections.deque()
    pool = ThreadPoolExecutor(threads, "encnet-input")
    step = start_step
    try:
        while True:
            while len(pending) < _MIN_PENDING + threads // count:
                indices, epochs = batch_indices(seed, len(dataset), batch_size, step)
                examples = zip(indices[rows].tolist(), epochs[rows].tolist())
                batch = {**resizer.empty(count), "labels": np.empty(shape, np.uint8)}
                futures = [
                    pool.submit(load, batch, row, index, epoch)
                    for row, (index, epoch) in enumerate(examples)
                ]
                pending.append((batch, futures))
                step += 1
            batch, futures = pending.popleft()
            for future in futures:
                future.result()
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
    """Fills a row of a batch with an example."""
    rng = np.random.default_rng((seed, epoch, index, _AUGMENTATION_STREAM))
    try:
        fill(batch, row, index, rng)
    except Exception:
        dataset[index]  # raises a `UserError` that names the file if it is invalid
        raise


def _fill_pixels(
    dataset: Dataset,
    augmentation: Augmentation,
    resizer: HostResizer | DeviceResizer,
    batch: Batch,
    row: int,
    index: int,
    rng: np.random.Generator,
) -> None:
    """Reads an image with a label map, and crops both at random."""
    data, labels = dataset.encoded(index, raw_labels=True)
    encoded = EncodedImage.open(data)
    check_sizes(encoded.size, f"example {index}", labels.shape, "its label")
    params = sample_crop(augmentation, encoded.size, rng)
    if augmentation.class_crop_rate:
        table = label_table(dataset.info)
        params = center_on_class(params, labels, table, augmentation, rng)
    resizer.fill(batch, row, encoded, params)
    crop = batch["labels"][row]
    crop[:] = IGNORE_LABEL
    # Mapped after cropping: fewer pixels.
    visible = map_labels(params.crop_labels(labels), dataset.info, "labels")
    if params.angle:
        visible[~params.covered()] = IGNORE_LABEL
    crop[params.inside(augmentation.crop_size)] = visible


def _fill_class(
    dataset: Dataset,
    augmentation: Augmentation,
    batch: Batch,
    row: int,
    index: int,
    rng: np.random.Generator,
) -> None:
    """Reads a small image with one class, decodes it whole, and crops it at random."""
    data, batch["labels"][row] = dataset.encoded(index)
    image = EncodedImage.open(data).pixels
    batch["images"][row] = padded_crop(image, augmentation, rng)


def _available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
