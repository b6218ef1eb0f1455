"""Statistics of a split: image sizes, class frequencies, and problems."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from PIL import Image

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import (
    Dataset,
    Example,
    FileDataset,
    TFRecordDataset,
    map_examples,
)
from encnet_jax.errors import UserError

LabelCounts = tuple[Int64[np.ndarray, "256"], tuple[int, int]]


@dataclasses.dataclass
class Statistics:
    """Counts over the valid examples of a split.

    For image classification, each image counts as one pixel of its class.

    Attributes:
        pixels: Pixels of each class.
        pixels_with_class: All pixels of the images in which each class occurs.
        images: Images in which each class occurs.
        void: Ignored pixels.
        void_images: Images with ignored pixels.
        sizes: Height and width of each image.
        indices: Indices of the valid examples, in order.
        problems: One line for each invalid example or file.
    """

    pixels: Int64[np.ndarray, " n"]
    pixels_with_class: Int64[np.ndarray, " n"]
    images: Int64[np.ndarray, " n"]
    void: int = 0
    void_images: int = 0
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    indices: list[int] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def empty(cls, num_classes: int) -> "Statistics":
        """Returns the statistics of no images."""
        zeros = np.zeros((3, num_classes), np.int64)
        return cls(pixels=zeros[0], pixels_with_class=zeros[1], images=zeros[2])

    def add(
        self, index: int, counts: Int64[np.ndarray, "256"], size: tuple[int, int]
    ) -> None:
        """Adds an image, given its number of pixels of each label."""
        pixels = counts[: len(self.pixels)]
        self.pixels += pixels
        self.images += pixels > 0
        self.pixels_with_class += np.where(pixels > 0, counts.sum(), 0)
        self.void += int(counts[IGNORE_LABEL])
        self.void_images += bool(counts[IGNORE_LABEL])
        self.sizes.append(size)
        self.indices.append(index)


def summarize(
    dataset: Dataset,
    indices: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """Reads examples and counts; invalid ones become `problems`.

    Args:
        dataset: The data set to read.
        indices: Indices of the examples.
        progress: Called with the number of examples read so far.
    """
    result = Statistics.empty(dataset.info.num_classes)
    if isinstance(dataset, FileDataset):
        result.problems += dataset.problems
    counts = map_examples(dataset, indices, _count_example)
    for done, (index, counted) in enumerate(zip(indices, counts), 1):
        if isinstance(counted, UserError):
            result.problems.append(str(counted))
        else:
            result.add(index, *counted)
        progress(done)
    return result


def _count_example(example: Example) -> LabelCounts:
    """Returns the number of pixels, or images, of each class, and the image's size."""
    height, width = example.image.shape[:2]
    return label_histogram(np.atleast_2d(example.labels)), (height, width)


def count_labels(labels: UInt8[np.ndarray, "h w"]) -> LabelCounts:
    """Returns the number of pixels of each class index, and height and width."""
    height, width = labels.shape
    return label_histogram(labels), (height, width)


def label_histogram(labels: UInt8[np.ndarray, "h w"]) -> Int64[np.ndarray, "256"]:
    """Returns the number of pixels of each value; twice as fast as `np.bincount`."""
    return np.array(Image.fromarray(labels).histogram(), np.int64)


def read_label_counts(dataset: Dataset, index: int) -> LabelCounts:
    """Returns `count_labels` of an example; a stored image is not decoded for it."""
    if isinstance(dataset, (FileDataset, TFRecordDataset)):
        return count_labels(dataset.encoded(index)[1])
    return count_labels(dataset[index].labels)


def evenly_spaced(indices: Sequence[int], count: int) -> list[int]:
    """Returns `count` evenly spaced items; all if there are fewer."""
    if len(indices) <= count:
        return list(indices)
    return [indices[i * len(indices) // count] for i in range(count)]


def median_frequency_weights(statistics: Statistics) -> Float64[np.ndarray, " n"]:
    """Returns class weights by median frequency balancing.

    The frequency of a class is its share of the pixels of the images in which it occurs
    (Eigen and Fergus, arXiv 1411.4734, as adopted by SegNet); the weight is the median
    frequency divided by that of the class, and 1 for classes that do not occur.
    """
    occurs = statistics.pixels > 0
    frequency = statistics.pixels[occurs] / statistics.pixels_with_class[occurs]
    weights = np.ones(len(occurs))
    weights[occurs] = np.median(frequency) / frequency if occurs.any() else 1.0
    return weights


def log_weights(statistics: Statistics) -> Float64[np.ndarray, " n"]:
    """Returns the class weights 1 / ln(1.02 + share of the labeled pixels).

    ENet's (Paszke et al., arXiv 1606.02147): between 1.4, of a class with all pixels,
    and 50.5, of one with none.
    """
    labeled = max(int(statistics.pixels.sum()), 1)
    return 1 / np.log(1.02 + statistics.pixels / labeled)


# Value of `loss.class_balance` -> the weights by that rule.
CLASS_BALANCES: dict[str, Callable[[Statistics], Float64[np.ndarray, " n"]]] = {
    "median_frequency": median_frequency_weights,
    "log": log_weights,
}


def describe(statistics: Statistics, info: DatasetInfo) -> str:
    """Formats sizes and frequencies as text, one line per class and one for void.

    Of images in classes, the frequencies are numbers and shares of images.
    """
    count = len(statistics.sizes)
    by_area = sorted(statistics.sizes, key=lambda size: size[0] * size[1])
    smallest, median, largest = (
        f"{w}x{h}" for h, w in (by_area[0], by_area[count // 2], by_area[-1])
    )
    sizes = f"sizes: smallest {smallest}, median {median}, largest {largest}"
    width = max(map(len, (*info.class_names, "class")))
    if info.task == "classification":
        lines = [sizes, f"{'class':<{width}}  {'images':>8}  {'images %':>8}"]
        for name, images in zip(info.class_names, statistics.images):
            share = 100 * images / count
            lines.append(f"{name:<{width}}  {images:>8}  {share:>8.2f}")
        return "\n".join(lines)

    def line(name: str, pixels: int, total: int, images: int) -> str:
        pixel_share, image_share = 100 * pixels / max(total, 1), 100 * images / count
        return f"{name:<{width}}  {pixel_share:>8.3f}  {image_share:>8.2f}"

    labeled = int(statistics.pixels.sum())
    total = labeled + statistics.void
    rows = zip(info.class_names, statistics.pixels, statistics.images)
    return "\n".join(
        [
            sizes,
            f"{'class':<{width}}  {'pixels %':>8}  {'images %':>8}",
            *(line(name, pixels, labeled, images) for name, pixels, images in rows),
            line("void", statistics.void, total, statistics.void_images),
            "Shares of the labeled pixels; for void, of all pixels.",
        ]
    )
