"""What the TFDS builders of segmentation sets share: features, and checked examples."""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import map_labels
from encnet_jax.data.image_io import decode_labels, ensure_rgb_bytes, image_size
from encnet_jax.errors import UserError

_log = logging.getLogger(__name__)

# The name of an example, its image file, and its label file or what one would hold.
Pair = tuple[str, Path, Path | bytes]


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder):
    """Images and published labels: features `image`, `label` (PNG) and `id`.

    Subclasses name their `dataset` and yield `Pair`s.
    """

    dataset: DatasetInfo

    def _info(self) -> tfds.core.DatasetInfo:
        """Returns the features and the words of `dataset`."""
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
            # Shuffling is the pipeline's; on disk the order is that of the lists.
            disable_shuffling=True,
        )

    def read_label(self, path: Path) -> bytes:
        """Returns a label file; subclasses turn one that is no image into a PNG."""
        return read(path)

    def wanted(self, classes: np.ndarray) -> bool:
        """Returns whether an example with these classes (h, w) belongs to the set."""
        return True

    def _generate_examples(
        self, pairs: Sequence[Pair]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the pairs, each checked, in their order.

        Raises:
            UserError: Not readable, of different sizes, or an unknown label; names it.
        """
        # TFDS sorts by key, in memory, each thousandth of the range of 128-bit keys:
        # keys from 0 upwards would bring a whole split into memory at once.
        step = 2**128 // max(len(pairs), 1)
        for number, (name, image_path, label) in enumerate(pairs):
            image = ensure_rgb_bytes(read(image_path), str(image_path))
            where = str(label) if isinstance(label, Path) else name
            content = label if isinstance(label, bytes) else self.read_label(label)
            labels = decode_labels(content, where)
            classes = map_labels(labels, self.dataset, where)
            size = image_size(image, str(image_path))
            if size != labels.shape:
                raise UserError(
                    f"{image_path} is {size[1]}x{size[0]} pixels and {where} is "
                    f"{labels.shape[1]}x{labels.shape[0]}: must be equal"
                )
            if not self.wanted(classes):
                continue
            yield (
                number * step,
                {
                    "image": io.BytesIO(image),
                    "label": io.BytesIO(encode_labels(labels)),
                    "id": name,
                },
            )


def warn_of_counts(dataset: DatasetInfo, splits: Mapping[str, Sized]) -> None:
    """Logs each split that has not the official number of images: results differ."""
    for split, examples in splits.items():
        official = dataset.splits[split]
        if official is not None and len(examples) != official:
            _log.warning(
                "%s: %s has %d images, the official one %d",
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
    """Returns the images in a folder, at any depth, with the labels of their places.

    Args:
        images: The folder with images, `NAME` and `image_end`.
        labels: The folder with labels, `NAME` and `label_end`.
        count: How many are published: no list tells which ones belong to the set.
        image_end: See `images`.
        label_end: See `labels`.

    Raises:
        UserError: A label file is missing, or the count is another.
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


def read(path: Path) -> bytes:
    """Returns the content of a file; raises `UserError` if there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def encode_labels(labels: Any) -> bytes:
    """Returns uint8 labels (h, w) as a gray PNG.

    Not as a palette one: TensorFlow would decode that to the brightness of its colors.
    """
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "PNG")
    return file.getvalue()
