"""Scalars to `metrics.jsonl` and TensorBoard, pictures to TensorBoard and PNG."""

import json
import os
from pathlib import Path

import jax
import numpy as np
from PIL import Image


class MetricWriter:
    """Writes the course of a run; on hosts other than the first it does nothing.

    Args:
        workdir: Folder of the run.
        start_step: Where the run goes on; later lines, of steps that a killed run took
            after its last checkpoint, are removed, since they will be written again.
    """

    def __init__(self, workdir: Path, start_step: int = 0):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        from tensorboardX import SummaryWriter

        self.workdir = workdir
        self.path = workdir / "metrics.jsonl"
        _truncate(self.path, start_step)
        self.file = self.path.open("a")
        self.board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1
        )

    def scalars(self, step: int, values: dict[str, float], group: str) -> None:
        """Writes one line of `step` and values; `group` is their place in TensorBoard.

        A value that is not finite is written as null, which JSON has, unlike NaN.
        """
        if not self.active:
            return
        line = {k: v if np.isfinite(v) else None for k, v in values.items()}
        self.file.write(json.dumps({"step": step, **line}) + "\n")
        self.file.flush()
        for key, value in values.items():
            self.board.add_scalar(f"{group}/{key}", value, step)

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Writes a picture to TensorBoard and, the newest only, to `name.png`."""
        if not self.active:
            return
        self.board.add_image(name, np.asarray(picture), step, dataformats="HWC")
        picture.save(self.workdir / f"{name}.png")

    def close(self) -> None:
        """Ends the files."""
        if self.active:
            self.file.close()
            self.board.close()


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
