"""Data sets in memory: given as arrays, or read into them."""

import numpy as np
from jaxtyping import Integer, Real

from encnet_jax.data.bands import as_bands, scale_bands
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Dataset, Encoded, Example, checked, read_ahead
from encnet_jax.data.fingerprint import fingerprint
from encnet_jax.data.label_map import unmap_labels
from encnet_jax.data.statistics import Statistics
from encnet_jax.errors import UserError


class ArrayDataset:
    """A data set in memory, of images of one size.

    Args:
        info: Metadata of the data set.
        images: uint8 (n, h, w, 3), RGB 0-255; or (n, h, w, c), bands as stored, where
            `info` says so.
        labels: Class indices or `IGNORE_LABEL`, (n, h, w), or (n,) for classification.

    Attributes:
        statistics: Counts of the labels, where `fit` has taken them.
    """

    statistics: Statistics | None = None

    def __init__(
        self,
        info: DatasetInfo,
        images: Real[np.ndarray, "n h w c"],
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
        image, info = self.images[index], self.info
        if info.banded:
            image = scale_bands(image, info.value_range, f"images[{index}]")
        return Example(image, np.asarray(self.labels[index]), str(index))

    def bands(self, index: int) -> Real[np.ndarray, "h w c"]:
        """Returns the values of an image as given."""
        return as_bands(self.images[index], self.info.channels, f"images[{index}]")

    def encoded(self, index: int, *, raw_labels: bool = False) -> Encoded:
        """Returns the pixels of an image, and its labels."""
        image, labels, _ = self[index]
        return image, unmap_labels(labels, self.info) if raw_labels else labels

    def fingerprint(self) -> str:
        """Returns a digest of the arrays."""
        return fingerprint(self.info, self.images, self.labels)


def load_arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    """Reads a split into memory.

    Returns:
        `images` uint8 (n, h, w, 3), or uint16 (n, h, w, c) bands, and `labels` uint8
        (n, h, w), or (n,) for classification.

    Raises:
        UserError: The images differ in size.
    """
    if isinstance(dataset, ArrayDataset) and not dataset.info.banded:
        return {"images": dataset.images, "labels": dataset.labels}
    first = dataset[0]
    images = np.empty((len(dataset), *first.image.shape), first.image.dtype)
    labels = np.empty((len(dataset), *first.labels.shape), np.uint8)
    examples = read_ahead(dataset.__getitem__, range(len(dataset)))
    for index, example in enumerate(map(checked, examples)):
        if example.image.shape != first.image.shape:
            raise UserError(
                f"{example.name} has shape {example.image.shape} and {first.name} "
                f"{first.image.shape}: data.cache_on_device requires images of one size"
            )
        images[index], labels[index] = example.image, example.labels
    return {"images": images, "labels": labels}
