"""TFDS builder of PASCAL VOC 2012 segmentation, optionally with SBD labels."""

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
    warn_of_counts,
)
from encnet_jax.data.dataset_info import VOC2012, VOC2012_AUG
from encnet_jax.data.input_files import read_file

# Source of the digests: torchvision.
VOC = Archive(
    file="VOCtrainval_11-May-2012.tar",
    contents="VOCdevkit/VOC2012",
    url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    digest="md5:6cd6e144f989b92b3379bac3b3de84fd",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)
SBD = Archive(
    file="benchmark.tgz",
    contents="benchmark_RELEASE/dataset",
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
    "semantic_contours/benchmark.tgz",
    digest="md5:82b4d87ceb2ed10f6038a1cba92111cb",
    homepage="http://home.bharathh.info/pubs/codes/SBD/download.html",
)
_DATASETS = {"voc": VOC2012, "aug": VOC2012_AUG}


class Voc2012(SegmentationBuilder):
    """Twenty object classes and background; 255 marks the borders between them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name="voc", description="The lists of VOC: train, val and trainval."
        ),
        tfds.core.BuilderConfig(
            name="aug",
            description="train: all images of VOC and SBD except VOC's val; val: VOC's."
            " Images of VOC's train and val keep VOC's labels; the others have SBD's,"
            " without borders.",
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"{VOC.file} and, for the configuration aug, {SBD.file} are downloaded unless "
        f"they are here, packed or unpacked ({VOC.contents}, {SBD.contents})."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        """Returns features and metadata of the configuration's data set."""
        self.dataset = _DATASETS[self.builder_config.name]
        return super()._info()

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Returns the splits of the configuration."""
        voc = unpacked(dl_manager, VOC) / VOC.contents
        if self.builder_config.name == "aug":
            sbd = unpacked(dl_manager, SBD) / SBD.contents
            splits = {"train": _augmented(voc, sbd), "val": _listed(voc, "val")}
        else:
            splits = {name: _listed(voc, name) for name in self.dataset.splits}
        warn_of_counts(self.dataset, splits)
        return {name: self._generate_examples(pairs) for name, pairs in splits.items()}

    def read_label(self, path: Path) -> bytes:
        """Returns a label file of VOC; converts one of SBD to PNG."""
        if path.suffix != ".mat":
            return read_file(path)
        labels = read_label_map(path, "GTcls", "Segmentation", highest=255)
        return encode_labels(labels.astype(np.uint8))


def _listed(voc: Path, split: str) -> list[Pair]:
    """Returns the pairs of a split as listed by VOC."""
    names = read_file(voc / f"ImageSets/Segmentation/{split}.txt").decode().split()
    return [
        (name, voc / f"JPEGImages/{name}.jpg", voc / f"SegmentationClass/{name}.png")
        for name in names
    ]


def _augmented(voc: Path, sbd: Path) -> list[Pair]:
    """Returns VOC's train and the images that only SBD has, without VOC's val."""
    train = _listed(voc, "train")
    excluded = {name for name, _, _ in train + _listed(voc, "val")}
    lists = [
        read_file(sbd / f"{split}.txt").decode().split() for split in ("train", "val")
    ]
    names = [
        name for name in dict.fromkeys(lists[0] + lists[1]) if name not in excluded
    ]
    return train + [
        (name, sbd / f"img/{name}.jpg", sbd / f"cls/{name}.mat") for name in names
    ]
