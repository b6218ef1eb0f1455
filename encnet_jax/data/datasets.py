"""Random access to the examples of a split, wherever they are stored.

Images are uint8 (h, w, 3) RGB 0-255; labels are uint8 (h, w), class indices or
`IGNORE_LABEL`.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np
from jaxtyping import UInt8

from encnet_jax.data import scenes
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.file_pairs import FilePair, read_file
from encnet_jax.data.image_io import (
    color_table,
    decode_image,
    decode_labels,
    ensure_rgb_bytes,
)
from encnet_jax.data.label_map import map_labels
from encnet_jax.errors import UserError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

T = TypeVar("T")

# Checking more files than this when a split is opened takes minutes, not seconds.
_MAX_CHECKED = 5000
_READ_AHEAD = 512  # examples that threads may read ahead of the consumer


class Example(NamedTuple):
    """A decoded example; of images in classes, `labels` is one class, uint8 ()."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "..."]
    name: str


Encoded = tuple[bytes, np.ndarray]  # a JPEG or PNG file, and the decoded labels


class Dataset(Protocol):
    """A split of a data set, indexed by example."""

    info: DatasetInfo

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Returns one decoded example; a `UserError` names an invalid file."""
        ...

    def encoded(self, index: int, *, raw_labels: bool = False) -> Encoded:
        """Returns the image as a JPEG or PNG file, and the decoded labels.

        Args:
            index: Index of the example.
            raw_labels: Return the labels as stored; the caller applies `map_labels`.
        """
        ...


class FileDataset:
    """Pairs of image and label files.

    Args:
        info: Metadata of the data set.
        pairs: Image and label file of each example.
        problems: One line for each file that belongs to no pair.
    """

    def __init__(
        self,
        info: DatasetInfo,
        pairs: Sequence[FilePair],
        problems: Sequence[str] = (),
    ):
        self.info = info
        self.pairs = pairs
        self.problems = problems
        self._colors = color_table(info.label_colors) if info.label_colors else None

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        """Returns one decoded example; image and labels must be of one size."""
        image_path, label_path = self.pairs[index]
        encoded, labels = self.encoded(index)
        image = decode_image(encoded, str(image_path))
        check_sizes(image.shape, str(image_path), labels.shape, str(label_path))
        return Example(image, labels, self.names[index])

    @functools.cached_property
    def names(self) -> list[str]:
        """The file names without suffix; with folders if they repeat otherwise."""
        images = [image.with_suffix("") for image, _ in self.pairs]
        if len({image.name.casefold() for image in images}) == len(images):
            return [image.name for image in images]
        root = os.path.commonpath({image.parent for image in images})
        return [image.relative_to(root).as_posix() for image in images]

    def encoded(self, index: int, *, raw_labels: bool = False) -> Encoded:
        """Returns the content of the image file, and the decoded labels."""
        image_path, label_path = self.pairs[index]
        labels = decode_labels(read_file(label_path), str(label_path), self._colors)
        image = ensure_rgb_bytes(read_file(image_path), str(image_path))
        if not raw_labels:
            labels = map_labels(labels, self.info, str(label_path))
        return image, labels

    def check(self) -> None:
        """Raises the first problem; reads the examples too, unless they are many."""
        if self.problems:
            raise UserError(self.problems[0])
        if len(self) > _MAX_CHECKED:
            return
        for problem in map_examples(self, range(len(self)), lambda example: None):
            if problem is not None:
                raise problem


class TFRecordDataset:
    """A data set prepared by TFDS with the features `image`, `label` and `id`."""

    def __init__(self, info: DatasetInfo, builder: "DatasetBuilder", split: str):
        # Here, so that other data sets need no TensorFlow.
        from encnet_jax.data.tfrecord import Records

        self.info = info
        shards = builder.info.splits[split].filepaths
        self.records = Records([os.fspath(path) for path in shards])

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Returns one decoded example."""
        name = self.records.features(index)["id"].decode()
        encoded, labels = self.encoded(index)
        image = decode_image(encoded, name)
        if self.info.task == "segmentation":
            check_sizes(image.shape, name, labels.shape, "its label")
        return Example(image, labels, name)

    def encoded(self, index: int, *, raw_labels: bool = False) -> Encoded:
        """Returns the stored image, and the decoded labels."""
        fields = self.records.features(index)
        name = fields["id"].decode()
        labels = decode_labels(fields["label"], name)
        if not raw_labels:
            labels = map_labels(labels, self.info, name)
        return fields["image"], labels


class ClassificationDataset(TFRecordDataset):
    """A data set for image classification prepared by TFDS, such as `cifar10`."""

    def encoded(self, index: int, *, raw_labels: bool = False) -> Encoded:
        """Returns the stored image, and its class, uint8 ()."""
        fields = self.records.features(index)
        label = np.asarray(fields.get("label", 0))  # protobuf omits a value of 0
        if not 0 <= label < self.info.num_classes:
            raise UserError(
                f"{fields['id'].decode()}: class {label}; allowed are 0 to "
                f"{self.info.num_classes - 1}"
            )
        return fields["image"], label.astype(np.uint8)


class SyntheticScenes:
    """The embedded data set `scenes`, drawn on demand as its TFDS builder stores it."""

    def __init__(self, info: DatasetInfo, split: str, seed: int = 0):
        self.info = info
        self.seed = seed
        counts = list(info.splits.items())
        names = [name for name, _ in counts]
        self.start = sum(count or 0 for _, count in counts[: names.index(split)])
        self.size = info.splits[split] or 0

    def __len__(self) -> int:
        """Returns the number of scenes."""
        return self.size

    def __getitem__(self, index: int) -> Example:
        """Returns one scene."""
        index += self.start
        scene = scenes.draw(self.seed, index)
        return Example(scene.image, scene.labels, f"scenes_{self.seed}_{index:06d}")

    def encoded(self, index: int, *, raw_labels: bool = False) -> Encoded:
        """Raises `TypeError`: scenes are drawn, not stored."""
        raise TypeError("drawn scenes have no encoded form; index the data set")


def map_examples(
    dataset: Dataset, indices: Sequence[int], fn: Callable[[Example], T]
) -> Iterator[T | UserError]:
    """Applies a function to examples that threads read ahead.

    Args:
        dataset: The data set to read.
        indices: Indices of the examples.
        fn: Called with each example, in the threads.

    Yields:
        The results in the order of `indices`; for an invalid example its `UserError`.
    """

    def apply(index: int) -> T | UserError:
        try:
            return fn(dataset[index])
        except UserError as problem:
            return problem

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(indices), _READ_AHEAD):
            yield from pool.map(apply, indices[start : start + _READ_AHEAD])


def check_sizes(
    image: tuple[int, ...], image_name: str, labels: tuple[int, ...], label_name: str
) -> None:
    """Raises `UserError` if the shapes of an image and its labels differ in size."""
    if image[:2] != labels:
        raise UserError(
            f"{image_name} is {image[1]}x{image[0]} pixels and {label_name} is "
            f"{labels[1]}x{labels[0]}: must be equal"
        )
