"""TFDS builder of COCO-Stuff 164k, whole or for pretraining on the VOC classes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from encnet_jax.data.builders.archives import Archive, unpacked
from encnet_jax.data.builders.segmentation import SegmentationBuilder, find_pairs
from encnet_jax.data.dataset_info import COCO_STUFF, COCO_VOC, IGNORE_LABEL

_COCO = "http://images.cocodataset.org/zips"
_CALVIN = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"

# The image and label archives have folders of the same names; unpacked by hand they are
# laid out as in the instructions of COCO-Stuff. Source of the digests: TFDS.
TRAIN = Archive(
    file="train2017.zip",
    contents="train2017",
    url=f"{_COCO}/train2017.zip",
    digest="sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    folder="images",
)
VAL = Archive(
    file="val2017.zip",
    contents="val2017",
    url=f"{_COCO}/val2017.zip",
    digest="sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    folder="images",
)
# No digest is published; zip files carry checksums.
LABELS = Archive(
    file="stuffthingmaps_trainval2017.zip",
    contents="train2017",
    url=f"{_CALVIN}/stuffthingmaps_trainval2017.zip",
    folder="annotations",
)
_DATASETS = {"stuff": COCO_STUFF, "voc": COCO_VOC}
_MIN_VOC_PIXELS = 1000  # images of `voc` have more (PyTorch-Encoding)


class CocoStuff(SegmentationBuilder):
    """80 thing classes, labels 0 to 89 with gaps, and 91 stuff classes, 91 to 181."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="stuff", description="All images."),
        tfds.core.BuilderConfig(
            name="voc",
            description="Images with more than 1,000 pixels of VOC's 20 classes; the "
            "labels are those of `stuff`.",
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"{TRAIN.file}, {VAL.file} and {LABELS.file} (21 GB) are downloaded unless "
        "they are here, packed or unpacked (images/train2017, images/val2017, "
        "annotations/train2017, annotations/val2017)."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        """Returns features and metadata of the configuration's data set."""
        self.dataset = _DATASETS[self.builder_config.name]
        return super()._info()

    def wanted(self, classes: np.ndarray) -> bool:
        """Returns whether an image has enough object pixels for `voc`."""
        if self.builder_config.name != "voc":
            return True
        objects = (classes != 0) & (classes != IGNORE_LABEL)
        return int(objects.sum()) > _MIN_VOC_PIXELS

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Returns train and val."""
        labels = unpacked(dl_manager, LABELS)
        splits = {}
        for split, archive in {"train": TRAIN, "val": VAL}.items():
            splits[split] = find_pairs(
                unpacked(dl_manager, archive) / archive.contents,
                labels / archive.contents,
                COCO_STUFF.splits[split],
            )
        return {name: self._generate_examples(pairs) for name, pairs in splits.items()}
