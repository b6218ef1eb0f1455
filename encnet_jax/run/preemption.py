"""What ends a training from outside: being told to stop, and a second run beside it."""

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import jax
from jax.experimental import multihost_utils

from encnet_jax.errors import UserError

_LOCK = ".lock"


class SigtermHandler:
    """Notices SIGTERM, by which schedulers announce that a machine is taken away.

    A context manager. Of several hosts one may be told and all must stop at the same
    step: there JAX's own coordination listens, once `jax.distributed` is initialized.
    """

    def __init__(self) -> None:
        self._received = False
        self._before: object = None

    def __enter__(self) -> "SigtermHandler":
        # Python allows handlers in the main thread only; elsewhere nobody is listening.
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
        """Tells whether to stop after this step; the same on every host."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Makes sure that no other run writes to an existing workdir meanwhile.

    The lock is the system's, so that of a killed run nothing is left.

    Raises:
        UserError: Another run does; names it.
    """
    if jax.process_index() != 0:
        yield
        return
    with (workdir / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"{workdir}: another run is writing there ({file.read().strip()}); "
                "wait for it, stop it, or give another --workdir"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
