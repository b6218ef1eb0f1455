"""Pictures with the statistics of photographs, stored as prepared data sets are."""

import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import TFRecordDataset, label_table


class CountingDataset(TFRecordDataset):
    """Records that know how many examples were read."""

    def __init__(self, info: DatasetInfo, path: Path):
        split = SimpleNamespace(filepaths=[path])
        builder = SimpleNamespace(info=SimpleNamespace(splits={"all": split}))
        super().__init__(info, builder, "all")
        self.started: list[int] = []

    def encoded(
        self, number: int, *, raw_labels: bool = False
    ) -> tuple[bytes, np.ndarray]:
        """Reads an example."""
        self.started.append(number)
        return super().encoded(number, raw_labels=raw_labels)


def make_dataset(
    path: Path, info: DatasetInfo, size: tuple[int, int], count: int, **stored: Any
) -> CountingDataset:
    """Writes so many pictures and opens them.

    Args:
        path: File to write.
        info: The data set whose labels they have.
        size: Height and width.
        count: How many.
        **stored: How PIL is to save the images; labels are PNG.
    """
    import tensorflow as tf

    rng = np.random.default_rng(0)
    values = [v for v, known in enumerate(label_table(info)[:255]) if known >= 0]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(count):
            image, labels = draw(rng, size, values)
            fields = {
                "image": encode(image, **stored),
                "label": encode(labels, format="PNG"),
                "id": str(number).encode(),
            }
            features = {
                key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for key, value in fields.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    return CountingDataset(info, path)


def draw(
    rng: np.random.Generator, size: tuple[int, int], values: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture as smooth as photographs, and labels in a dozen ragged blobs.

    Args:
        rng: Of the draws.
        size: Height and width.
        values: The labels that there are.
    """
    channels = np.array([[1, 0.25, 0.1], [1, 0, -0.1], [1, -0.2, 0.15]])
    image = 118 + 50 * np.einsum("ij,jhw->hwi", channels, noise(rng, size, 1.8))
    blobs = rng.integers(6, 18)
    centers = rng.uniform(0, 1, (blobs, 2)) * size
    rows, columns = np.mgrid[: size[0], : size[1]] + 10 * noise(rng, size, 1.6)[:2]
    distances = [np.hypot(rows - y, columns - x) for y, x in centers]
    labels = rng.choice(values, blobs)[np.argmin(distances, axis=0)]
    return np.clip(image, 0, 255).astype(np.uint8), labels.astype(np.uint8)


def noise(rng: np.random.Generator, size: tuple[int, int], fall: float) -> np.ndarray:
    """Returns noise (3, h, w) of deviation 1 whose amplitude falls with frequency."""
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    shape = (3, *frequency.shape)
    spectrum = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    values = np.fft.irfft2(spectrum / frequency**fall, size)
    return values / values.std((1, 2), keepdims=True)


def encode(array: np.ndarray, **settings: Any) -> bytes:
    """Returns an image file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, **settings)
    return file.getvalue()
