"""Where images and labels come from: one example by its index, wherever it is stored.

A dataset reads examples in any order. Images are uint8 (h, w, 3) RGB; labels are uint8
(h, w), classes or `IGNORE_LABEL`.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image

from encnet_jax.data import scenes
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.image_io import (
    color_table,
    decode_image,
    decode_labels,
    ensure_rgb_bytes,
)
from encnet_jax.errors import UserError

T = TypeVar("T")

# Above this many files a check of every one of them takes minutes rather than seconds.
_CHECKED_AT_START = 5000
_AHEAD = 512  # examples that threads may read before the first of them is looked at
_log = logging.getLogger(__name__)


class Example(NamedTuple):
    """An image uint8 (h, w, 3), its labels uint8 (h, w), and its name."""

    image: np.ndarray
    labels: np.ndarray
    name: str


class Dataset(Protocol):
    """A split of a data set, read by index."""

    info: DatasetInfo

    def __len__(self) -> int:
        """Returns the index of examples."""
        ...

    def encoded(
        self, index: int, *, raw_labels: bool = False
    ) -> tuple[bytes, np.ndarray]:
        """Returns the JPEG or PNG bytes of the image, and the labels decoded.

        As `raw_labels`, the labels still need `map_labels`.
        """
        ...

    def __getitem__(self, index: int) -> Example:
        """Returns one example decoded; a `UserError` names the file that is bad."""
        ...


class FileDataset:
    """Pairs of image and label files; `problems` tells of files that are in no pair."""

    def __init__(
        self,
        info: DatasetInfo,
        pairs: Sequence[tuple[Path, Path]],
        problems: Sequence[str] = (),
    ):
        self.info = info
        self.pairs = pairs
        self.problems = problems
        self._colors = color_table(info.label_colors) if info.label_colors else None

    def __len__(self) -> int:
        """Returns the index of pairs."""
        return len(self.pairs)

    def encoded(
        self, index: int, *, raw_labels: bool = False
    ) -> tuple[bytes, np.ndarray]:
        """Returns the bytes of the image file, and its labels."""
        image_path, label_path = self.pairs[index]
        labels = decode_labels(_read(label_path), str(label_path), self._colors)
        image = ensure_rgb_bytes(_read(image_path), str(image_path))
        if not raw_labels:
            labels = map_labels(labels, self.info, str(label_path))
        return image, labels

    def __getitem__(self, index: int) -> Example:
        """Returns an example; raises `UserError` where image and labels do not fit."""
        image_path, label_path = self.pairs[index]
        encoded, labels = self.encoded(index)
        image = decode_image(encoded, str(image_path))
        _check_sizes(image, str(image_path), labels, str(label_path))
        return Example(image, labels, image_path.stem)

    def check(self) -> None:
        """Reads every example, if they are not too many; raises the first problem."""
        if self.problems:
            raise UserError(self.problems[0])
        if len(self) > _CHECKED_AT_START:
            return
        for problem in map_examples(self, range(len(self)), lambda example: None):
            if problem is not None:
                raise problem


class TFRecordDataset:
    """A prepared TFDS data set with the features `image`, `label` and `id`."""

    def __init__(self, info: DatasetInfo, builder, split: str):
        from encnet_jax.data.tfrecord import Records

        self.info = info
        shards = builder.info.splits[split].filepaths
        self.records = Records([os.fspath(path) for path in shards])

    def __len__(self) -> int:
        """Returns the index of records."""
        return len(self.records)

    def encoded(
        self, index: int, *, raw_labels: bool = False
    ) -> tuple[bytes, np.ndarray]:
        """Returns the bytes of the image and the labels, mapped or `raw_labels`."""
        fields = self.records.features(index)
        name = fields["id"].decode()
        labels = decode_labels(fields["label"], name)
        if not raw_labels:
            labels = map_labels(labels, self.info, name)
        return fields["image"], labels

    def __getitem__(self, index: int) -> Example:
        """Returns one example decoded."""
        name = self.records.features(index)["id"].decode()
        encoded, labels = self.encoded(index)
        image = decode_image(encoded, name)
        _check_sizes(image, name, labels, "its label")
        return Example(image, labels, name)


class ClassificationDataset:
    """A prepared TFDS data set of whole images in classes, such as `cifar10`.

    The labels of an example are one uint8, its class.
    """

    def __init__(self, info: DatasetInfo, builder, split: str):
        self._dataset = TFRecordDataset(info, builder, split)
        self.info = info

    def __len__(self) -> int:
        """Returns the index of images."""
        return len(self._dataset)

    def encoded(
        self, index: int, *, raw_labels: bool = False
    ) -> tuple[bytes, np.ndarray]:
        """Returns the bytes of the image and its class."""
        fields = self._dataset.records.features(index)
        label = np.asarray(fields.get("label", 0))  # the least is stored as nothing
        if not 0 <= label < self.info.num_classes:
            raise UserError(
                f"{fields['id'].decode()}: class {label}; allowed are 0 to "
                f"{self.info.num_classes - 1}"
            )
        return fields["image"], label.astype(np.uint8)

    def __getitem__(self, index: int) -> Example:
        """Returns one image decoded, and its class."""
        name = self._dataset.records.features(index)["id"].decode()
        encoded, label = self.encoded(index)
        return Example(decode_image(encoded, name), label, name)


class SyntheticScenes:
    """The embedded `scenes`, drawn on demand: what its TFDS builder stores."""

    def __init__(self, info: DatasetInfo, split: str, seed: int = 0):
        self.info = info
        self.seed = seed
        counts = list(info.splits.items())
        names = [name for name, _ in counts]
        self.start = sum(count or 0 for _, count in counts[: names.index(split)])
        self.size = info.splits[split] or 0

    def __len__(self) -> int:
        """Returns the index of pictures."""
        return self.size

    def encoded(
        self, index: int, *, raw_labels: bool = False
    ) -> tuple[bytes, np.ndarray]:
        """Drawn pictures have no encoded form."""
        raise TypeError("drawn pictures are not encoded; read them with `example`")

    def __getitem__(self, index: int) -> Example:
        """Returns one picture."""
        index += self.start
        scene = scenes.draw(self.seed, index)
        return Example(scene.image, scene.labels, f"scenes_{self.seed}_{index:06d}")


def map_examples(
    dataset: Dataset, indices: Sequence[int], measure: Callable[[Example], T]
) -> Iterator[T | UserError]:
    """Reads examples in threads and yields, in order, what is found of each.

    Args:
        dataset: Where they are read.
        indices: Of the examples.
        measure: Called with each example, in the threads.

    Yields:
        The result of `measure`, or the problem of an example that cannot be used.
    """

    def one(index: int) -> T | UserError:
        try:
            return measure(dataset[index])
        except UserError as problem:
            return problem

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(indices), _AHEAD):
            yield from pool.map(one, indices[start : start + _AHEAD])


def pair_files(images: Path, labels: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Pairs images with the label files of the same path below their folder.

    Label files end in `.png`, images in whatever Pillow can read; hidden files are left
    alone.

    Returns:
        The pairs, sorted by path, and a line for every file that is in none.

    Raises:
        UserError: A folder is missing, or has no images.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    files = [path for path in files_below(images) if is_image(path)]
    if not files:
        raise UserError(f"{images}: no images (.jpg, .png, ...) in it")
    unpaired = {
        path.relative_to(labels).with_suffix(""): path
        for path in files_below(labels)
        if path.suffix == ".png"
    }
    pairs: dict[Path, tuple[Path, Path]] = {}
    problems = []
    for path in files:
        stem = path.relative_to(images).with_suffix("")
        if stem in pairs:
            problems.append(
                f"{path} and {pairs[stem][0]}: two images for one label file"
            )
        elif stem in unpaired:
            pairs[stem] = (path, unpaired.pop(stem))
        else:
            problems.append(f"{labels / stem}.png: missing, the label file of {path}")
    problems += [f"{path}: a label file without an image" for path in unpaired.values()]
    return list(pairs.values()), problems


def is_image(path: Path) -> bool:
    """Tells by its suffix whether a file is an image that Pillow can read."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def files_below(folder: Path) -> list[Path]:
    """Returns the files at any depth below a folder, sorted, without hidden ones."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found)


def map_labels(labels: np.ndarray, info: DatasetInfo, name: str) -> np.ndarray:
    """Maps raw labels to classes; raises `UserError` naming a value that is neither."""
    known = label_table(info)
    mapped = known.take(labels)  # twice as quick as known[labels]
    if mapped.min() < 0:
        bad = np.unique(labels[mapped < 0])
        classes = [raw for raw in range(256) if 0 <= known[raw] < info.num_classes]
        ignored = [raw for raw in range(256) if known[raw] == IGNORE_LABEL]
        raise UserError(
            f"{name}: label {bad[0]}; allowed are {_ranges(classes)}, and "
            f"{_ranges(ignored)} to ignore"
        )
    return mapped.astype(np.uint8)


def label_table(info: DatasetInfo) -> np.ndarray:
    """Returns int16 (256,): raw_labels label -> class, -1 where there is none."""
    known = np.full(256, -1, np.int16)
    raw_labels = info.label_map or {label: label for label in range(info.num_classes)}
    for raw, value in raw_labels.items():
        known[raw] = value
    known[IGNORE_LABEL] = IGNORE_LABEL
    return known


def _ranges(values: Sequence[int]) -> str:
    """Writes 0, 1, 2, 7 as `0 to 2, 7`."""
    parts, first = [], 0
    for place, value in enumerate(values):
        if place + 1 == len(values) or values[place + 1] != value + 1:
            start = values[first]
            join = "" if start == value else f"{start} to "
            parts.append(f"{join}{value}")
            first = place + 1
    return ", ".join(parts)


def _check_sizes(image: np.ndarray, name: str, labels: np.ndarray, which: str) -> None:
    if image.shape[:2] != labels.shape:
        raise UserError(
            f"{name} is {image.shape[1]}x{image.shape[0]} pixels and {which} is "
            f"{labels.shape[1]}x{labels.shape[0]}: must be equal"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
