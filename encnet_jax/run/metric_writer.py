"""Scalars to `metrics.jsonl` and TensorBoard, images to TensorBoard and PNG.

A tracker, if there is one, receives both.
"""

import contextlib
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from encnet_jax.errors import DISK_FULL
from encnet_jax.files import whole_file
from encnet_jax.run.tracker import Tracker

_log = logging.getLogger(__name__)


class MetricWriter:
    """Writes scalars and images of a run; a no-op on hosts other than the first.

    A full disk costs entries, with a warning, but does not end the run. TensorBoard
    events need tensorboardX.

    Args:
        workdir: Folder of the run.
        start_step: Step at which the run resumes. Later lines of `metrics.jsonl`, from
            steps after the restored checkpoint, are removed: they will be rewritten.
        keep_evaluation: Whether to keep the scores of `start_step` itself; otherwise
            that evaluation will be repeated.
        tracker: Is given the same, by the names of TensorBoard, and closed.
    """

    def __init__(
        self,
        workdir: Path,
        start_step: int = 0,
        *,
        keep_evaluation: bool = True,
        tracker: Tracker | None = None,
    ):
        self.active = jax.process_index() == 0
        self.workdir = workdir
        self.path = workdir / "metrics.jsonl"
        self.start_step = start_step
        self.tracker = tracker
        self.board: Any = None
        self.has_board = importlib.util.find_spec("tensorboardX") is not None
        if self.active:
            if not self.has_board:
                _log.info("no TensorBoard events: tensorboardX is not installed")
            with _unless_full(self.path):
                _truncate(self.path, start_step, keep_evaluation)

    def scalars(self, step: int, values: dict[str, float], group: str) -> None:
        """Writes one line with `step` and values; TensorBoard shows them in `group`.

        Values that are not finite become null, as JSON has no NaN.
        """
        if not self.active:
            return
        line = {k: v if np.isfinite(v) else None for k, v in values.items()}
        with _unless_full(self.path):
            _append_line(self.path, json.dumps({"step": step, **line}))
        if self.tracker:
            named = {f"{group}/{key}": value for key, value in values.items()}
            self.tracker.scalars(step, named)
        if self.has_board:
            from tensorboardX.summary import scalar

            for key, value in values.items():
                self._event(step, summary=scalar(f"{group}/{key}", value))

    def image(self, step: int, name: str, panel: Image.Image) -> None:
        """Writes an image to TensorBoard, and to `name.png` in place of the last."""
        if not self.active:
            return
        if self.has_board:
            from tensorboardX.summary import image

            pixels = np.asarray(panel)
            self._event(step, summary=image(name, pixels, dataformats="HWC"))
        if self.tracker:
            self.tracker.image(step, name, panel)
        path = self.workdir / f"{name}.png"
        with _unless_full(path), whole_file(path) as file:
            panel.save(file, "PNG")

    def close(self) -> None:
        """Closes the event file and the tracker; called in a `finally` clause."""
        if self.board is not None:
            with _unless_full(self.workdir):
                self.board.close()
            self.board = None
        if self.tracker:
            self.tracker.close(failed=sys.exception() is not None)

    def _event(self, step: int, **fields: Any) -> None:
        # Not through tensorboardX's SummaryWriter: a full disk kills its writer thread,
        # and training would then block forever.
        from tensorboardX.proto.event_pb2 import Event

        written = False
        with _unless_full(self.workdir / "tensorboard"):
            if self.board is None:
                self.board = self._open_board()
            self.board.write_event(Event(step=step, wall_time=time.time(), **fields))
            self.board.flush()
            written = True
        if not written:
            self.board = None  # the last record is truncated: start a new file

    def _open_board(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = self.workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        board = EventsWriter(str(folder / "events"))
        # Makes TensorBoard drop what a killed run wrote for steps taken again.
        start = SessionLog(status=SessionLog.START)
        board.write_event(Event(step=self.start_step + 1, session_log=start))
        return board


def read_scores(path: Path, metric: str, last_step: int) -> dict[int, float]:
    """Returns a score by step, NaN where it was not finite.

    Args:
        path: `metrics.jsonl`; need not exist.
        metric: Name of the score.
        last_step: Later lines are left out.
    """
    scores: dict[int, float] = {}
    if not path.exists():
        return scores
    for line in path.read_text(errors="replace").splitlines():
        if f'"{metric}"' not in line:
            continue
        try:
            values = json.loads(line)
            step, score = int(values["step"]), values[metric]
        except (ValueError, KeyError, TypeError):
            continue  # damaged
        if step <= last_step:
            scores[step] = float("nan") if score is None else float(score)
    return scores


@contextlib.contextmanager
def _unless_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        _log.warning("WARNING: %s: not written: %s", path, error.strerror)


def _append_line(path: Path, line: str) -> None:
    with path.open("ab+") as file:
        # A full disk can have cut the last line, which must not take this one with it.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                line = "\n" + line
        file.write(f"{line}\n".encode())


def _truncate(path: Path, last_step: int, keep_evaluation: bool) -> None:
    """Removes incomplete lines, those after `last_step`, and perhaps its scores."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            values = json.loads(line)
            step, trained = int(values["step"]), "loss" in values
        except (ValueError, KeyError, TypeError):
            continue  # truncated by a kill, or damaged
        if step < last_step or (step == last_step and (trained or keep_evaluation)):
            kept.append(line + "\n")
    with whole_file(path) as file:
        file.write("".join(kept).encode())
