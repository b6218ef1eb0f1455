"""Label maps in MATLAB files, the format of SBD and PASCAL-Context."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from encnet_jax.data.input_files import read_file
from encnet_jax.errors import UserError

# Raised by SciPy for damaged files, other formats, and missing variables.
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


def read_label_map(path: Path, *names: str, highest: int) -> Integer[np.ndarray, "h w"]:
    """Returns the label map (h, w) in a MATLAB file, of an integer type.

    Args:
        path: The file.
        *names: Name of the variable, and of its field if it is a struct.
        highest: The largest label allowed.

    Raises:
        UserError: The file is missing, damaged, without such a map, or has a label
                out of range.
    """
    where = ".".join(names)
    try:
        value: Any = loadmat(io.BytesIO(read_file(path)), variable_names=names[:1])
        for name in names:
            value = value[name]
            value = value.item() if value.dtype == object else value
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot read {where}: {error}") from error
    if value.ndim != 2 or value.size == 0 or value.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {where} is {value.dtype} {value.shape}; allowed are "
            "integers (height, width)"
        )
    outside = value[(value < 0) | (value > highest)]
    if outside.size:
        raise UserError(f"{path}: label {outside[0]}; allowed are 0 to {highest}")
    return value
