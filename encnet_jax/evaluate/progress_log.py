"""Metrics of finished images on disk, so that an interrupted evaluation resumes."""

import json
import os
import weakref
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from encnet_jax.evaluate.accumulator import ImageMetrics
from encnet_jax.files import whole_file


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
        path.parent.mkdir(parents=True, exist_ok=True)
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
        # Open from here on: should another evaluation replace the file, it keeps its
        # lines to itself.
        self._own = os.open(own, os.O_WRONLY | os.O_APPEND)
        weakref.finalize(self, os.close, self._own)

    def add(self, metrics: ImageMetrics) -> None:
        """Records that an image is finished."""
        os.write(self._own, f"{metrics.to_json()}\n".encode())

    def lines(self) -> dict[int, str]:
        """Returns the lines of all finished images by index; all hosts must be done.

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
        return sorted(self._path.parent.glob(f"{self._path.name}-*.jsonl"))

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
