"""What the TFDS builders of segmentation sets share: features, and checked examples."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from encnet_jax.data.classes import DatasetInfo
from encnet_jax.data.images import decode_labels, image_size, plain_rgb
from encnet_jax.data.sources import map_labels
from encnet_jax.errors import UserError

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

    def _generate_examples(
        self, pairs: Iterable[Pair]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the pairs, each checked.

        Raises:
            UserError: Not readable, of different sizes, or an unknown label; names it.
        """
        for name, image_path, label in pairs:
            image = plain_rgb(read(image_path), str(image_path))
            where = str(label) if isinstance(label, Path) else name
            content = label if isinstance(label, bytes) else read(label)
            labels = decode_labels(content, where)
            map_labels(labels, self.dataset, where)
            size = image_size(image, str(image_path))
            if size != labels.shape:
                raise UserError(
                    f"{image_path} is {size[1]}x{size[0]} pixels and {where} is "
                    f"{labels.shape[1]}x{labels.shape[0]}: must be equal"
                )
            yield (
                name,
                {
                    "image": io.BytesIO(image),
                    "label": io.BytesIO(encode_labels(labels)),
                    "id": name,
                },
            )


def read(path: Path) -> bytes:
    """Returns the content of a file; raises `UserError` if there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def encode_labels(labels: Any) -> bytes:
    """Returns uint8 labels (h, w) as a grey PNG.

    Not as a palette one: TensorFlow would decode that to the brightness of its colours.
    """
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "PNG")
    return file.getvalue()
