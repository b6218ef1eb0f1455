"""TFDS builder of ADE20K scene parsing, as released for the 2016 challenge."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from encnet_jax.data.builders.archives import Archive, unpacked
from encnet_jax.data.builders.segmentation import SegmentationBuilder, find_pairs
from encnet_jax.data.dataset_info import ADE20K

# Source of the digest: PyTorch-Encoding, GluonCV.
SCENES = Archive(
    file="ADEChallengeData2016.zip",
    contents="ADEChallengeData2016",
    url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    digest="sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
    homepage=ADE20K.homepage,
)
_FOLDERS = {"train": "training", "val": "validation"}


class Ade20k(SegmentationBuilder):
    """Scenes with 150 classes of things and stuff, labels 1 to 150; 0 is other."""

    dataset = ADE20K
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"{SCENES.file} (0.9 GB) is downloaded unless it is here, packed or "
        f"unpacked ({SCENES.contents})."
    )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Returns train and val; the test labels are not published."""
        root = unpacked(dl_manager, SCENES) / SCENES.contents
        splits = {
            split: find_pairs(
                root / "images" / _FOLDERS[split],
                root / "annotations" / _FOLDERS[split],
                count,
            )
            for split, count in self.dataset.splits.items()
        }
        return {name: self._generate_examples(pairs) for name, pairs in splits.items()}
