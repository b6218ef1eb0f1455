"""Preemption by SIGTERM."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class SigtermHandler:
    """Context manager that records SIGTERM, the usual announcement of a preemption.

    In a run of several hosts only one may receive it, yet all must stop at the same
    step, so JAX's coordination service listens, from `jax.distributed.initialize` on.
    """

    def __init__(self) -> None:
        self._received = False
        self._before: object = None

    def __enter__(self) -> "SigtermHandler":
        # Python allows signal handlers in the main thread only.
        self._listens = (
            jax.process_count() == 1
            and threading.current_thread() is threading.main_thread()
        )
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

    def due(self, step: int) -> bool:
        """Returns whether to stop after this step; the same on every host."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._received

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = True
