"""Label maps in MATLAB files, as SBD and PASCAL-Context publish them."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from encnet_jax.data.builders.segmentation import read
from encnet_jax.errors import UserError

# What SciPy raises for files that are damaged, of another kind, or lack the variable.
_UNREADABLE = (
    MatReadError,
    LookupError,
    NotImplementedError,
    OSError,
    TypeError,
    UnboundLocalError,
    ValueError,
    zlib.error,
)


def read_label_map(path: Path, *names: str, highest: int) -> np.ndarray:
    """Returns the label map (h, w) of a MATLAB file, whole numbers.

    Args:
        path: The file.
        *names: A variable, and then the field of it if it is a struct.
        highest: No label may be above it.

    Raises:
        UserError: Missing, damaged, without such a map, or with a label out of range.
    """
    where = ".".join(names)
    try:
        value: Any = loadmat(io.BytesIO(read(path)), variable_names=names[:1])
        for name in names:
            value = value[name]
            value = value.item() if value.dtype == object else value
    except _UNREADABLE as error:
        raise UserError(f"{path}: no {where} can be read from it: {error}") from error
    if value.ndim != 2 or value.size == 0 or value.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {where} is {value.dtype} {value.shape}; allowed are whole "
            "numbers (height, width)"
        )
    outside = value[(value < 0) | (value > highest)]
    if outside.size:
        raise UserError(f"{path}: label {outside[0]}; allowed are 0 to {highest}")
    return value
