"""Random access to the examples of a split, wherever they are stored.

Images are uint8 (h, w, 3) RGB 0-255, or bands, see `bands`; labels are uint8 (h, w),
class indices or `IGNORE_LABEL`.
"""

import functools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
from jaxtyping import UInt8

from encnet_jax.data import scenes
from encnet_jax.data.bands import Pixels, decode_pixels, displayed, read_bands
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.file_pairs import FilePair
from encnet_jax.data.fingerprint import file_states, fingerprint
from encnet_jax.data.image_io import (
    TIFF_MARKS,
    decode_image,
    ensure_rgb_bytes,
    image_size,
)
from encnet_jax.data.input_files import read_file
from encnet_jax.data.label_io import LabelColors, decode_labels
from encnet_jax.data.label_map import map_labels
from encnet_jax.data.pair_checks import OrientationCheck, check_sizes
from encnet_jax.errors import UserError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

    from encnet_jax.data.statistics import Statistics

T = TypeVar("T")


class Example(NamedTuple):
    """A decoded example; of images in classes, `labels` is one class, uint8 ()."""

    image: Pixels
    labels: UInt8[np.ndarray, "..."]
    name: str

    def shown(self, info: DatasetInfo) -> "Example":
        """Returns it with the image in RGB, as `bands.displayed` shows it."""
        return self._replace(image=displayed(self.image, info))


EncodedFile = tuple[bytes, np.ndarray]  # a JPEG or PNG file, and the decoded labels
# The same, or the pixels of an image that is in no file.
Encoded = tuple[bytes | Pixels, np.ndarray]


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
        """Returns the image as it is stored, and the decoded labels.

        Args:
            index: Index of the example.
            raw_labels: Return the labels as stored; the caller applies `map_labels`.
        """
        ...

    def fingerprint(self) -> str:
        """Returns a digest of what the examples are, without reading them all."""
        ...


class FileDataset:
    """Pairs of image and label files.

    Args:
        info: Metadata of the data set.
        pairs: Image and label file of each example.
        problems: One line for each file that belongs to no pair.

    Attributes:
        statistics: Counts of all examples, if `label_check.check_split` has read them.
    """

    statistics: "Statistics | None" = None

    def __init__(
        self,
        info: DatasetInfo,
        pairs: Sequence[FilePair],
        problems: Sequence[str] = (),
    ):
        self.info = info
        self.pairs = pairs
        self.problems = problems
        self._colors = LabelColors.of(info)
        self._orientations = OrientationCheck()

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        """Returns one decoded example; image and labels must be of one size."""
        image_path, label_path = self.pairs[index]
        encoded, labels = self.encoded(index)
        if isinstance(encoded, np.ndarray):
            return Example(encoded, labels, self.names[index])
        image = decode_image(encoded, str(image_path))
        if image.shape[:2] != labels.shape:
            files = read_file(image_path), read_file(label_path)
            self._check_pair(index, *files, image.shape[:2], labels.shape)
        return Example(image, labels, self.names[index])

    @functools.cached_property
    def names(self) -> list[str]:
        """The file names without suffix; with folders, and it, if they repeat."""
        images = [image.with_suffix("") for image, _ in self.pairs]
        if len({image.name.casefold() for image in images}) == len(images):
            return [image.name for image in images]
        root = os.path.commonpath({image.parent for image in images})
        if len({str(image).casefold() for image in images}) < len(images):
            images = [image for image, _ in self.pairs]
        return [image.relative_to(root).as_posix() for image in images]

    def bands(self, index: int) -> np.ndarray:
        """Returns the values of an image as stored, (h, w, c)."""
        path = self.pairs[index][0]
        return read_bands(read_file(path), str(path), self.info.channels)

    def encoded(self, index: int, *, raw_labels: bool = False) -> Encoded:
        """Returns the content of the image file, or bands, and the decoded labels."""
        image_path, label_path = self.pairs[index]
        image_file, label_file = read_file(image_path), read_file(label_path)
        labels = decode_labels(label_file, str(label_path), self._colors)
        image: bytes | Pixels
        if self.info.banded:
            image = decode_pixels(image_file, str(image_path), self.info)
            size = image.shape[:2]
            if image_file[:4] in TIFF_MARKS:  # of which none is turned
                check_sizes(size, str(image_path), labels.shape, str(label_path))
            else:
                self._check_pair(index, image_file, label_file, size, labels.shape)
        else:
            value_range: Any = self.info.value_range
            image = ensure_rgb_bytes(image_file, str(image_path), value_range)
            if image is not image_file:  # it may have been turned
                size = image_size(image, str(image_path))
                self._check_pair(index, image_file, label_file, size, labels.shape)
        if not raw_labels:
            labels = map_labels(labels, self.info, str(label_path))
        return image, labels

    def _check_pair(
        self,
        index: int,
        image: bytes,
        labels: bytes,
        size: tuple[int, ...],
        label_size: tuple[int, ...],
    ) -> None:
        """Raises if sizes differ, warns if EXIF turned the image and not the labels."""
        image_path, label_path = map(str, self.pairs[index])
        self._orientations(
            *(image, image_path, labels, label_path), size=size, label_size=label_size
        )

    def fingerprint(self) -> str:
        """Returns a digest of the files' names, sizes and times of modification."""
        paths = (path for pair in self.pairs for path in pair)
        return fingerprint(self.info, file_states(paths))


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

    def encoded(self, index: int, *, raw_labels: bool = False) -> EncodedFile:
        """Returns the stored image, and the decoded labels."""
        fields = self.records.features(index)
        name = fields["id"].decode()
        labels = decode_labels(fields["label"], name)
        if not raw_labels:
            labels = map_labels(labels, self.info, name)
        return fields["image"], labels

    def fingerprint(self) -> str:
        """Returns a digest of the files' names and sizes, and of their records'."""
        return fingerprint(self.info, *self.records.layout())


class ClassificationDataset(TFRecordDataset):
    """A data set for image classification prepared by TFDS, such as `cifar10`."""

    def encoded(self, index: int, *, raw_labels: bool = False) -> EncodedFile:
        """Returns the stored image, and its class, uint8 ()."""
        fields = self.records.features(index)
        name = fields["id"].decode()
        if "label" not in fields:
            raise UserError(f"{name}: has no label; prepare the data set again")
        label = np.asarray(fields["label"])
        if not 0 <= label < self.info.num_classes:
            raise UserError(
                f"{name}: class {label}; allowed are 0 to {self.info.num_classes - 1}"
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
        """Returns the pixels of a scene, and its labels, which are classes."""
        image, labels, _ = self[index]
        return image, labels

    def fingerprint(self) -> str:
        """Returns a digest of the seed and the range of scenes."""
        return fingerprint(self.info, self.seed, self.start, self.size)


def checked(result: T | UserError) -> T:
    """Returns what `read_ahead` yields; raises it if it is an error."""
    if isinstance(result, UserError):
        raise result
    return result


def map_examples(
    dataset: Dataset, indices: Sequence[int], fn: Callable[[Example], T]
) -> Iterator[T | UserError]:
    """Applies a function to examples that threads read ahead.

    Args:
        dataset: The data set to read.
        indices: Indices of the examples.
        fn: Called with each example, in the threads.

    Returns:
        The results in the order of `indices`; for an invalid example its `UserError`.
    """
    return read_ahead(lambda index: fn(dataset[index]), indices)


def read_ahead(
    read: Callable[[int], T], indices: Sequence[int], ahead: int = 512
) -> Generator[T | UserError, None, None]:
    """Calls a function with each index, in threads ahead of the consumer.

    Args:
        read: The function.
        indices: What it is called with.
        ahead: How many results may wait for the consumer.

    Yields:
        The results in the order of `indices`; where it raised a `UserError`, that.
    """

    def apply(index: int) -> T | UserError:
        try:
            return read(index)
        except UserError as problem:
            return problem

    pool, pending = ThreadPoolExecutor(), deque[Future[T | UserError]]()
    try:
        for index in indices:
            pending.append(pool.submit(apply, index))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Without joining: garbage collection may close an abandoned iterator while it
        # holds the lock of a starting thread, and joining there is a deadlock.
        pool.shutdown(wait=False, cancel_futures=True)
