"""Scalars and images of a run to Weights & Biases or Trackio, if asked for."""

import contextlib
import importlib
import json
import logging
import os
import queue
import re
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from PIL import Image

from encnet_jax.errors import UserError
from encnet_jax.files import whole_file

_START_SECONDS = 60.0
_FINISH_SECONDS = 30.0
_QUEUED = 1000  # entries, should the tracker be slower than the training
_log = logging.getLogger(__name__)


class Tracker:
    """A run of a tracker, fed by a thread of its own.

    Starting, logging, and sending cost the training no time. Whatever fails (the
    package is not installed, the server is down) ends the tracking with one warning,
    marks the run as failed if it has started (Trackio knows no such mark), and the
    training continues.

    Args:
        name: `"wandb"` or `"trackio"`.
        workdir: Folder of the run, whose name the tracker shows. `tracker.json` in it
            holds the id under which a resumed training continues.
        project: Project of the tracker, unless its own variable names another.
        config: Logged when the run starts.
    """

    def __init__(self, name: str, workdir: Path, project: str, config: ConfigDict):
        self.name, self.workdir = name, workdir
        variable = f"{name.upper()}_PROJECT"
        # Neither takes slashes and the like, which names of data sets may have.
        self.project = os.environ.get(variable) or re.sub(r"[^\w.-]+", "-", project)
        self.config = config.to_dict()
        self.failed = False
        self.entries: queue.Queue[Callable[[Any], None] | None] = queue.Queue(_QUEUED)
        # A daemon: one that hangs does not keep the command from ending.
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs values by name."""
        self._put(lambda run: run.log(step, values))

    def image(self, step: int, name: str, panel: Image.Image) -> None:
        """Logs an image."""
        self._put(lambda run: run.log(step, {name: run.image(panel)}))

    def close(self, *, failed: bool = False) -> None:
        """Sends what is left, and marks the run as finished, or failed."""
        self._put(lambda run: run.finish(failed))
        self._put(None)
        # One that has failed may hang, or be finishing its run.
        wait = _FINISH_SECONDS if self.failed else _START_SECONDS + _FINISH_SECONDS
        self.thread.join(wait)
        if self.thread.is_alive():
            self._fail("does not respond")

    def _put(self, entry: Callable[[Any], None] | None) -> None:
        if self.failed:
            return
        try:
            self.entries.put_nowait(entry)
        except queue.Full:
            self._fail("does not keep up")

    def _work(self) -> None:
        run = None
        try:
            run = self._start()
            _log.info("tracked by %s: %s", self.name, run.place)
            while not self.failed and (entry := self.entries.get()) is not None:
                entry(run)
        except ModuleNotFoundError as error:
            self._fail(f"{error}; pip install 'encnet-jax[{self.name}]'")
        except UserError as error:
            self._fail(str(error))
        except BaseException as error:  # trackers raise whatever they like
            self._fail(f"{type(error).__name__}: {error}")
        if self.failed and run is not None:  # as failed: it lacks what came later
            with contextlib.suppress(BaseException):
                run.finish(failed=True)

    def _start(self) -> Any:
        module: Any = importlib.import_module(self.name)
        path = self.workdir / "tracker.json"
        try:
            stored = json.loads(path.read_text()) if path.exists() else {}
            # By tracker: changing it and changing back continues both.
            ids = {"project": self.project, "id": uuid.uuid4().hex[:8]}
            ids |= stored.get(self.name, {})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged; delete it for a new run") from error
        with whole_file(path) as file:
            stored[self.name] = ids
            file.write((json.dumps(stored, indent=2) + "\n").encode())
        start = _WandbRun if self.name == "wandb" else _TrackioRun
        name = self.workdir.absolute().name
        return start(module, name, self.workdir, self.config, **ids)

    def _fail(self, reason: str) -> None:
        if not self.failed:
            self.failed = True
            reason = " ".join(reason.split())
            _log.warning(
                "WARNING: tracker=%s: %s; nothing more is tracked", self.name, reason
            )


class _WandbRun:
    """A run of Weights & Biases; resumed by its id."""

    def __init__(
        self, wandb: Any, name: str, workdir: Path, config: Any, project: str, id: str
    ):
        self.image = wandb.Image
        self.run = wandb.init(
            project=project,
            name=name,
            id=id,
            resume="allow",
            dir=str(workdir),
            config=config,
            settings=wandb.Settings(
                init_timeout=_START_SECONDS,
                login_timeout=_START_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                finish_timeout_raises=True,
                silent=True,
            ),
        )
        # Its own count of steps only rises, and what is logged for an earlier one is
        # dropped. A run that resumes at an older checkpoint takes steps again.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        self.place = self.run.dir if self.run.offline else self.run.url

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.run.log({"step": step, **values})

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class _TrackioRun:
    """A run of Trackio; resumed by its name, which therefore ends in the id."""

    def __init__(
        self, trackio: Any, name: str, workdir: Path, config: Any, project: str, id: str
    ):
        self.image = trackio.Image
        name = f"{name}-{id}"
        self.run = trackio.init(
            project=project, name=name, resume="allow", config=config, embed=False
        )
        self.place = f"project {project}, run {name}"

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.run.log(values, step=step)

    def finish(self, failed: bool) -> None:
        self.run.finish()


def start_tracker(config: ConfigDict, workdir: Path, project: str) -> Tracker | None:
    """Starts the tracker that `tracker` names, on the first host; or returns None.

    Args:
        config: See `encnet_jax.config`.
        workdir: Folder of the run; exists.
        project: Name of the data set.
    """
    if not config.tracker or jax.process_index():
        return None
    return Tracker(config.tracker, workdir, project, config)
