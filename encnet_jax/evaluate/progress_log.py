"""Metrics of finished images on disk, so that an interrupted evaluation resumes."""

import contextlib
import glob
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from encnet_jax.evaluate.accumulator import ImageMetrics
from encnet_jax.files import whole_file
from encnet_jax.run.distributed import sum_over_hosts
from encnet_jax.run.lock import locked

_SYNC_SECONDS = 30


@contextlib.contextmanager
def open_progress_log(
    path: Path, identity: dict[str, Any], num_classes: int
) -> Iterator["EvalProgressLog"]:
    """Opens the log of an evaluation for this process alone.

    Args:
        path: File of the scores; those of the log are beside it.
        identity: See `EvalProgressLog`, as for `num_classes`.
        num_classes: Likewise.

    Raises:
        UserError: Another process evaluates to this file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.stem}.lock")
    taken = f"{path}: another evaluation is writing it"
    with locked(lock, taken, "wait for it, or stop it"):
        log = EvalProgressLog(path.with_suffix(".partial"), identity, num_classes)
        try:
            yield log
        finally:
            log.close()


class EvalProgressLog:
    """One line per finished image; each host appends to its own file.

    The first line identifies the evaluation. A file of another evaluation, such as that
    of another checkpoint, is ignored and overwritten.

    Args:
        path: Prefix of the files, `PATH-0.jsonl`, `PATH-1.jsonl`, ...
        identity: Everything that the metrics depend on, serializable as JSON.
        num_classes: Number of classes.

    Attributes:
        done: Metrics of the images that any host has finished.
    """

    def __init__(self, path: Path, identity: dict[str, Any], num_classes: int):
        self._path = path
        self._header = json.dumps(identity, sort_keys=True)
        self._num_classes = num_classes
        done: dict[int, ImageMetrics] = {}
        own = self._file(jax.process_index())
        lines = [self._header]
        for file in self._files():
            records = self._read(file)
            done |= {record.index: record for record, _ in records}
            if file == own:
                lines += [line for _, line in records]
        self.done = list(done.values())
        if jax.process_count() > 1:  # nobody writes before all have read
            multihost_utils.sync_global_devices("progress_log")
        # Rewritten, because a kill can truncate the last line.
        with whole_file(own) as new:
            new.write("".join(f"{line}\n" for line in lines).encode())
        # Open from here on: should another evaluation replace the file, where there are
        # no locks, it keeps its lines to itself.
        self._own = os.open(own, os.O_WRONLY | os.O_APPEND)
        self._synced = time.monotonic()

    def add(self, metrics: ImageMetrics) -> None:
        """Records that an image is finished."""
        os.write(self._own, f"{metrics.to_json()}\n".encode())
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Makes the lines of this host visible to the others, and lasting.

        File systems over a network may keep them back as long as the file is open.
        """
        with contextlib.suppress(OSError):  # of a file system that cannot
            os.fsync(self._own)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Closes the file of this host."""
        os.close(self._own)

    def lines(self) -> dict[int, str]:
        """Returns the lines of all finished images by index, once all hosts did `sync`.

        Those of hosts with a workdir of their own are missing.
        """
        found: dict[int, str] = {}
        for file in self._files():
            found |= {metrics.index: line for metrics, line in self._read(file)}
        return dict(sorted(found.items()))

    def remove(self) -> None:
        """Deletes the files; call it when the results are written."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("progress_log")
        if jax.process_index() == 0:
            for file in self._files():
                file.unlink(missing_ok=True)

    def _file(self, process: int) -> Path:
        return self._path.with_name(f"{self._path.name}-{process}.jsonl")

    def _files(self) -> list[Path]:
        pattern = f"{glob.escape(self._path.name)}-*.jsonl"
        return sorted(self._path.parent.glob(pattern))

    def _read(self, file: Path) -> list[tuple[ImageMetrics, str]]:
        lines = file.read_text(errors="replace").split("\n")
        if lines[0] != self._header:
            return []
        records = []
        # After the last line break there is nothing, or a truncated line.
        for line in lines[1:-1]:
            try:
                records.append((ImageMetrics.from_json(line, self._num_classes), line))
            except (ValueError, KeyError, TypeError, IndexError):
                break  # damaged, as by a loss of power: these images are done again
        return records


def known_to_all_hosts(
    known: Sequence[ImageMetrics], num_images: int
) -> list[ImageMetrics]:
    """Returns the images that every host knows to be finished.

    Those that only some know, as with workdirs of their own, are done again: hosts that
    leave out different images would not share the others alike.
    """
    times = np.zeros(num_images, np.int64)
    times[[metrics.index for metrics in known]] = 1
    everywhere = sum_over_hosts(times) == jax.process_count()
    return [metrics for metrics in known if everywhere[metrics.index]]
