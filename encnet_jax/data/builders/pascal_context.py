"""TFDS builder of PASCAL-Context: VOC 2010 with dense labels."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from encnet_jax.data.builders.archives import Archive, unpacked
from encnet_jax.data.builders.matlab import read_label_map
from encnet_jax.data.builders.segmentation import (
    Pair,
    SegmentationBuilder,
    encode_labels,
    warn_of_counts,
)
from encnet_jax.data.class_table import read_rows
from encnet_jax.data.dataset_info import PASCAL_CONTEXT
from encnet_jax.data.input_files import read_file

# Source of the digest: torchvision.
IMAGES = Archive(
    file="VOCtrainval_03-May-2010.tar",
    contents="VOCdevkit/VOC2010",
    url="http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
    digest="md5:da459979d0c395079b5c75ee67908abb",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2010/",
)
# No digest is published; gzip files carry a checksum.
LABELS = Archive(
    file="trainval.tar.gz",
    contents="trainval",
    url="https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz",
    homepage="https://cs.stanford.edu/~roozbeh/pascal-context/",
)
_RAW_LABELS = 459


class PascalContext(SegmentationBuilder):
    """59 classes of things and stuff, labels 1 to 59 in official order; 0 is other."""

    dataset = PASCAL_CONTEXT
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"{IMAGES.file} and {LABELS.file} are downloaded unless they are here, packed "
        f"or unpacked ({IMAGES.contents}, {LABELS.contents})."
    )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Returns train and val as VOC 2010 lists all its images."""
        voc = unpacked(dl_manager, IMAGES) / IMAGES.contents
        labels = unpacked(dl_manager, LABELS) / LABELS.contents
        splits = {name: _listed(voc, labels, name) for name in self.dataset.splits}
        warn_of_counts(self.dataset, splits)
        return {name: self._generate_examples(pairs) for name, pairs in splits.items()}

    def read_label(self, path: Path) -> bytes:
        """Converts a file of raw labels to a PNG of the official labels."""
        raw = read_label_map(path, "LabelMap", highest=_RAW_LABELS)
        return encode_labels(_official_labels()[raw])


def _listed(voc: Path, labels: Path, split: str) -> list[Pair]:
    """Returns the pairs of a split.

    `ImageSets/Main` lists all the 4,998 and 5,105 images that PASCAL-Context labels;
    `ImageSets/Segmentation` lists only those with VOC's own segmentation.
    """
    names = read_file(voc / f"ImageSets/Main/{split}.txt").decode().split()
    return [
        (name, voc / f"JPEGImages/{name}.jpg", labels / f"{name}.mat") for name in names
    ]


@functools.cache
def _official_labels() -> UInt8[np.ndarray, "460"]:
    """Returns a table from raw to official label; 0 for 400 rare ones and for 0."""
    labels = np.zeros(_RAW_LABELS + 1, np.uint8)
    for row in read_rows("pascal_context"):
        labels[int(row["raw"])] = int(row["label"])
    return labels
