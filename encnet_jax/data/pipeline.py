"""Training batches by tf.data: parallel, deterministic, resumed by number."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.order import batch_indices, process_rows
from encnet_jax.data.sources import Source
from encnet_jax.data.transforms import augment

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source,
    how: Augmentation,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
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

    Yields:
        `images` uint8 (b, crop, crop, 3) and `labels` uint8 (b, crop, crop).

    Raises:
        UserError: An example cannot be read; names it.
    """
    # TensorFlow only feeds; by default it would also take the accelerator's memory.
    tf.config.set_visible_devices([], "GPU")
    rows = process_rows(batch_size, process_index, process_count)

    def numbers() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        step = start_step
        while True:
            chosen, epochs = batch_indices(seed, len(source), batch_size, step)
            yield from zip(chosen[rows], epochs[rows])
            step += 1

    scalar = tf.TensorSpec((), tf.int64)
    dataset = tf.data.Dataset.from_generator(numbers, output_signature=(scalar, scalar))
    dataset = dataset.map(
        lambda number, epoch: _load(source, how, seed, number, epoch),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    dataset = dataset.batch(rows.stop - rows.start, drop_remainder=True)
    dataset = dataset.prefetch(2)
    step = start_step
    iterator = dataset.as_numpy_iterator()
    while True:
        try:
            batch = next(iterator)
        except tf.errors.OpError:
            _find_culprit(source, batch_indices(seed, len(source), batch_size, step)[0])
            raise
        yield batch
        step += 1


def _load(
    source: Source, how: Augmentation, seed: int, number: tf.Tensor, epoch: tf.Tensor
) -> dict[str, tf.Tensor]:
    encoded, labels = tf.numpy_function(
        lambda n: source.encoded(int(n)), [number], (tf.string, tf.uint8)
    )
    labels = tf.ensure_shape(labels, (None, None))
    image = decode(tf.ensure_shape(encoded, ()))
    tf.debugging.assert_equal(tf.shape(image)[:2], tf.shape(labels))
    key = tf.random.experimental.stateless_fold_in([seed, 0], epoch)
    key = tf.cast(tf.random.experimental.stateless_fold_in(key, number), tf.int32)
    image, labels = augment(image, labels, key, how)
    image.set_shape((how.crop_size, how.crop_size, 3))
    labels.set_shape((how.crop_size, how.crop_size))
    return {"images": image, "labels": labels}


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG or PNG bytes to uint8 (h, w, 3), as PIL does to the last digit.

    The default inverse cosine transform of JPEG would differ from PIL's by up to 23
    levels.
    """
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, 3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_png(encoded, 3),
    )
    return tf.ensure_shape(image, (None, None, 3))


def _find_culprit(source: Source, numbers: np.ndarray) -> None:
    """Raises the `UserError` of the example that tf.data stopped at, if it has one."""
    for number in numbers:
        source.example(int(number))
