"""Whether threads that read a data set object disturb each other."""

import contextlib
import logging
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from encnet_jax.data.bands import Pixels
from encnet_jax.data.datasets import read_ahead
from encnet_jax.errors import UserError

if TYPE_CHECKING:
    from encnet_jax.data.object_dataset import ObjectDataset

_PAUSES, _PAUSE_SECONDS = 500, 2e-4  # of one read, at different steps
_WATCHED_SECONDS = 0.2  # of one read, as it is many times slower meanwhile
_PACKAGE = str(Path(__file__).parents[1])
_log = logging.getLogger(__name__)


def check_threads(
    dataset: "ObjectDataset", indices: Sequence[int], alone: Sequence[int]
) -> None:
    """Reads examples again, alone and in threads, and warns of those that differ.

    Where threads are what makes the difference, as with one open file, one reads at a
    time from now on: `dataset.one_at_a_time` is set.

    Args:
        dataset: The data set.
        indices: Indices of the examples.
        alone: The `checksum` of each, read by one thread.

    Raises:
        UserError: An example cannot be read in another thread, even alone.
    """
    # Is the first the same when it is read again alone?
    first = dataset[indices[0]]
    if checksum(first.image, first.labels) != alone[0]:
        _warn_of_random(dataset, indices[0])
        return
    # Are all the same in threads?
    differing = _unlike(dataset, indices, alone)
    if not differing:
        return
    # Are they where threads take turns?
    took_turns, dataset.one_at_a_time = dataset.one_at_a_time, True
    still = differing if took_turns else _unlike(dataset, indices, alone)
    if problem := next((e for e in still.values() if e is not None), None):
        raise problem
    if still:
        dataset.one_at_a_time = took_turns
        _warn_of_random(dataset, min(still))
        return
    _log.warning(
        "WARNING: %s is not safe to read in threads: %s[%d] changes while others "
        "are read; so one is read at a time, which is slower; open files in "
        "__getitem__ to avoid it",
        *(dataset.name, dataset.name, min(differing)),
    )


def _warn_of_random(dataset: "ObjectDataset", index: int) -> None:
    _log.warning(
        "WARNING: %s[%d] is another each time it is read: a run cannot be "
        "repeated, nor resumed as if uninterrupted; leave augmentation to "
        "data.scale_range, data.flip, data.rotation, and data.color_jitter",
        *(dataset.name, index),
    )


def checksum(pixels: Pixels, labels: UInt8[np.ndarray, "..."]) -> int:
    """Returns a checksum of an example."""
    checksum = zlib.crc32(repr(pixels.shape).encode())
    checksum = zlib.crc32(np.ascontiguousarray(pixels).data, checksum)
    return zlib.crc32(np.ascontiguousarray(labels).data, checksum)


def _unlike(
    dataset: "ObjectDataset", indices: Sequence[int], alone: Sequence[int]
) -> dict[int, UserError | None]:
    """Reads examples in threads; returns those that differ, or fail, by index."""

    def read(index: int) -> int:
        with _paused():
            example = dataset[index]
        return checksum(example.image, example.labels)

    found = zip(indices, read_ahead(read, indices))
    expected = dict(zip(indices, alone))
    return {
        index: value if isinstance(value, UserError) else None
        for index, value in found
        if value != expected[index]
    }


@contextlib.contextmanager
def _paused() -> Iterator[None]:
    """Makes this thread sleep briefly between steps, so that others can interfere.

    Otherwise they interfere in one read out of hundreds, which a sample would miss.
    """
    passed: set[tuple[Any, int]] = set()
    end = time.monotonic() + _WATCHED_SECONDS

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if time.monotonic() > end:
            sys.settrace(None)
            return None
        if event == "call" and frame.f_code.co_filename.startswith(_PACKAGE):
            return None  # what it calls is traced all the same
        frame.f_trace_opcodes = True  # a line may both seek and read
        place = frame.f_code, frame.f_lasti
        if place not in passed and len(passed) < _PAUSES:
            passed.add(place)
            time.sleep(_PAUSE_SECONDS)
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)
