"""Images with the statistics of photographs, stored like prepared data sets."""

import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import TFRecordDataset
from encnet_jax.data.label_map import label_table


class CountingDataset(TFRecordDataset):
    """A data set that records which examples were read."""

    def __init__(self, info: DatasetInfo, path: Path):
        split = SimpleNamespace(filepaths=[path])
        builder: Any = SimpleNamespace(info=SimpleNamespace(splits={"all": split}))
        super().__init__(info, builder, "all")
        self.started: list[int] = []

    def encoded(
        self, index: int, *, raw_labels: bool = False
    ) -> tuple[bytes, np.ndarray]:
        """Reads an example."""
        self.started.append(index)
        return super().encoded(index, raw_labels=raw_labels)


def make_dataset(
    path: Path, info: DatasetInfo, size: tuple[int, int], count: int, **stored: Any
) -> CountingDataset:
    """Writes random images with labels, and opens them.

    Args:
        path: File to write.
        info: The data set whose labels are used.
        size: Height and width.
        count: Number of images.
        **stored: Options by which PIL saves the images; labels are PNG.
    """
    import tensorflow as tf

    rng = np.random.default_rng(0)
    values = [v for v, known in enumerate(label_table(info)[:255]) if known >= 0]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for index in range(count):
            image, labels = draw(rng, size, values)
            fields = {
                "image": encode(image, **stored),
                "label": encode(labels, format="PNG"),
                "id": str(index).encode(),
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
    """Returns an image as smooth as photographs, and labels in about a dozen blobs.

    Args:
        rng: Source of randomness.
        size: Height and width.
        values: Labels to choose from.
    """
    channels = np.array([[1, 0.25, 0.1], [1, 0, -0.1], [1, -0.2, 0.15]])
    image = 118 + 50 * np.einsum("ij,jhw->hwi", channels, noise(rng, size, 1.8))
    blobs = rng.integers(6, 18)
    centers = rng.uniform(0, 1, (blobs, 2)) * size
    rows, columns = np.mgrid[: size[0], : size[1]] + 10 * noise(rng, size, 1.6)[:2]
    distances = [np.hypot(rows - y, columns - x) for y, x in centers]
    labels = rng.choice(values, blobs)[np.argmin(distances, axis=0)]
    return np.clip(image, 0, 255).astype(np.uint8), labels.astype(np.uint8)


def noise(
    rng: np.random.Generator, size: tuple[int, int], exponent: float
) -> np.ndarray:
    """Returns noise (3, h, w) of unit variance with spectrum 1 / frequency^exponent."""
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    shape = (3, *frequency.shape)
    spectrum = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    values = np.fft.irfft2(spectrum / frequency**exponent, size)
    return values / values.std((1, 2), keepdims=True)


def encode(array: np.ndarray, **settings: Any) -> bytes:
    """Encodes an array as an image file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, **settings)
    return file.getvalue()
