"""Where images and labels come from: one example by its number, wherever it is stored.

A source reads examples in any order. Images are uint8 (h, w, 3) RGB; labels are uint8
(h, w), classes or `IGNORE_LABEL`.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from encnet_jax.data import scenes
from encnet_jax.data.classes import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.images import decode_image, decode_labels, plain_rgb
from encnet_jax.errors import UserError

# Above this many files a check of every one of them takes minutes rather than seconds.
_CHECKED_AT_START = 5000
_log = logging.getLogger(__name__)
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class Example(NamedTuple):
    """An image uint8 (h, w, 3), its labels uint8 (h, w), and its name."""

    image: np.ndarray
    labels: np.ndarray
    name: str


class Source(Protocol):
    """A split of a data set, read by number."""

    info: DatasetInfo

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def encoded(self, number: int) -> tuple[bytes, np.ndarray]:
        """Returns the JPEG or PNG bytes of the image, and the labels decoded."""
        ...

    def example(self, number: int) -> Example:
        """Returns one example decoded; a `UserError` names the file that is bad."""
        ...


class FileSource:
    """Pairs of image and label files."""

    def __init__(self, info: DatasetInfo, pairs: Sequence[tuple[Path, Path]]):
        self.info = info
        self.pairs = pairs

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self.pairs)

    def encoded(self, number: int) -> tuple[bytes, np.ndarray]:
        """Returns the bytes of the image file and the labels."""
        image_path, label_path = self.pairs[number]
        labels = decode_labels(_read(label_path), str(label_path))
        image = plain_rgb(_read(image_path), str(image_path))
        return image, map_labels(labels, self.info, str(label_path))

    def example(self, number: int) -> Example:
        """Returns an example; raises `UserError` where image and labels do not fit."""
        image_path, label_path = self.pairs[number]
        encoded, labels = self.encoded(number)
        image = decode_image(encoded, str(image_path))
        if image.shape[:2] != labels.shape:
            raise UserError(
                f"{image_path} is {image.shape[1]}x{image.shape[0]} pixels and "
                f"{label_path} is {labels.shape[1]}x{labels.shape[0]}: must be equal"
            )
        return Example(image, labels, image_path.stem)

    def check(self) -> None:
        """Reads every example, if they are not too many; raises for the first bad."""
        if len(self) > _CHECKED_AT_START:
            return
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda n: self.example(n) and None, range(len(self))):
                pass


class RecordSource:
    """A prepared TFDS data set with the features `image`, `label` and `id`."""

    def __init__(self, info: DatasetInfo, builder, split: str):
        from encnet_jax.data.records import Records

        self.info = info
        shards = builder.info.splits[split].filepaths
        self.records = Records([os.fspath(path) for path in shards])

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.records)

    def encoded(self, number: int) -> tuple[bytes, np.ndarray]:
        """Returns the bytes of the image and the labels."""
        fields = self.records.features(number)
        name = fields["id"].decode()
        labels = decode_labels(fields["label"], name)
        return fields["image"], map_labels(labels, self.info, name)

    def example(self, number: int) -> Example:
        """Returns one example decoded."""
        name = self.records.features(number)["id"].decode()
        encoded, labels = self.encoded(number)
        return Example(decode_image(encoded, name), labels, name)


class DrawnSource:
    """The embedded `scenes`, drawn on demand: what its TFDS builder stores."""

    def __init__(self, info: DatasetInfo, split: str, seed: int = 0):
        self.info = info
        self.seed = seed
        counts = list(info.splits.items())
        names = [name for name, _ in counts]
        self.start = sum(count or 0 for _, count in counts[: names.index(split)])
        self.size = info.splits[split] or 0

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return self.size

    def encoded(self, number: int) -> tuple[bytes, np.ndarray]:
        """Drawn pictures have no encoded form."""
        raise TypeError("drawn pictures are not encoded; read them with `example`")

    def example(self, number: int) -> Example:
        """Returns one picture."""
        number += self.start
        scene = scenes.draw(self.seed, number)
        return Example(scene.image, scene.labels, f"scenes_{self.seed}_{number:06d}")


def pair_files(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Returns image and label files of the same stem, sorted by name.

    Raises:
        UserError: A folder is missing or has no images, or a label file is missing.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    files = sorted(p for p in images.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{images}: no images ({', '.join(_IMAGE_SUFFIXES)}) in it")
    pairs: list[tuple[Path, Path]] = []
    for path in files:
        if pairs and pairs[-1][0].stem == path.stem:
            raise UserError(f"{path} and {pairs[-1][0]}: two images for one label file")
        label = labels / f"{path.stem}.png"
        if not label.is_file():
            raise UserError(f"{label}: missing, the label file of {path}")
        pairs.append((path, label))
    return pairs


def map_labels(labels: np.ndarray, info: DatasetInfo, name: str) -> np.ndarray:
    """Maps raw labels to classes; raises `UserError` naming a value that is neither."""
    known = label_table(info)
    bad = np.flatnonzero((known < 0) & (np.bincount(labels.ravel(), minlength=256) > 0))
    if bad.size:
        classes = [raw for raw in range(256) if 0 <= known[raw] < info.num_classes]
        ignored = [raw for raw in range(256) if known[raw] == IGNORE_LABEL]
        raise UserError(
            f"{name}: label {bad[0]}; allowed are {_ranges(classes)}, and "
            f"{_ranges(ignored)} to ignore"
        )
    return known.astype(np.uint8)[labels]


def label_table(info: DatasetInfo) -> np.ndarray:
    """Returns int16 (256,): published label -> class, -1 where there is none."""
    known = np.full(256, -1, np.int16)
    published = info.label_map or {label: label for label in range(info.num_classes)}
    for raw, value in published.items():
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
