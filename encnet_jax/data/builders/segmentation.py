"""Base class of the TFDS builders for segmentation: features, checks, file pairs."""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.image_io import ensure_rgb_bytes, image_size
from encnet_jax.data.input_files import read_file
from encnet_jax.data.label_io import decode_labels
from encnet_jax.data.label_map import map_labels
from encnet_jax.data.pair_checks import OrientationCheck
from encnet_jax.errors import UserError

_log = logging.getLogger(__name__)

# Name of an example, its image file, and its label file or the content of one.
Pair = tuple[str, Path, Path | bytes]


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder):
    """Images with raw labels: features `image`, `label` (PNG) and `id`.

    Subclasses set `dataset` and pass `Pair`s to `_generate_examples`.
    """

    dataset: DatasetInfo

    def _info(self) -> tfds.core.DatasetInfo:
        """Returns features and metadata of `dataset`."""
        return self.dataset_info_from_configs(
            description=f"{self.dataset.name}: {type(self).__doc__}",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(None, None, 3), encoding_format="jpeg"
                    ),
                    "label": tfds.features.Image(
                        shape=(None, None, 1), encoding_format="png"
                    ),
                    "id": tfds.features.Text(),
                }
            ),
            homepage=self.dataset.homepage or None,
            citation=self.dataset.citation,
            license=self.dataset.license or None,
            # The sampler shuffles; records keep the order of the lists.
            disable_shuffling=True,
        )

    def read_label(self, path: Path) -> bytes:
        """Returns the label file; subclasses convert other formats to PNG."""
        return read_file(path)

    def wanted(self, classes: UInt8[np.ndarray, "h w"]) -> bool:
        """Returns whether an example with these mapped labels is kept."""
        return True

    def _generate_examples(
        self, pairs: Sequence[Pair]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Checks the pairs and yields them in order.

        Raises:
            UserError: A file is unreadable, or sizes differ, or a label is unknown.
        """
        # TFDS sorts buckets of a thousandth of the 128-bit key range in memory:
        # consecutive keys from 0 would load a whole split at once.
        step = 2**128 // max(len(pairs), 1)
        check_orientation = OrientationCheck()
        for index, (name, image_path, label) in enumerate(pairs):
            image_file = read_file(image_path)
            image = ensure_rgb_bytes(image_file, str(image_path))
            where = str(label) if isinstance(label, Path) else name
            content = label if isinstance(label, bytes) else self.read_label(label)
            labels = decode_labels(content, where)
            classes = map_labels(labels, self.dataset, where)
            size = image_size(image, str(image_path))
            if image is not image_file or size != labels.shape:
                check_orientation(
                    *(image_file, str(image_path), content, where),
                    size=size,
                    label_size=labels.shape,
                )
            if not self.wanted(classes):
                continue
            yield (
                index * step,
                {
                    "image": io.BytesIO(image),
                    "label": io.BytesIO(encode_labels(labels)),
                    "id": name,
                },
            )


def warn_of_counts(dataset: DatasetInfo, splits: Mapping[str, Sized]) -> None:
    """Warns of splits whose number of images differs from the official one."""
    for split, examples in splits.items():
        official = dataset.splits[split]
        if official is not None and len(examples) != official:
            _log.warning(
                "%s: %s has %d images instead of the official %d",
                dataset.name,
                split,
                len(examples),
                official,
            )


def find_pairs(
    images: Path,
    labels: Path,
    count: int | None,
    *,
    image_end: str = ".jpg",
    label_end: str = ".png",
) -> list[Pair]:
    """Pairs the images in a folder, at any depth, with labels of the same path.

    Args:
        images: Folder of the images, `NAME` + `image_end`.
        labels: Folder of the labels, `NAME` + `label_end`.
        count: Official number of images, as no list of them is published.
        image_end: End of the image file names.
        label_end: End of the label file names.

    Raises:
        UserError: A label file is missing, or the number of images differs.
    """
    pairs: list[Pair] = []
    for image in sorted(images.rglob(f"*{image_end}")):
        name = image.name.removesuffix(image_end)
        label = labels / image.relative_to(images).with_name(name + label_end)
        if not label.is_file():
            raise UserError(f"{label}: missing, the label file of {image}")
        pairs.append((name, image, label))
    if count is not None and len(pairs) != count:
        raise UserError(
            f"{images}: {len(pairs)} images; {count} are published: unpack them again"
        )
    return pairs


def encode_labels(labels: UInt8[np.ndarray, "h w"]) -> bytes:
    """Encodes labels as a gray PNG.

    TensorFlow would decode a palette PNG to the brightness of its colors.
    """
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "PNG")
    return file.getvalue()
