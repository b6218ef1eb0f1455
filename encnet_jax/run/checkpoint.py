"""Checkpoints of a run; the only file that imports Orbax.

`workdir/checkpoints/STEP` holds the items `params`, `batch_stats` and `optimizer` (with
the step). Kept are the latest two, in case one is damaged, and the best by mean IoU (or
accuracy).
"""

import contextlib
import gc
import io
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
from encnet_jax.run.checkpoint_folder import choose_step, saved_steps, stored_paths
from encnet_jax.run.state import PureDict, TrainState, flatten_paths

_ITEMS = ("params", "batch_stats", "optimizer")
_THREADS_END = 0.5  # seconds until reads that run beside a failed one have ended
_log = logging.getLogger(__name__)


class DamagedError(UserError):
    """A checkpoint that cannot be read: a file is truncated or missing."""


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
        workdir: Folder of the run.
        metric: Name of the score that ranks checkpoints, greater is better.
    """

    def __init__(self, workdir: Path, metric: str = "mean_iou"):
        self.metric = metric
        self.folder = workdir.resolve() / "checkpoints"
        self._manager: ocp.CheckpointManager | None = None
        self._saving: int | None = None  # step being written

    def save(
        self, state: TrainState, step: int, scores: dict[str, float] | None = None
    ) -> None:
        """Starts saving a state in the background, unless this step is saved.

        A full disk logs a warning and leaves the earlier checkpoints as they are.

        Args:
            state: Copied at once; may be donated after the call.
            step: Number of steps taken.
            scores: Result of the evaluation at this step, if there was one.
        """
        self._finish()
        manager = self._open()
        if step in manager.all_steps():
            return
        # On CPU the writer would read memory that the next step may overwrite.
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
        """Returns the newest readable state, or None if none was saved.

        A damaged checkpoint is set aside with a warning, and the previous one is read.

        Args:
            like: A state of the same structure, shapes and dtypes.
            sharding: Placement of the arrays.

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
        """Returns parameters, running statistics and their step.

        Args:
            params: Parameters of the same structure, shapes and dtypes.
            batch_stats: Running statistics likewise.
            step: `"best"`, `"latest"` or a number; see `choose_step`.

        Raises:
            UserError: No such checkpoint, a damaged one, or one of another model.
        """
        chosen = choose_step(self.folder, step, self.metric)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            "params": _abstract(params, sharding),
            "batch_stats": _abstract(batch_stats, sharding),
        }
        items = self._restore(chosen, wanted)
        return items["params"], items["batch_stats"], chosen

    def steps(self) -> list[int]:
        """Returns the saved steps, ascending."""
        return saved_steps(self.folder)

    def close(self) -> None:
        """Blocks until everything is on disk."""
        self._finish()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _finish(self) -> None:
        """Blocks until the checkpoint being written is complete."""
        if self._manager is None or self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        # TensorStore reports a full disk by a ValueError.
        except (OSError, ValueError) as error:
            self._give_up(error)
        self._saving = None

    def _give_up(self, error: Exception) -> None:
        """Removes an incomplete checkpoint if the disk is full, else raises."""
        full = "RESOURCE_EXHAUSTED" in str(error) or (
            isinstance(error, OSError) and error.errno in DISK_FULL
        )
        if not full or self._manager is None:
            raise error
        step, self._saving = self._saving, None
        self._manager.close()
        self._manager = None
        if jax.process_index() == 0:
            for incomplete in self.folder.glob(f"{step}.*tmp*"):
                shutil.rmtree(incomplete, ignore_errors=True)
        _log.warning(
            "WARNING: the checkpoint of step %d does not fit on the disk of %s; "
            "earlier ones are kept, and training continues",
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
                    # Orbax writes scores to disk only with `best_fn` set.
                    best_fn=best.get_metric_fn,
                    # `max_to_keep` with `best_fn` would delete the latest.
                    preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
                ),
            )
        return self._manager

    def _restore(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        old_paths = self._old_paths(step, wanted)
        new_paths = {old: new for new, old in old_paths.items()}
        items = self._read(step, _renamed(wanted, old_paths))
        return _renamed(items, new_paths)

    def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        arguments = {
            name: ocp.args.StandardRestore(item) for name, item in wanted.items()
        }
        with _reader(wanted) as reader, _quiet_threads():
            try:
                items = reader.restore(
                    self.folder / str(step), args=ocp.args.Composite(**arguments)
                )
            # Orbax reports unreadable files by many types, plain Exception included.
            except Exception as error:
                raise DamagedError(
                    f"{self.folder / str(step)}: damaged: {_first_line(error)}"
                ) from error
        return {name: items[name] for name in wanted}

    def _old_paths(self, step: int, wanted: dict[str, Any]) -> dict[str, str]:
        """Returns `stored_paths` of a checkpoint, from its metadata."""
        folder = self.folder / str(step)
        with _reader(_ITEMS) as reader:
            try:
                metadata = reader.metadata(folder).item_metadata
                stored = _shapes(metadata["params"].tree)
            except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
                raise DamagedError(
                    f"{folder}: damaged: {_first_line(error)}"
                ) from error
        params, batch_stats = _shapes(wanted["params"]), _shapes(wanted["batch_stats"])
        return stored_paths(folder, stored, params, batch_stats)

    def _set_aside(self, step: int, error: Exception) -> None:
        path = self.folder / str(step)
        # As text: a log record with the error would keep the failed reads alive.
        _log.warning("checkpoint %s; using the previous one", str(error))
        if jax.process_index() == 0:
            path.rename(self.folder / f"{step}.damaged")
        # No host may read on before the first has changed the folder.
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")


def _reader(items: Iterable[str]) -> ocp.Checkpointer:
    handlers: dict[str, ocp.CheckpointHandler] = {
        name: ocp.StandardCheckpointHandler() for name in items
    }
    # Not read here; without a handler Orbax warns about them.
    handlers["metrics"] = ocp.JsonCheckpointHandler()
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Silences the tracebacks of reads that fail along with the first."""
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


def _renamed(items: dict[str, Any], paths: dict[str, str]) -> dict[str, Any]:
    return {
        name: migrations.rename_leaves(item, lambda path: paths.get(path, path))
        for name, item in items.items()
    }


def _abstract(tree: Any, sharding: Sharding) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in flatten_paths(tree).items()}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:100] if lines else type(error).__name__
