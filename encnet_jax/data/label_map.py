"""Raw labels, as stored in label files, to class indices."""

from collections.abc import Sequence
from numbers import Integral

import numpy as np
from jaxtyping import Int16, Integer, UInt8

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.errors import UserError


def map_labels(
    labels: Integer[np.ndarray, "h w"], info: DatasetInfo, name: str
) -> UInt8[np.ndarray, "h w"]:
    """Maps raw labels to class indices and `IGNORE_LABEL`.

    Raises:
        UserError: A label is not in the data set's label map; `name` is in the message.
    """
    table = label_table(info)
    mapped = table.take(labels)  # twice as fast as table[labels]
    if mapped.min() < 0:
        unknown = np.unique(labels[mapped < 0])
        classes = [raw for raw in range(256) if 0 <= table[raw] < info.num_classes]
        ignored = [raw for raw in range(256) if table[raw] == IGNORE_LABEL]
        to_ignore = f", and {_format_ranges(ignored)} to ignore" if ignored else ""
        raise UserError(
            f"{name}: label {unknown[0]}; allowed are {_format_ranges(classes)}"
            f"{to_ignore}"
        )
    return mapped.astype(np.uint8)


def unmap_labels(
    labels: UInt8[np.ndarray, "..."], info: DatasetInfo
) -> UInt8[np.ndarray, "..."]:
    """Returns raw labels that `map_labels` maps to the given class indices.

    Raises:
        UserError: Some are to be ignored, and the label map has no label for them.
    """
    if not info.label_map:
        return labels
    ignored = np.flatnonzero(label_table(info) == IGNORE_LABEL)
    if not ignored.size and np.any(labels == IGNORE_LABEL):
        raise UserError(
            f"labels to ignore ({IGNORE_LABEL}): the label map of {info.name!r} has "
            "none, and maps this one to a class"
        )
    table = np.full(256, ignored[-1] if ignored.size else 0, np.uint8)
    table[: info.num_classes] = published_labels(info)
    return table[labels]


def label_table(info: DatasetInfo) -> Int16[np.ndarray, "256"]:
    """Returns a lookup table from raw label to class, -1 for unknown labels.

    255 is ignored unless the label map says otherwise.
    """
    table = np.full(256, -1, np.int16)
    table[IGNORE_LABEL] = IGNORE_LABEL
    identity = {label: label for label in range(info.num_classes)}
    for raw, label in (info.label_map or identity).items():
        table[raw] = label
    return table


def as_classes(
    labels: np.ndarray, name: str, ignore_label: int | None = None
) -> UInt8[np.ndarray, "..."]:
    """Returns labels that are class indices, with `IGNORE_LABEL` for those to ignore.

    Args:
        labels: Integers or Booleans of any shape.
        name: What error messages call them.
        ignore_label: The label of what is ignored; None: 255.

    Raises:
        UserError: The labels are not integers in range, or `ignore_label` is not an
            integer.
    """
    ignored = IGNORE_LABEL if ignore_label is None else ignore_label
    if not isinstance(ignored, Integral) or isinstance(ignored, bool):
        raise UserError(f"ignore_label={ignore_label!r}: must be an integer")
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    void, highest = None, IGNORE_LABEL
    if ignored != IGNORE_LABEL:
        void, highest = labels == ignored, IGNORE_LABEL - 1
        labels = np.where(void, 0, labels)
    if not np.issubdtype(labels.dtype, np.integer) or not (
        0 <= labels.min() <= labels.max() <= highest
    ):
        range_ = ""
        if np.issubdtype(labels.dtype, np.number):
            range_ = f", {labels.min()} to {labels.max()}"
        raise UserError(
            f"{name}: {labels.dtype}{range_}; must be integers from 0 to "
            f"{IGNORE_LABEL - 1}, or ignore_label={ignored}"
        )
    classes = labels.astype(np.uint8)
    if void is not None:
        classes[void] = IGNORE_LABEL
    return classes


def published_labels(info: DatasetInfo) -> UInt8[np.ndarray, " n"]:
    """Returns the raw label of each class, as the data set publishes it.

    The inverse of `label_table`; of several labels of a class the lowest.
    """
    labels = np.arange(info.num_classes)
    for label, index in sorted(info.label_map.items(), reverse=True):
        if index != IGNORE_LABEL:
            labels[index] = label
    return labels.astype(np.uint8)


def _format_ranges(values: Sequence[int]) -> str:
    """Formats 0, 1, 2, 7 as `0 to 2, 7`."""
    parts, first = [], 0
    for index, value in enumerate(values):
        if index + 1 == len(values) or values[index + 1] != value + 1:
            start = values[first]
            prefix = "" if start == value else f"{start} to "
            parts.append(f"{prefix}{value}")
            first = index + 1
    return ", ".join(parts)
