"""What a split is like: sizes, how frequent the classes are, and what is faulty."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import Dataset, Example, FileDataset, map_examples
from encnet_jax.errors import UserError


@dataclasses.dataclass
class Statistics:
    """Counts over the examples of a split that can be used.

    Attributes:
        pixels: int64 (n,), pixels of each class.
        pixels_beside: int64 (n,), all pixels of the images in which the class occurs.
        images: int64 (n,), images in which it occurs.
        void: Pixels to ignore.
        void_images: Images with such.
        sizes: Height and width of each image.
        indices: Of the examples, in order.
        problems: A line for each example or file that cannot be used.
    """

    pixels: np.ndarray
    pixels_beside: np.ndarray
    images: np.ndarray
    void: int = 0
    void_images: int = 0
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    indices: list[int] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of_classes(cls, count: int) -> "Statistics":
        """Returns the statistics of no images."""
        zeros = np.zeros((3, count), np.int64)
        return cls(pixels=zeros[0], pixels_beside=zeros[1], images=zeros[2])

    def add(self, index: int, counts: np.ndarray, size: tuple[int, int]) -> None:
        """Adds an image by its pixels of each label, int64 (256,)."""
        pixels = counts[: len(self.pixels)]
        self.pixels += pixels
        self.images += pixels > 0
        self.pixels_beside += np.where(pixels > 0, counts.sum(), 0)
        self.void += int(counts[IGNORE_LABEL])
        self.void_images += bool(counts[IGNORE_LABEL])
        self.sizes.append(size)
        self.indices.append(index)


def summarize(
    dataset: Dataset,
    indices: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """Reads examples and counts; those that cannot be used become `problems`.

    Args:
        dataset: Where they are read.
        indices: Of the examples.
        progress: Called with the index of examples done so far.
    """
    result = Statistics.of_classes(dataset.info.num_classes)
    if isinstance(dataset, FileDataset):
        result.problems += dataset.problems
    findings = map_examples(dataset, indices, _measure)
    for done, (index, found) in enumerate(zip(indices, findings), 1):
        if isinstance(found, UserError):
            result.problems.append(str(found))
        else:
            result.add(index, *found)
        progress(done)
    return result


def _measure(example: Example) -> tuple[np.ndarray, tuple[int, int]]:
    height, width = example.labels.shape
    return np.bincount(example.labels.ravel(), minlength=256), (height, width)


def spread(indices: Sequence[int], count: int) -> list[int]:
    """Returns `count` of the indices, evenly spread; all if they are fewer."""
    if len(indices) <= count:
        return list(indices)
    return [indices[place * len(indices) // count] for place in range(count)]


def median_frequency_weights(statistics: Statistics) -> np.ndarray:
    """Returns float64 (n,): the median frequency over that of the class.

    The frequency is the share of a class in the pixels of the images in which it occurs
    (Eigen and Fergus, arXiv 1411.4734, whose rule SegNet took over). The median is over
    the classes that occur; the others get 1.
    """
    occurs = statistics.pixels > 0
    frequency = statistics.pixels[occurs] / statistics.pixels_beside[occurs]
    weights = np.ones(len(occurs))
    weights[occurs] = np.median(frequency) / frequency if occurs.any() else 1.0
    return weights


def describe(statistics: Statistics, info: DatasetInfo) -> str:
    """Returns sizes and frequencies as text: a line a class, then void."""
    count = len(statistics.sizes)
    by_area = sorted(statistics.sizes, key=lambda size: size[0] * size[1])
    smallest, median, largest = (
        f"{width}x{height}"
        for height, width in (by_area[0], by_area[count // 2], by_area[-1])
    )
    indent = max(map(len, (*info.class_names, "class")))

    def line(name: str, pixels: int, of: int, images: int) -> str:
        share, presence = 100 * pixels / max(of, 1), 100 * images / count
        return f"{name:<{indent}}  {share:>8.3f}  {presence:>8.2f}"

    labeled = int(statistics.pixels.sum())
    total = labeled + statistics.void
    rows = zip(info.class_names, statistics.pixels, statistics.images)
    return "\n".join(
        [
            f"sizes: smallest {smallest}, median {median}, largest {largest}",
            f"{'class':<{indent}}  {'pixels %':>8}  {'images %':>8}",
            *(line(name, pixels, labeled, images) for name, pixels, images in rows),
            line("void", statistics.void, total, statistics.void_images),
            "Pixels are shares of the labeled ones, those of void of all.",
        ]
    )
