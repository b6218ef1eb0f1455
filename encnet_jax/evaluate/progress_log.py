"""What is done of an evaluation, on disk, so that a killed one goes on where it was."""

import json
import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from encnet_jax.evaluate.accumulator import ImageMetrics


class EvalProgressLog:
    """A line for each image that is scored; each host writes a file of its own.

    The first line of a file says what it belongs to. A file that belongs to something
    else, such as another checkpoint, is not read and gives way.

    Args:
        path: The files are called this and `-0.jsonl`, `-1.jsonl`.
        identity: All that a record depends on, as JSON takes it.
        num_classes: Of the records.
    """

    def __init__(self, path: Path, identity: dict[str, Any], num_classes: int):
        self._path = path
        self._header = json.dumps(identity, sort_keys=True)
        self._num_classes = num_classes
        self.done: list[ImageMetrics] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        own = self._file(jax.process_index())
        lines = [self._header]
        for file in self._files():
            records = self._read(file)
            self.done += [record for record, _ in records]
            if file == own:
                lines += [line for _, line in records]
        if jax.process_count() > 1:  # nobody writes before all have read
            multihost_utils.sync_global_devices("progress_log")
        # Whole lines alone: the last of a killed run may be cut off.
        new = own.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        os.replace(new, own)
        self._own = own

    def add(self, record: ImageMetrics) -> None:
        """Writes down that an image is done."""
        with self._own.open("a") as file:
            file.write(record.to_json() + "\n")

    def remove(self) -> None:
        """Ends the progress_log: everything is done, and the scores are written."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("progress_log")
        if jax.process_index() == 0:
            for file in self._files():
                file.unlink()

    def _file(self, process: int) -> Path:
        return self._path.with_name(f"{self._path.name}-{process}.jsonl")

    def _files(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.name}-*.jsonl"))

    def _read(self, file: Path) -> list[tuple[ImageMetrics, str]]:
        lines = file.read_text().split("\n")
        if lines[0] != self._header:
            return []
        # What follows the last line break is nothing, or a line that was cut off.
        return [
            (ImageMetrics.from_json(line, self._num_classes), line)
            for line in lines[1:-1]
        ]
