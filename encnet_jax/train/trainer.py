"""The training loop: steps, and what is due between them."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from encnet_jax.data.prefetch import prefetched
from encnet_jax.errors import UserError
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.metric_writer import MetricWriter
from encnet_jax.run.preemption import SigtermHandler
from encnet_jax.run.progress import Progress
from encnet_jax.run.sharding import batch_sharded, replicated
from encnet_jax.run.state import PureDict, TrainState
from encnet_jax.train.step import PrepareFn, StepFn

_ADVICE = (
    "the checkpoints before it are kept. Try a lower learning_rate or more "
    "optimizer.warmup_steps"
)
_log = logging.getLogger(__name__)


class TrainingData(NamedTuple):
    """Where batches come from.

    Attributes:
        batches: Makes an iterator over host batches from a step on.
        resident: Arrays that stay on the device for the whole run.
        prepare: Makes images and labels of both, inside the step.
    """

    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    resident: dict[str, np.ndarray]
    prepare: PrepareFn


class Validation(NamedTuple):
    """What an evaluation while training found.

    Attributes:
        scores: Name -> value, for the metrics and the choice of the best checkpoint.
        images: How many were scored.
        panel: Some of them with their predictions.
    """

    scores: dict[str, float]
    images: int
    panel: Image.Image


ValidateFn = Callable[[PureDict, PureDict], Validation]


class Trainer:
    """Steps, and what is due between them: metrics, evaluation, checkpoints.

    Args:
        config: See `encnet_jax.config`.
        workdir: Folder of the run.
        mesh: Where it runs.
        checkpoints: Of the workdir; closed at the end of `run`.
        validate: Scores parameters and statistics.
        schedule: Step -> learning rate, for the metrics.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        mesh: Mesh,
        checkpoints: Checkpoints,
        validate: ValidateFn,
        schedule: optax.Schedule,
    ):
        self.config = config
        self.workdir = workdir
        self.mesh = mesh
        self.checkpoints = checkpoints
        self.validate = validate
        self.schedule = schedule

    def run(
        self, state: TrainState, step_fn: StepFn, data: TrainingData
    ) -> dict[str, float] | None:
        """Takes the steps that are left.

        Returns:
            The scores of the last evaluation, or None if SIGTERM ended the run before
            its last step: then everything is saved.

        Raises:
            FloatingPointError: The loss is not finite; names the step.
            UserError: The last checkpoint does not fit on the disk.
        """
        config, start = self.config, int(state.step)
        self.writer = MetricWriter(self.workdir, start)
        if start >= config.total_steps:
            _log.info("all %d steps are done", start)
            return self._evaluate(state, start)
        batches = prefetched(data.batches(start), batch_sharded(self.mesh))
        resident = jax.device_put(data.resident, replicated(self.mesh))
        self.progress = Progress(start, config.total_steps, config.batch_size)
        self.losses: list[jax.Array] = []  # of the steps that were not looked at yet
        scores: dict[str, float] | None = None
        try:
            with SigtermHandler() as stop:
                for step in range(start + 1, config.total_steps + 1):
                    batch = next(batches)
                    with jax.transfer_guard("disallow"):
                        state, metrics = step_fn(state, resident, batch)
                    self.losses.append(metrics["loss"])
                    self.progress.advance()
                    scores = self._after(step, state, metrics)
                    if step < config.total_steps and stop.due(step):
                        self._save_and_stop(step, state)
                        return None
        finally:
            self.checkpoints.close()
            self.progress.close()
            self.writer.close()
        if config.total_steps not in self.checkpoints.steps():
            raise UserError(
                f"{self.workdir}: the last checkpoint, of step {config.total_steps}, "
                "does not fit on the disk; make room and run the same command again"
            )
        return scores

    def _after(
        self, step: int, state: TrainState, metrics: dict[str, jax.Array]
    ) -> dict[str, float] | None:
        """Does what is due after a step; returns the scores if it was evaluated."""
        config, last = self.config, step == self.config.total_steps
        if step % config.log_every == 0 or last:
            self._log_metrics(step, metrics)
        if step % config.eval_every == 0 or last:
            self._stop_unless_sound(step, state)
            scores = self._evaluate(state, step)
            self.checkpoints.save(state, step, scores)
            return scores
        if step % config.checkpoint_every == 0:
            self._stop_unless_sound(step, state)
            self.checkpoints.save(state, step)
        return None

    def _save_and_stop(self, step: int, state: TrainState) -> None:
        self._stop_unless_sound(step, state)
        self.checkpoints.save(state, step)
        self.checkpoints.close()
        if step in self.checkpoints.steps():
            _log.info(
                "told to stop: step %d of %d is saved in %s; the same command goes on "
                "from there",
                step,
                self.config.total_steps,
                self.workdir,
            )

    def _log_metrics(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._stop_unless_finite(step)
        values = {key: float(value) for key, value in metrics.items()}
        values["learning_rate"] = float(self.schedule(step - 1))
        values["images_per_second"] = self.progress.images_per_second()
        self.writer.scalars(step, values, "train")
        self.progress.show(loss=values["loss"])

    def _stop_unless_finite(self, step: int) -> None:
        """Looks at the losses up to a step that were not looked at yet."""
        losses = jax.device_get(self.losses)
        self.losses.clear()
        for number, loss in enumerate(losses, step - len(losses) + 1):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {number}; {_ADVICE}"
                )

    def _stop_unless_sound(self, step: int, state: TrainState) -> None:
        """Looks at all that a checkpoint of this step would keep."""
        self._stop_unless_finite(step)
        # The last step can spoil the weights although its own loss was finite.
        if not _finite_norm(state.params):
            raise FloatingPointError(
                f"the weights are not finite, or huge, after step {step}; {_ADVICE}"
            )

    def _evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        started = time.perf_counter()
        found = self.validate(state.params, state.batch_stats)
        self.writer.scalars(step, found.scores, "evaluation")
        self.writer.image(step, "predictions", found.panel)
        _log.info(
            "step %d: %s (%d images, %.0f s)",
            step,
            ", ".join(
                f"{name.replace('_', ' ').replace('iou', 'IoU')} {value:.4f}"
                for name, value in found.scores.items()
            ),
            found.images,
            time.perf_counter() - started,
        )
        return found.scores


@jax.jit
def _finite_norm(params: PureDict) -> jax.Array:
    """Tells whether the sum of the squares of all weights is finite."""
    return jnp.isfinite(optax.tree.norm(params))
