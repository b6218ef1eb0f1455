"""The comparison that every test here makes."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike

from .cases import Case

Check = Callable[..., None]


@pytest.fixture
def check(record_property) -> Check:
    """Returns a function that compares a result with the stored one.

    It records what it found, for `python -m tests.golden.report`.
    """

    def compare(
        case: Case,
        name: str,
        actual: ArrayLike,
        *,
        expected: ArrayLike | None = None,
        allowed: ArrayLike | None = None,
    ) -> None:
        actual = case.kept(name, np.asarray(actual, np.float64))
        expected = case.arrays[name] if expected is None else np.asarray(expected)
        allowed = case.allowed(name) if allowed is None else allowed
        assert actual.shape == expected.shape, name
        errors = np.abs(actual - expected)
        ratios = np.where(errors == 0, 0, errors / np.maximum(allowed, 1e-300))
        worst = np.unravel_index(np.argmax(ratios), ratios.shape)
        limit = float(np.broadcast_to(allowed, errors.shape)[worst])
        largest = float(np.abs(expected).max())
        found = (case.name, name, largest, float(errors[worst]), limit)
        record_property("parity", found)
        # Not "> 1": that would let NaN pass.
        assert ratios[worst] <= 1, f"{case.name} {name}: {errors[worst]} > {limit}"

    return compare
