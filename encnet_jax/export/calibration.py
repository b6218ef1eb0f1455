"""Images that an int8 export is calibrated on, and what it keeps of the labels."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import UInt8

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.errors import UserError
from encnet_jax.export.input_size import PrepareFn
from encnet_jax.predict.find_images import find_images
from encnet_jax.predict.read_image import read_image

_FEW = 16  # images, below which single ones set the ranges
_log = logging.getLogger(__name__)


class CalibrationImages(Sequence[UInt8[np.ndarray, "h w 3"]]):
    """Images of a folder as the exported graph takes them, read when asked for.

    Args:
        paths: Image files.
        info: How their values are scaled to uint8.
        prepare: Resizes an image.
        smallest: Minimum height and width that the graph takes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        info: DatasetInfo,
        prepare: PrepareFn,
        smallest: int,
    ):
        self.paths = paths
        self._info, self._prepare, self._smallest = info, prepare, smallest

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[UInt8[np.ndarray, "h w 3"]]: ...

    def __getitem__(
        self, index: int | slice
    ) -> UInt8[np.ndarray, "h w 3"] | Sequence[UInt8[np.ndarray, "h w 3"]]:
        """Returns one image; a `UserError` names a file that cannot be read."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path = self.paths[index]
        pixels = self._prepare(read_image(path, self._info))
        height, width, _ = pixels.shape
        if min(height, width) < self._smallest:
            raise UserError(
                f"{path}: {height}x{width} pixels in the network; height and width "
                f"must be at least {self._smallest}"
            )
        return pixels

    def check(self) -> None:
        """Reads all; raises `UserError` for the first that cannot be used."""
        for index in range(len(self)):
            self[index]


def find_calibration_images(folder: Path, count: int) -> list[Path]:
    """Returns `count` image files of a folder, evenly spaced in the order of names.

    All of them if there are fewer, with a warning if there are very few.

    Raises:
        UserError: No such folder, one without images, or a count below 1.
    """
    if count < 1:
        raise UserError(f"--calibration_images={count}: must be at least 1")
    if not os.path.isdir(folder):  # unlike `Path.is_dir` never raises
        raise UserError(f"--calibration={folder}: no such folder")
    try:
        found = find_images([str(folder)])
    except UserError as error:  # starts with the folder
        raise UserError(f"--calibration={error}") from error
    count = min(count, len(found))
    if count < _FEW:
        _log.warning(
            "%d calibration images: with fewer than %d, single images decide what "
            "range of values int8 covers",
            count,
            _FEW,
        )
    return [found[i * len(found) // count] for i in range(count)]
