"""Fingerprints of data sets: whether an interrupted evaluation met the same data."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from encnet_jax.data.dataset_info import DatasetInfo

# What the results do not depend on.
_DESCRIPTIVE = ("splits", "citation", "homepage", "license", "display_channels")


def fingerprint(info: DatasetInfo, *parts: Any) -> str:
    """Returns a digest of a data set's metadata and of what identifies its examples.

    Args:
        info: The data set; every field counts that says what labels and pixels mean.
        *parts: Arrays, or values with a complete `repr`.
    """
    digest = hashlib.sha256()
    for field in dataclasses.fields(info):
        if field.name not in _DESCRIPTIVE:
            value = getattr(info, field.name)
            items = sorted(value.items()) if hasattr(value, "items") else value
            digest.update(f"{field.name}={items!r};".encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()


def file_states(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Returns name, size and time of modification (ns) of files; -1 if missing."""
    states = []
    for path in paths:
        try:
            stat = os.stat(path)
            states.append((str(path), stat.st_size, stat.st_mtime_ns))
        except OSError:  # reading it will say so
            states.append((str(path), -1, -1))
    return states
