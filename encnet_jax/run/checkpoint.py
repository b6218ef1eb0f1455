"""Checkpoints of a run; the only file that imports Orbax.

`workdir/checkpoints/STEP` holds the items `params`, `batch_stats` and `optimizer` (with
the step), `ema` if moving averages of both are kept, and `metrics`, with the mean gate,
once the step has been evaluated. Kept are the latest two, in case one is damaged, and
the best by mean IoU (or accuracy).
"""

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from encnet_jax import migrations
from encnet_jax.errors import DISK_FULL, UserError, errno_of
from encnet_jax.run import checkpoint_folder
from encnet_jax.run.distributed import sum_over_hosts
from encnet_jax.run.failed_reads import DamagedError, failed_read, quiet_threads
from encnet_jax.run.mean_gate import MeanGate, write_mean_gate
from encnet_jax.run.state import (
    PureDict,
    TrainState,
    abstract_arrays,
    shapes_by_path,
)

_ITEMS = ("params", "batch_stats", "optimizer")
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
        workdir: Folder of the run.
        metric: Name of the score that ranks checkpoints, greater is better.
    """

    def __init__(self, workdir: Path, metric: str = "mean_iou"):
        self.metric = metric
        # Links stay: one may lead to a folder whose own path `check_path` refuses.
        self.folder = Path(os.path.abspath(workdir)) / "checkpoints"
        self._writer: ocp.AsyncCheckpointer | None = None
        self._saving: int | None = None  # step being written
        self._newest: int | None = None  # step saved or restored last
        checkpoint_folder.check_path(self.folder)

    def save(self, state: TrainState, step: int) -> None:
        """Starts saving a state in the background, unless this step is saved.

        A full disk leaves the earlier checkpoints as they are. A warning is logged; in
        a run of several hosts, the host whose disk it is raises `UserError` instead.

        Args:
            state: Copied at once; may be donated after the call.
            step: Number of steps taken.
        """
        self._finish()
        # Not read from the folder: a host could see it as it was before.
        if step == self._newest:
            return
        writer = self._open()
        # On CPU the writer would read memory that the next step may overwrite.
        state = jax.tree.map(jnp.copy, state)
        items = _items_of(state).items()
        arguments = {name: ocp.args.StandardSave(item) for name, item in items}
        self._saving = self._newest = step
        try:
            writer.save(self.folder / str(step), args=ocp.args.Composite(**arguments))
        except (OSError, ValueError) as error:
            self._give_up(error)

    def add_scores(
        self, step: int, scores: dict[str, float], gate: MeanGate | None = None
    ) -> None:
        """Stores the scores of a saved step, once it is complete.

        Does nothing if the step is not saved, as on a full disk. Raises as `save`.

        Args:
            step: Number of steps taken.
            scores: Result of the evaluation at this step.
            gate: Mean over its images, if the model has one.
        """
        self._finish()
        if jax.process_index() != 0 or step not in self.steps():
            return
        checkpoint = self.folder / str(step)
        try:
            if gate is not None:  # before the scores: with them the step is complete
                write_mean_gate(checkpoint, gate)
            checkpoint_folder.write_score(checkpoint, self.metric, scores[self.metric])
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            _log.warning("WARNING: %s: no space for its scores", checkpoint)
        self._remove_old()

    def has_scores(self, step: int) -> bool:
        """Returns whether the scores of a step are stored; the same on all hosts."""
        scores = checkpoint_folder.read_scores(self.folder, self.metric)
        return _on_any_host(scores.get(step) is not None)

    def restore_latest(self, like: TrainState, sharding: Sharding) -> TrainState | None:
        """Returns the newest state that all hosts can read, or None if none was saved.

        Damaged checkpoints newer than that are set aside with a warning. If none can be
        read, all stay as they are: the fault may be one that they share.

        Args:
            like: A state of the same structure, shapes and dtypes.
            sharding: Placement of the arrays.

        Raises:
            UserError: A checkpoint is of another model, or cannot be read at the
                moment, or all are damaged.
        """
        abstract = abstract_arrays(like, sharding)
        wanted = _items_of(abstract)
        damaged: dict[int, str] = {}
        for step in sorted(self.steps(), reverse=True):
            items, fault = None, ""
            try:
                items = self._restore(step, wanted)
            except DamagedError as error:
                fault = str(error)  # as text: the error would keep the reads alive
            if _on_any_host(bool(fault)):
                damaged[step] = (
                    fault or f"{self.folder / str(step)}: damaged on another host"
                )
                continue
            assert items is not None
            self._set_aside(damaged)
            self._newest = step
            optimizer = items["optimizer"]
            return TrainState(
                optimizer["step"],
                items["params"],
                items["batch_stats"],
                optimizer["opt_state"],
                items.get("ema", {}),
            )
        if damaged:
            raise UserError(
                f"{self.folder}: none of the checkpoints ("
                f"{', '.join(map(str, sorted(damaged)))}) can be read, so none is "
                f"changed; the latest is {next(iter(damaged.values()))}: restore "
                "them from a copy, or start anew in another --workdir"
            )
        return None

    def restore_model(
        self, params: PureDict, batch_stats: PureDict, step: str | int = "best"
    ) -> tuple[PureDict, PureDict, int]:
        """Returns parameters, running statistics and their step: averages, if kept.

        Args:
            params: Parameters of the same structure, shapes and dtypes.
            batch_stats: Running statistics likewise.
            step: `"best"`, `"latest"` or a number; see `checkpoint_folder.choose_step`.

        Raises:
            UserError: No such checkpoint, a damaged one, or one of another model.
        """
        chosen = checkpoint_folder.choose_step(self.folder, step, self.metric)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            "params": abstract_arrays(params, sharding),
            "batch_stats": abstract_arrays(batch_stats, sharding),
        }
        items = self._restore(chosen, wanted)
        if (self.folder / str(chosen) / "ema").is_dir():
            items = self._read(chosen, {"ema": wanted})["ema"]
        return items["params"], items["batch_stats"], chosen

    def steps(self) -> list[int]:
        """Returns the saved steps, ascending."""
        return checkpoint_folder.saved_steps(self.folder)

    def close(self) -> None:
        """Blocks until everything is on disk; raises as `save`."""
        self._finish()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _finish(self) -> None:
        """Blocks until the checkpoint being written is complete; removes old ones."""
        if self._writer is None or self._saving is None:
            return
        try:
            self._writer.wait_until_finished()
        # TensorStore reports a full disk by a ValueError.
        except (OSError, ValueError) as error:
            self._give_up(error)
        self._saving = None
        self._remove_old()

    def _remove_old(self) -> None:
        if jax.process_index() != 0:
            return
        scores = checkpoint_folder.read_scores(self.folder, self.metric)
        for step in scores.keys() - checkpoint_folder.kept_steps(scores):
            checkpoint_folder.remove_checkpoint(self.folder, step)

    def _give_up(self, error: Exception) -> None:
        """Removes an incomplete checkpoint if the disk is full, else raises."""
        if errno_of(error) not in DISK_FULL or self._writer is None:
            raise error
        step, self._saving, self._newest = self._saving, None, None
        self._writer.close()
        self._writer = None
        if jax.process_index() == 0:
            for incomplete in self.folder.glob(f"{step}.*tmp*"):
                shutil.rmtree(incomplete, ignore_errors=True)
        problem = (
            f"the checkpoint of step {step} does not fit on the disk of {self.folder}; "
            "earlier ones are kept"
        )
        if jax.process_count() > 1:  # this host alone knows, and they save together
            raise UserError(f"{problem}; free space and rerun the command") from error
        _log.warning("WARNING: %s", problem)

    def _open(self) -> ocp.AsyncCheckpointer:
        if self._writer is None:
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                checkpoint_folder.remove_leftovers(self.folder)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("checkpoints")
            self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        return self._writer

    def _restore(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        old_paths = self._old_paths(step, wanted)
        new_paths = {old: new for new, old in old_paths.items()}
        items = self._read(step, _renamed(wanted, old_paths))
        return _renamed(items, new_paths)

    def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        arguments = {
            name: ocp.args.StandardRestore(item) for name, item in wanted.items()
        }
        with _reader(wanted) as reader, quiet_threads():
            try:
                items = reader.restore(
                    self.folder / str(step), args=ocp.args.Composite(**arguments)
                )
            # Orbax reports unreadable files by many types, plain Exception included.
            except Exception as error:
                raise failed_read(self.folder / str(step), error) from error
        return {name: items[name] for name in wanted}

    def _old_paths(self, step: int, wanted: dict[str, Any]) -> dict[str, str]:
        """Returns `stored_paths` of a checkpoint, from its metadata."""
        folder = self.folder / str(step)
        with _reader(_ITEMS) as reader:
            try:
                metadata = reader.metadata(folder).item_metadata
                stored = shapes_by_path(metadata["params"].tree)
            except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
                raise failed_read(folder, error) from error
        params, batch_stats = (
            shapes_by_path(wanted["params"]),
            shapes_by_path(wanted["batch_stats"]),
        )
        return checkpoint_folder.stored_paths(folder, stored, params, batch_stats)

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        for step, fault in damaged.items():
            _log.warning("checkpoint %s; using the previous one", fault)
            if jax.process_index() == 0:
                checkpoint_folder.set_aside(self.folder, step)
        # No host may list the folder before the first has changed it.
        if damaged and jax.process_count() > 1:
            multihost_utils.sync_global_devices("set aside")


def _items_of(state: TrainState) -> dict[str, Any]:
    """Returns the items of a checkpoint."""
    items = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "optimizer": {"step": state.step, "opt_state": state.opt_state},
    }
    return {**items, "ema": state.ema} if state.ema else items


def _on_any_host(flag: bool) -> bool:
    return bool(sum_over_hosts(np.asarray([flag], np.int64))[0])


def _reader(items: Iterable[str]) -> ocp.Checkpointer:
    # Each host reads for itself: one that cannot must not leave the others waiting.
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"read{process}",
    )
    handlers: dict[str, ocp.CheckpointHandler] = {
        name: ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        for name in (*items, "ema")
    }
    # Not read here; without a handler Orbax warns about them.
    handlers["metrics"] = ocp.JsonCheckpointHandler(multiprocessing_options=alone)
    composite = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        **handlers,
    )
    return ocp.Checkpointer(composite, multiprocessing_options=alone)


def _renamed(items: dict[str, Any], paths: dict[str, str]) -> dict[str, Any]:
    return {
        name: migrations.rename_leaves(item, lambda path: paths.get(path, path))
        for name, item in items.items()
    }
