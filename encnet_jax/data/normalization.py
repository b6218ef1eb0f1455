"""Mean, deviation and range of the channels of a training split."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float64

from encnet_jax.data.bands import full_scale, scale_bands
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import checked, read_ahead
from encnet_jax.data.statistics import evenly_spaced

_IMAGES = 64  # that are read, evenly spaced
_SIDE = 512  # rows and columns of an image that count, evenly spaced


class BandSource(Protocol):
    """A split whose images can be read as they are stored."""

    info: DatasetInfo

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def bands(self, index: int) -> np.ndarray:
        """Returns the values of an image as stored, (h, w, c)."""
        ...


def measure_bands(
    dataset: BandSource, among: Sequence[int] | None = None
) -> DatasetInfo:
    """Returns the metadata of a split with what its images tell: a pure function.

    The range, unless it is declared, is that of the widest dtype, of 8 or 16 bits; mean
    and deviation are those of the scaled values of up to 64 images. A channel without
    deviation gets 1.

    Args:
        dataset: The split.
        among: Indices of the examples to choose from; by default all.

    Raises:
        UserError: An image cannot be read, or its range is unknown.
    """
    indices = evenly_spaced(range(len(dataset)) if among is None else among, _IMAGES)
    ranges = dataset.info.value_range
    if ranges is None:

        def greatest(index: int) -> int:
            return full_scale(dataset.bands(index), f"image {index}")

        high = max(map(checked, read_ahead(greatest, indices)))
        ranges = ((0, high),) * dataset.info.channels

    def sums(index: int) -> Float64[np.ndarray, "3 c"]:
        raw = dataset.bands(index)
        rows, columns = (
            evenly_spaced(range(length), _SIDE) for length in raw.shape[:2]
        )
        part = scale_bands(raw[np.ix_(rows, columns)], ranges, f"image {index}")
        values = part.reshape(-1, part.shape[-1]) / 65535
        count = np.full(values.shape[1], float(len(values)))
        return np.stack([count, values.sum(0), (values**2).sum(0)])

    total = sum(map(checked, read_ahead(sums, indices)))
    count, first, second = np.asarray(total, np.float64)
    mean = first / count
    std = np.sqrt(np.maximum(second / count - mean**2, 0))
    return dataclasses.replace(
        dataset.info,
        value_range=ranges,
        mean=tuple(mean.tolist()),
        std=tuple(np.where(std < 1e-6, 1.0, std).tolist()),
    )
