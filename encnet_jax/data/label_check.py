"""Checks of the labels of a split: are there any, of which classes, and 0 and 255 only.

Masks of 0 and 255 are the commonest binary form, and 255 is the commonest mark of
ignored pixels. So where nothing says which of them it is, the labels are refused.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import (
    Dataset,
    FileDataset,
    checked,
    map_examples,
    read_ahead,
)
from encnet_jax.data.input_files import read_file
from encnet_jax.data.label_io import decode_labels
from encnet_jax.data.label_map import label_table
from encnet_jax.data.statistics import (
    Statistics,
    count_labels,
    evenly_spaced,
    read_label_counts,
)
from encnet_jax.errors import UserError

# Checking more files than this when a split is opened takes minutes, not seconds.
_MAX_CHECKED = 5000
_SAMPLE = 300  # label files of larger splits


def check_split(dataset: FileDataset, split: str) -> None:
    """Raises the first problem of a split of files; sets `dataset.statistics`.

    Reads all examples; of more than 5,000 only some label files, for `label_problem`.

    Args:
        dataset: The split.
        split: Its name, for error messages.

    Raises:
        UserError: A file is missing or invalid, or as `label_problem`.
    """
    if dataset.problems:
        raise UserError(dataset.problems[0])
    statistics = Statistics.empty(dataset.info.num_classes)
    indices: list[int] = list(range(len(dataset)))
    counts: Iterator[tuple[np.ndarray, tuple[int, int]] | UserError]
    if len(dataset) > _MAX_CHECKED:
        indices = evenly_spaced(indices, _SAMPLE)
        counts = read_ahead(lambda index: read_label_counts(dataset, index), indices)
    else:
        counts = map_examples(dataset, indices, lambda e: count_labels(e.labels))
    for index, counted in zip(indices, counts):
        statistics.add(index, *checked(counted))
    if problem := label_problem(dataset, statistics, split):
        raise UserError(problem)
    if len(indices) == len(dataset):
        dataset.statistics = statistics


def label_problem(dataset: Dataset, statistics: Statistics, split: str) -> str:
    """Returns why nothing can be learned from the labels of a split; "" if it can.

    Either all are ignored, or, in files, they are nothing but 0 and 255 without a
    declared meaning of 255.

    Args:
        dataset: The split.
        statistics: Counts of the examples to judge by.
        split: Its name.
    """
    count = len(statistics.indices)
    where = f"{dataset.info.name}, {split}: all labels of {count} images are"
    if isinstance(dataset, FileDataset) and _only_0_and_255(dataset, statistics):
        first = dataset.pairs[statistics.indices[0]][1]
        return f"{where} 0 or 255 ({first}, ...): {_remedy(dataset.info)}"
    if count and not statistics.pixels.any():
        return f"{where} ignored: no pixel has a class"
    return ""


def check_label_counts(
    name: str, counts: Int64[np.ndarray, "256"], ignore_label: int | None
) -> None:
    """Raises `UserError` if nothing can be learned from labels that are no files.

    Args:
        name: What error messages call them.
        counts: Number of pixels of each class index, and of those ignored.
        ignore_label: What says that 255 is ignored, unless None.
    """
    rest = counts[1:IGNORE_LABEL]
    if ignore_label is None and counts[IGNORE_LABEL] and not rest.any():
        raise UserError(
            f"{name}: nothing but 0 and 255; if 255 is a class, pass labels == 255, "
            "which is 0 and 1; if it marks ignored pixels, pass ignore_label=255"
        )
    if not counts[:IGNORE_LABEL].any():
        raise UserError(f"{name}: no pixel has a class; all are ignored")


def unlabeled_classes(statistics: Statistics, info: DatasetInfo) -> str:
    """Returns a line that names the classes without a training example, or ""."""
    names = [name for name, n in zip(info.class_names, statistics.pixels) if not n]
    if not names:
        return ""
    kind = "image" if info.task == "classification" else "pixel"
    return (
        f"no training {kind} of {len(names)} of {info.num_classes} classes, which "
        f"cannot be learned: {', '.join(names)}"
    )


def _only_0_and_255(dataset: FileDataset, statistics: Statistics) -> bool:
    """Returns whether the files hold 255, without a declared meaning, and 0 only."""
    info = dataset.info
    if not statistics.void or IGNORE_LABEL in info.label_map:
        return False
    zero = label_table(info)[0]
    if any(n for index, n in enumerate(statistics.pixels) if index != zero):
        return False
    # Rare: void pixels may also come from other ignored labels, or from colors.

    def holds_others(index: int) -> bool:
        path = dataset.pairs[index][1]
        values = np.unique(decode_labels(read_file(path), str(path)))
        return bool(np.setdiff1d(values, (0, IGNORE_LABEL)).size)

    found = read_ahead(holds_others, statistics.indices)
    return not any(isinstance(other, UserError) or other for other in found)


def _remedy(info: DatasetInfo) -> str:
    if info.name == "folder":
        return (
            'if 255 is a class, give it "label": 255 in classes.json; if it marks '
            'ignored pixels, add 255 to "ignore" there'
        )
    return (
        f"not those of {info.name}; for masks of your own, data.name=folder has a "
        "classes.json that says what 255 is"
    )
