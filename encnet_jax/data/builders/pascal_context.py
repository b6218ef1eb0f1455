"""TFDS builder of PASCAL-Context: VOC 2010 with a label for (nearly) every pixel."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from encnet_jax.data.builders.archives import Archive, unpacked
from encnet_jax.data.builders.matlab import read_label_map
from encnet_jax.data.builders.segmentation import (
    Pair,
    SegmentationBuilder,
    encode_labels,
    read,
    warn_of_counts,
)
from encnet_jax.data.dataset_info import PASCAL_CONTEXT, read_rows

# Digest: torchvision.
IMAGES = Archive(
    file="VOCtrainval_03-May-2010.tar",
    contents="VOCdevkit/VOC2010",
    url="http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
    digest="md5:da459979d0c395079b5c75ee67908abb",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2010/",
)
# No digest is published; gzip has a checksum of its own.
LABELS = Archive(
    file="trainval.tar.gz",
    contents="trainval",
    url="https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz",
    homepage="https://cs.stanford.edu/~roozbeh/pascal-context/",
)
_RAW_LABELS = 459


class PascalContext(SegmentationBuilder):
    """59 kinds of objects and stuff in the official order, 1 to 59; 0 is the rest."""

    dataset = PASCAL_CONTEXT
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"{IMAGES.file} and {LABELS.file} are downloaded unless they lie here, as they "
        f"are or unpacked ({IMAGES.contents}, {LABELS.contents})."
    )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Returns train and val: the lists of all images of VOC 2010."""
        voc = unpacked(dl_manager, IMAGES) / IMAGES.contents
        labels = unpacked(dl_manager, LABELS) / LABELS.contents
        splits = {name: _listed(voc, labels, name) for name in self.dataset.splits}
        warn_of_counts(self.dataset, splits)
        return {name: self._generate_examples(pairs) for name, pairs in splits.items()}

    def read_label(self, path: Path) -> bytes:
        """Returns the official numbers of a file of raw labels, as a PNG."""
        raw = read_label_map(path, "LabelMap", highest=_RAW_LABELS)
        return encode_labels(_official_numbers()[raw])


def _listed(voc: Path, labels: Path, split: str) -> list[Pair]:
    """Returns the pairs of a split.

    `ImageSets/Main` lists 4,998 and 5,105 images, all that PASCAL-Context labels;
    `ImageSets/Segmentation` only those with VOC's own segmentation.
    """
    names = read(voc / f"ImageSets/Main/{split}.txt").decode().split()
    return [
        (name, voc / f"JPEGImages/{name}.jpg", labels / f"{name}.mat") for name in names
    ]


@functools.cache
def _official_numbers() -> np.ndarray:
    """Returns uint8 (460,): raw label -> official number; 0 for 400 rare ones and 0."""
    numbers = np.zeros(_RAW_LABELS + 1, np.uint8)
    for row in read_rows("pascal_context"):
        numbers[int(row["raw"])] = int(row["label"])
    return numbers
