"""TFDS builder of ADE20K scene parsing, as published for the challenge of 2016."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from encnet_jax.data.builders.archives import Archive, unpacked
from encnet_jax.data.builders.segmentation import SegmentationBuilder, find_pairs
from encnet_jax.data.dataset_info import ADE20K

# Digest: PyTorch-Encoding, GluonCV.
SCENES = Archive(
    file="ADEChallengeData2016.zip",
    contents="ADEChallengeData2016",
    url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    digest="sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
    homepage=ADE20K.homepage,
)
_FOLDERS = {"train": "training", "val": "validation"}


class Ade20k(SegmentationBuilder):
    """Scenes in 150 classes of things and stuff, 1 to 150; 0 is the rest."""

    dataset = ADE20K
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"{SCENES.file} (0.9 GB) is downloaded unless it lies here, as it is or "
        f"unpacked ({SCENES.contents})."
    )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Returns train and val; the images of test have no labels."""
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
