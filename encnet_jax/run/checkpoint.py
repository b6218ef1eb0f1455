"""Checkpoints of a run; the only file that knows Orbax.

Under `workdir/checkpoints/STEP` lie the items `params`, `batch_stats` and `optimizer`
(with the step). The latest two are kept, so that a damaged one is no loss, and the best
by mean IoU (or accuracy).
"""

import contextlib
import gc
import io
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from encnet_jax import migrations
from encnet_jax.errors import DISK_FULL, UserError
from encnet_jax.run.state import PureDict, TrainState

_ITEMS = ("params", "batch_stats", "optimizer")
_THREADS_END = 0.5  # seconds in which the reads beside a failed one end
_log = logging.getLogger(__name__)


class DamagedError(UserError):
    """A checkpoint that cannot be read: a file is truncated or missing."""


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
        workdir: Folder of the run.
        metric: Name of the score that tells the best, greater is better.
    """

    def __init__(self, workdir: Path, metric: str = "mean_iou"):
        self.metric = metric
        self.folder = workdir.resolve() / "checkpoints"
        self._manager: ocp.CheckpointManager | None = None
        self._saving: int | None = None  # the step that is being written

    def save(
        self, state: TrainState, step: int, scores: dict[str, float] | None = None
    ) -> None:
        """Starts to save a state in the background, unless this step is there.

        A full disk is no error: it is told, and the checkpoints before stay as they
        are.

        Args:
            state: Copied at once; may be donated after the call.
            step: The number of steps taken, that of the state.
            scores: Of an evaluation at this step, if there was one.
        """
        self._finish()
        manager = self._open()
        if step in manager.all_steps():
            return
        # On CPU the writer would read memory that the next step is free to overwrite.
        state = jax.tree.map(jnp.copy, state)
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        items = zip(_ITEMS, (state.params, state.batch_stats, optimizer))
        arguments = {name: ocp.args.StandardSave(item) for name, item in items}
        metrics = None if scores is None else {self.metric: scores[self.metric]}
        self._saving = step
        try:
            manager.save(
                step, args=ocp.args.Composite(**arguments), metrics=metrics, force=True
            )
        except (OSError, ValueError) as error:
            self._give_up(error)

    def restore_latest(self, like: TrainState, sharding: Sharding) -> TrainState | None:
        """Returns the newest state that can be read, or None if none was saved.

        A damaged checkpoint is set aside with a warning, and the one before is taken.

        Args:
            like: A state of the same structure, shapes and dtypes.
            sharding: Where the arrays are to be.

        Raises:
            UserError: The checkpoint is of another model, or all are damaged.
        """
        abstract = _abstract(like, sharding)
        wanted = {
            "params": abstract.params,
            "batch_stats": abstract.batch_stats,
            "optimizer": {"step": abstract.step, "opt_state": abstract.opt_state},
        }
        steps = sorted(self.steps(), reverse=True)
        for step in steps:
            try:
                items = self._restore(step, wanted)
            except DamagedError as error:
                self._set_aside(step, error)
                continue
            optimizer = items["optimizer"]
            return TrainState(
                optimizer["step"],
                items["params"],
                items["batch_stats"],
                optimizer["opt_state"],
            )
        if steps:
            raise UserError(f"{self.folder}: none of the checkpoints can be read")
        return None

    def restore_model(
        self, params: PureDict, batch_stats: PureDict, step: str | int = "best"
    ) -> tuple[PureDict, PureDict, int]:
        """Returns weights, statistics and the step they were saved at.

        Args:
            params: Weights of the same structure, shapes and dtypes.
            batch_stats: Statistics likewise.
            step: `"best"` (by the score; the latest if none was evaluated), `"latest"`,
                or a number.

        Raises:
            UserError: No such checkpoint, a damaged one, or one of another model.
        """
        number = self._choose(step)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            "params": _abstract(params, sharding),
            "batch_stats": _abstract(batch_stats, sharding),
        }
        items = self._restore(number, wanted)
        return items["params"], items["batch_stats"], number

    def steps(self) -> list[int]:
        """Returns the steps that were saved, rising."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._finish()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _finish(self) -> None:
        """Waits for the checkpoint that is being written."""
        if self._manager is None or self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        # TensorStore's word for a full disk is a ValueError.
        except (OSError, ValueError) as error:
            self._give_up(error)
        self._saving = None

    def _give_up(self, error: Exception) -> None:
        """Removes what was written of a checkpoint if the disk is full; else raises."""
        full = "RESOURCE_EXHAUSTED" in str(error) or (
            isinstance(error, OSError) and error.errno in DISK_FULL
        )
        if not full or self._manager is None:
            raise error
        step, self._saving = self._saving, None
        self._manager.close()
        self._manager = None
        if jax.process_index() == 0:
            for rest in self.folder.glob(f"{step}.*tmp*"):
                shutil.rmtree(rest, ignore_errors=True)
        _log.warning(
            "WARNING: the checkpoint of step %d does not fit on the disk of %s; the "
            "ones before are as they were, and the training goes on without it",
            step,
            self.folder,
        )

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            best = BestN(
                get_metric_fn=lambda metrics: metrics[self.metric],
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    create=True,
                    cleanup_tmp_directories=True,
                    # Without `best_fn` the scores are not written to disk.
                    best_fn=best.get_metric_fn,
                    # `max_to_keep` with `best_fn` would delete the latest.
                    preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
                ),
            )
        return self._manager

    def _restore(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        old_paths = self._old_paths(step, wanted)
        wanted = {
            name: migrations.rename_leaves(item, lambda p: old_paths.get(p, p))
            for name, item in wanted.items()
        }
        new_paths = {old: new for new, old in old_paths.items()}
        items = self._read(step, wanted)
        return {
            name: migrations.rename_leaves(item, lambda p: new_paths.get(p, p))
            for name, item in items.items()
        }

    def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        arguments = {
            name: ocp.args.StandardRestore(item) for name, item in wanted.items()
        }
        with _reader(wanted) as reader, _quiet_threads():
            try:
                items = reader.restore(
                    self.folder / str(step), args=ocp.args.Composite(**arguments)
                )
            # Orbax reports unreadable files by a plain Exception, among others.
            except Exception as error:
                raise DamagedError(
                    f"{self.folder / str(step)}: damaged: {_first_line(error)}"
                ) from error
        return {name: items[name] for name in wanted}

    def _choose(self, step: str | int) -> int:
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.folder}: no checkpoint")
        if step == "latest":
            return steps[-1]
        if step == "best":
            values = {s: self._score(s) for s in steps}
            scored = {s: v for s, v in values.items() if v is not None}
            return max(scored, key=scored.__getitem__) if scored else steps[-1]
        if int(step) not in steps:
            names = ", ".join(map(str, steps))
            raise UserError(f"step {step}: not in {self.folder}; there are {names}")
        return int(step)

    def _score(self, step: int) -> float | None:
        path = self.folder / str(step) / "metrics" / "metrics"
        try:
            return float(json.loads(path.read_text())[self.metric])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # saved without an evaluation

    def _old_paths(self, step: int, wanted: dict[str, Any]) -> dict[str, str]:
        """Returns path -> path in the checkpoint, where names changed since; or {}.

        Raises:
            UserError: Its weights have other names or shapes: of another model.
        """
        folder = self.folder / str(step)
        with _reader(_ITEMS) as reader:
            try:
                metadata = reader.metadata(folder).item_metadata
                stored = _shapes(metadata["params"].tree)
            except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
                raise DamagedError(
                    f"{folder}: damaged: {_first_line(error)}"
                ) from error
        here = _shapes(wanted["params"])
        paths = [*here, *_shapes(wanted["batch_stats"])]
        old = {path: migrations.old_parameter_path(path, here) for path in paths}
        if stored.keys() != here.keys() and stored.keys() == {old[p] for p in here}:
            stored = {path: stored[old[path]] for path in here}
        else:
            old = {}
        for name in sorted(here.keys() | stored.keys()):
            if stored.get(name) != here.get(name):
                raise UserError(
                    f"{folder}: the checkpoint of another model: {name} has the shape "
                    f"{stored.get(name)} there and {here.get(name)} here"
                )
        return old

    def _set_aside(self, step: int, error: Exception) -> None:
        path = self.folder / str(step)
        # Its text alone: the error itself would keep the failed reads alive.
        _log.warning("checkpoint %s; taking the one before", str(error))
        if jax.process_index() == 0:
            path.rename(self.folder / f"{step}.damaged")
        _wait_for_all(f"set aside {step}")


def _wait_for_all(what: str) -> None:
    """Lets no host go on before the first has changed the folder."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _reader(items: Iterable[str]) -> ocp.Checkpointer:
    handlers: dict[str, ocp.CheckpointHandler] = {
        name: ocp.StandardCheckpointHandler() for name in items
    }
    # Not read by it; without a handler Orbax warns of them.
    handlers["metrics"] = ocp.JsonCheckpointHandler()
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keeps the reads that fail along with the first from printing their tracebacks."""
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except DamagedError:
            time.sleep(_THREADS_END)
            gc.collect()
            raise
        finally:
            logger.setLevel(level)


def _abstract(tree: Any, sharding: Sharding) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        ".".join(str(getattr(k, "key", k)) for k in path): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:100] if lines else type(error).__name__
