"""Steps that fit into a time, measured before a run so that its schedule ends in it.

A learning rate that is cut off before its end costs more than a shorter schedule, so
`plan_steps` measures a step first, and `StopAt` stops a run that turned out slower.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from encnet_jax.data.datasets import Dataset
from encnet_jax.data.prefetch import prefetched
from encnet_jax.errors import UserError
from encnet_jax.run.sharding import batch_sharded, create_mesh, replicated
from encnet_jax.train import input_pipeline
from encnet_jax.train.trainer import Trainer

_WARM_UP = 3  # steps that are not timed, after the one that compiles
_LEAST = 5  # steps timed
_OVERHEAD = 1.03  # of logs and checkpoints, relative to the steps themselves
# The run itself starts faster than the measurement: its program is in the cache, or, of
# a shorter schedule, the choices among kernels are.
_SECOND_START = 0.6
# Of the evaluations during the training, with compilation, on an accelerator.
_EVALUATIONS = 30.0


class Speed(NamedTuple):
    """How fast a run is.

    Attributes:
        start: Seconds until the first step was done, most of them of compilation.
        step: Seconds of a step.
    """

    start: float
    step: float

    def run(self, steps: int) -> float:
        """Returns the seconds that a run of so many steps takes, without evaluation."""
        return _SECOND_START * self.start + _OVERHEAD * self.step * steps

    def steps(self, seconds: float) -> int:
        """Returns the number of steps for which there is time."""
        left = seconds - _SECOND_START * self.start
        return max(0, int(left / (_OVERHEAD * self.step)))


def measure_speed(
    config: ConfigDict,
    workdir: Path,
    datasets: tuple[Dataset, Dataset],
    seconds: float = 5.0,
) -> Speed:
    """Takes some steps of a run, which leave nothing behind.

    Args:
        config: The configuration of the run.
        workdir: Its workdir, which need not exist.
        datasets: Training and validation split.
        seconds: How long to measure; at least some steps.
    """
    started = time.perf_counter()
    mesh = create_mesh(config.mesh.data)
    trainer = Trainer(config, workdir, mesh, *datasets)
    state = jax.device_put(trainer.state, replicated(mesh))
    resident = jax.device_put(trainer.resident, replicated(mesh))
    host_batches = input_pipeline.create_batches(config, datasets[0], 0)
    batches = prefetched(host_batches, batch_sharded(mesh))

    def take(steps: int) -> float:
        nonlocal state
        before = time.perf_counter()
        for _ in range(steps):
            state, metrics = trainer.step_fn(state, resident, next(batches))
        jax.block_until_ready(metrics)
        return time.perf_counter() - before

    with contextlib.closing(host_batches):
        take(1)
        start = time.perf_counter() - started
        take(_WARM_UP)
        steps = max(_LEAST, int(seconds / (take(_LEAST) / _LEAST)))
        return Speed(start, take(steps) / steps)


def plan_steps(
    config: ConfigDict, speed: Speed, seconds: float, *, shorten: bool, flag: str
) -> int:
    """Returns how many steps a run is to take.

    Args:
        config: The configuration of the run.
        speed: See `measure_speed`.
        seconds: Time that is left, without that of an evaluation after the training.
        shorten: Whether the schedule may be shortened.
        flag: The flag that set the time, for the error.

    Raises:
        UserError: The run does not end in this time, or no more than its warm-up does.
    """
    seconds -= _EVALUATIONS
    total, fitting = config.total_steps, speed.steps(seconds)
    if fitting >= total:
        return total
    warmup = config.optimizer.warmup_steps
    if not shorten or fitting <= warmup:
        remedy = "" if shorten else " --fit_steps, fewer by total_steps, or"
        first = f", and the first {warmup} are warm-up" if shorten and warmup else ""
        raise UserError(
            f"{flag}: too short: {total} steps of {1000 * speed.step:.1f} ms take "
            f"{speed.run(total) / 60:.1f} minutes, and {max(seconds, 0) / 60:.1f} are "
            f"left before the evaluation, for {fitting} steps{first}; give"
            f"{remedy} more time"
        )
    print(
        f"{fitting} of {total} steps fit, {1000 * speed.step:.1f} ms each", flush=True
    )
    return fitting


class StopAt:
    """Context manager that stops a training at a time, as SIGTERM does, with its state.

    SIGTERM from elsewhere ends the process, or stops the training as always.

    Args:
        deadline: Time of `time.perf_counter`; None: never.

    Attributes:
        expired: Whether the time had come.
    """

    def __init__(self, deadline: float | None):
        self.deadline = deadline
        self.expired = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> "StopAt":
        if self.deadline is not None:
            self._before: Any = signal.signal(signal.SIGTERM, self._outside_of_loop)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.deadline is not None:
            self._done.set()
            self._thread.join()
            signal.signal(signal.SIGTERM, self._before)

    def _wait(self) -> None:
        assert self.deadline is not None  # started only with one
        pause = self.deadline - time.perf_counter()
        while not self._done.wait(max(pause, 0)):
            self.expired = True
            os.kill(os.getpid(), signal.SIGTERM)
            pause = 1.0  # again: the loop may not have been reached

    def _outside_of_loop(self, signum: int, frame: FrameType | None) -> None:
        if not self.expired:
            sys.exit(128 + signum)
