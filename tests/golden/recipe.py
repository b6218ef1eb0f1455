"""The pseudo-random weights and inputs that the originals were given.

Every array is a function of its name, its shape and one seed, so the numbers of the
originals can be tested without storing a weight.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def draw(
    key: str, shape: tuple[int, ...], seed: int, factor: float = 1.0, rule: str = ""
) -> np.ndarray:
    """Returns the array of one name: float32, or int64 for counters.

    Args:
        key: The name of the parameter in the original, or of the input.
        shape: Of the array.
        seed: Of the case.
        factor: What the case multiplies this array by.
        rule: `normal` or `relu_normal` for inputs; else the last part of `key` decides.
    """
    kind = rule or key.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    return (_values(_generator(key, seed), kind, shape) * factor).astype(np.float32)


def draw_normals(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Returns the standard normals of one name before they are rounded to float32."""
    return _generator(key, seed).standard_normal(shape)


def _generator(key: str, seed: int) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(key.encode()) ^ seed)


def _values(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "relu_normal":
        return np.maximum(rng.standard_normal(shape), 0)
    if kind in ("bias", "running_mean"):
        return 0.1 * rng.standard_normal(shape)
    if kind == "running_var":
        return 1 + 0.2 * rng.random(shape)
    if kind == "scale":
        return rng.uniform(-1, 0, shape)
    if kind == "codewords":
        bound = 1 / np.sqrt(shape[0] * shape[1])
        return rng.uniform(-bound, bound, shape)
    if kind != "weight":
        raise ValueError(f"no rule for {kind!r}")
    if len(shape) == 1:  # of a batch norm
        return 1 + 0.1 * rng.standard_normal(shape)
    return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))


def draw_weights(facts: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Returns the state dict of a case: the original's names to arrays."""
    factors = facts["factors"]
    return {
        key: draw(key, tuple(shape), seed, factors.get(key, 1.0))
        for key, shape in facts["state_dict"].items()
    }


def checksum(weights: Mapping[str, np.ndarray]) -> int:
    """Returns the CRC-32 of all float entries in order, as the cases state it."""
    crc = 0
    for value in weights.values():
        if value.dtype == np.float32:
            crc = zlib.crc32(np.ascontiguousarray(value, "<f4").tobytes(), crc)
    return crc
