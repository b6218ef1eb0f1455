"""Preemption by SIGTERM, and a lock that keeps other runs out of a workdir."""

import contextlib
import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

import jax
from jax.experimental import multihost_utils

from encnet_jax.errors import UserError

_LOCK = ".lock"
_LOCKED_BYTE = 2**20  # on Windows; far from the text, which others must read
_log = logging.getLogger(__name__)


class SigtermHandler:
    """Context manager that records SIGTERM, the usual announcement of a preemption.

    Of several hosts only one may receive it, yet all must stop at the same step: there
    JAX's coordination service listens, from `jax.distributed.initialize` on.
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


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other runs from writing to an existing workdir.

    The operating system holds the lock and releases it when the process ends, however
    it ends. On file systems without locks a warning says that there is none.

    Raises:
        UserError: Another run holds the lock; names it.
    """
    if jax.process_index() != 0:
        yield
        return
    with (workdir / _LOCK).open("a+") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise UserError(
                f"{workdir}: another run is writing there ({file.read().strip()}); "
                "wait for it, stop it, or use another --workdir"
            ) from error
        except OSError as error:
            _log.warning(
                "WARNING: %s: its file system has no locks (%s): start no second run "
                "there",
                workdir,
                error.strerror,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock(file: IO[str]) -> None:
    """Locks an open file, or raises `BlockingIOError` or `PermissionError`."""
    try:
        fcntl: Any = importlib.import_module("fcntl")
    except ImportError:  # Windows
        msvcrt: Any = importlib.import_module("msvcrt")
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
