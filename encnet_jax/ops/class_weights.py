"""The check of the class weights of a loss."""

from collections.abc import Iterable
from typing import Any

import numpy as np

# The range of float32, in which losses are computed.
_LEAST = float(np.finfo(np.float32).tiny)
_MOST = float(np.finfo(np.float32).max)


def check_class_weights(weights: Iterable[Any]) -> None:
    """Checks the weights by which the pixels of each class count.

    Args:
        weights: One number per class.

    Raises:
        ValueError: A weight is not a number, not finite, or negative, or all are 0.
    """
    values = []
    for index, weight in enumerate(weights):
        try:
            value = _as_float(weight)
        except (TypeError, ValueError) as error:
            message = f"weight {index} is {weight!r}: must be a number"
            raise ValueError(message) from error
        if not 0 <= value <= _MOST:
            raise ValueError(f"weight {index} is {weight}: must be finite, at least 0")
        values.append(value)
    if not max(values, default=0) >= _LEAST:
        raise ValueError("all weights are 0: one at least must be above 0")


def _as_float(weight: Any) -> float:
    """Returns a number of any type, or of an array without axes, as a float."""
    # `float` also takes text, Booleans, and arrays of one element.
    array = np.asarray(weight)
    if array.ndim or array.dtype.kind in "bSU":
        raise TypeError("not a number")
    return float(weight)
