"""What a split is like: sizes, how frequent the classes are, and what is faulty."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import Example, FileSource, Source, examine
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
        numbers: Of the examples, in order.
        faults: A line for each example or file that cannot be used.
    """

    pixels: np.ndarray
    pixels_beside: np.ndarray
    images: np.ndarray
    void: int = 0
    void_images: int = 0
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    numbers: list[int] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of_classes(cls, count: int) -> "Statistics":
        """Returns the statistics of no images."""
        zeros = np.zeros((3, count), np.int64)
        return cls(pixels=zeros[0], pixels_beside=zeros[1], images=zeros[2])

    def add(self, number: int, counts: np.ndarray, size: tuple[int, int]) -> None:
        """Adds an image by its pixels of each label, int64 (256,)."""
        pixels = counts[: len(self.pixels)]
        self.pixels += pixels
        self.images += pixels > 0
        self.pixels_beside += np.where(pixels > 0, counts.sum(), 0)
        self.void += int(counts[IGNORE_LABEL])
        self.void_images += bool(counts[IGNORE_LABEL])
        self.sizes.append(size)
        self.numbers.append(number)


def survey(
    source: Source,
    numbers: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """Reads examples and counts; those that cannot be used become `faults`.

    Args:
        source: Where they are read.
        numbers: Of the examples.
        progress: Called with the number of examples done so far.
    """
    result = Statistics.of_classes(source.info.num_classes)
    if isinstance(source, FileSource):
        result.faults += source.faults
    findings = examine(source, numbers, _measure)
    for done, (number, found) in enumerate(zip(numbers, findings), 1):
        if isinstance(found, UserError):
            result.faults.append(str(found))
        else:
            result.add(number, *found)
        progress(done)
    return result


def _measure(example: Example) -> tuple[np.ndarray, tuple[int, int]]:
    height, width = example.labels.shape
    return np.bincount(example.labels.ravel(), minlength=256), (height, width)


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """Returns `count` of the numbers, evenly spread; all if they are fewer."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[place * len(numbers) // count] for place in range(count)]


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

    labelled = int(statistics.pixels.sum())
    total = labelled + statistics.void
    rows = zip(info.class_names, statistics.pixels, statistics.images)
    return "\n".join(
        [
            f"sizes: smallest {smallest}, median {median}, largest {largest}",
            f"{'class':<{indent}}  {'pixels %':>8}  {'images %':>8}",
            *(line(name, pixels, labelled, images) for name, pixels, images in rows),
            line("void", statistics.void, total, statistics.void_images),
            "Pixels are shares of the labelled ones, those of void of all.",
        ]
    )
