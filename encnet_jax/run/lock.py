"""Locks that keep other processes from writing to the same files."""

import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax

from encnet_jax.errors import UserError

_LOCK = ".lock"
_LOCKED_BYTE = 2**20  # on Windows; far from the text, which others must read
_log = logging.getLogger(__name__)


def lock_workdir(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps other runs from writing to an existing workdir; see `locked`."""
    return locked(
        workdir / _LOCK,
        f"{workdir}: another run is writing there",
        "wait for it, stop it, or use another --workdir",
    )


@contextlib.contextmanager
def locked(path: Path, taken: str, remedy: str) -> Iterator[None]:
    """Holds a lock on a file, created if missing; of several hosts, only host 0 does.

    The operating system holds the lock and releases it when the process ends, however
    it ends. On file systems without locks a warning says that there is none.

    Args:
        path: The file.
        taken: Start of the error.
        remedy: End of the error.

    Raises:
        UserError: Another process holds the lock; names it.
    """
    if jax.process_index() != 0:
        yield
        return
    with path.open("a+") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise UserError(f"{taken} ({file.read().strip()}); {remedy}") from error
        except OSError as error:
            _log.warning(
                "WARNING: %s: its file system has no locks (%s): start no second run "
                "there",
                path.parent,
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
