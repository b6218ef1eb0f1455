"""Scalars to `metrics.jsonl` and TensorBoard, pictures to TensorBoard and PNG."""

import contextlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from encnet_jax.errors import DISK_FULL

_log = logging.getLogger(__name__)


class MetricWriter:
    """Writes the course of a run; on hosts other than the first it does nothing.

    What does not fit on a full disk is left out with a warning: a training of days is
    worth more than a line of its course. TensorBoard's events need tensorboardX.

    Args:
        workdir: Folder of the run.
        start_step: Where the run goes on; later lines, of steps that a killed run took
            after its last checkpoint, are removed, since they will be written again.
    """

    def __init__(self, workdir: Path, start_step: int = 0):
        self.active = jax.process_index() == 0
        self.workdir = workdir
        self.path = workdir / "metrics.jsonl"
        self.start_step = start_step
        self.board: Any = None
        self.has_board = importlib.util.find_spec("tensorboardX") is not None
        if self.active:
            if not self.has_board:
                _log.info("no events for TensorBoard: tensorboardX is not installed")
            with _unless_full(self.path):
                _truncate(self.path, start_step)

    def scalars(self, step: int, values: dict[str, float], group: str) -> None:
        """Writes one line of `step` and values; `group` is their place in TensorBoard.

        A value that is not finite is written as null, which JSON has, unlike NaN.
        """
        if not self.active:
            return
        line = {k: v if np.isfinite(v) else None for k, v in values.items()}
        with _unless_full(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step, **line}) + "\n")
        if self.has_board:
            from tensorboardX.summary import scalar

            for key, value in values.items():
                self._event(step, summary=scalar(f"{group}/{key}", value))

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Writes a picture to TensorBoard and, the newest only, to `name.png`."""
        if not self.active:
            return
        if self.has_board:
            from tensorboardX.summary import image

            pixels = np.asarray(picture)
            self._event(step, summary=image(name, pixels, dataformats="HWC"))
        with _unless_full(self.workdir):
            picture.save(self.workdir / f"{name}.png")

    def close(self) -> None:
        """Ends the files."""
        if self.board is not None:
            with _unless_full(self.workdir):
                self.board.close()
            self.board = None

    def _event(self, step: int, **fields: Any) -> None:
        # Not by tensorboardX's SummaryWriter: the thread in which it writes dies of a
        # full disk, and the training then waits for it forever.
        from tensorboardX.proto.event_pb2 import Event

        written = False
        with _unless_full(self.workdir / "tensorboard"):
            if self.board is None:
                self.board = self._open_board()
            self.board.write_event(Event(step=step, wall_time=time.time(), **fields))
            self.board.flush()
            written = True
        if not written:
            self.board = None  # its last record is cut off: the next is a new file's

    def _open_board(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = self.workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        board = EventsWriter(str(folder / "events"))
        # Hides what a killed run wrote of the steps that come again.
        start = SessionLog(status=SessionLog.START)
        board.write_event(Event(step=self.start_step + 1, session_log=start))
        return board


@contextlib.contextmanager
def _unless_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        _log.warning("WARNING: %s: not written: %s", path, error.strerror)


def _truncate(path: Path, last_step: int) -> None:
    """Keeps the whole lines up to `last_step`."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # cut off by a kill
        if step <= last_step:
            kept.append(line + "\n")
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)
