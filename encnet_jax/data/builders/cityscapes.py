"""TFDS builder of Cityscapes with fine annotations."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from encnet_jax.data.builders.archives import Archive, unpacked
from encnet_jax.data.builders.segmentation import SegmentationBuilder, find_pairs
from encnet_jax.data.dataset_info import CITYSCAPES

_DOWNLOADS = "https://www.cityscapes-dataset.com/downloads"
IMAGES = Archive(
    file="leftImg8bit_trainvaltest.zip", contents="leftImg8bit", homepage=_DOWNLOADS
)
LABELS = Archive(file="gtFine_trainvaltest.zip", contents="gtFine", homepage=_DOWNLOADS)


class Cityscapes(SegmentationBuilder):
    """Streets of European cities; 19 of the label ids 0 to 33 are classes."""

    dataset = CITYSCAPES
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Log in at {_DOWNLOADS} and put {IMAGES.file} (11 GB) and {LABELS.file} "
        f"(241 MB) here, packed or unpacked ({IMAGES.contents}, "
        f"{LABELS.contents})."
    )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Returns train and val; the test labels are blank."""
        labels = unpacked(dl_manager, LABELS) / LABELS.contents
        images = unpacked(dl_manager, IMAGES) / IMAGES.contents
        splits = {
            split: find_pairs(
                images / split,
                labels / split,
                count,
                image_end="_leftImg8bit.png",
                label_end="_gtFine_labelIds.png",
            )
            for split, count in self.dataset.splits.items()
        }
        return {name: self._generate_examples(pairs) for name, pairs in splits.items()}
