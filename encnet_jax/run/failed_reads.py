"""Errors of checkpoints that cannot be read; silences the threads that read them."""

import contextlib
import gc
import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from encnet_jax.errors import (
    NO_DEVICE_MEMORY,
    REFUSED,
    UserError,
    errno_of,
    reason_of,
)

_THREADS_END = 0.5  # seconds until reads that run beside a failed one have ended


class DamagedError(UserError):
    """A checkpoint that cannot be read: a file is truncated or missing.

    Args:
        checkpoint: Its folder.
        error: What Orbax raised.
    """

    def __init__(self, checkpoint: Path, error: Exception):
        super().__init__(f"{checkpoint}: damaged: {_first_line(error)}")


def failed_read(checkpoint: Path, error: Exception) -> UserError:
    """Returns the error for a checkpoint that could not be read.

    It is a `DamagedError` unless the files may be intact: memory ran out, no file could
    be opened, or the disk of another machine was gone for a moment.

    Args:
        checkpoint: Its folder.
        error: What Orbax raised.
    """
    cause: BaseException | None = error
    while cause is not None:
        refused = isinstance(cause, MemoryError) or NO_DEVICE_MEMORY in str(cause)
        if refused or errno_of(cause) in REFUSED:
            return UserError(
                f"{checkpoint}: cannot be read now: {_first_line(cause)}; nothing is "
                "changed: rerun the command once this has been mended"
            )
        cause = cause.__cause__ or cause.__context__
    return DamagedError(checkpoint, error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else reason_of(error)


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Silences the tracebacks of reads that fail along with the first."""
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except UserError:
            time.sleep(_THREADS_END)
            gc.collect()
            raise
        finally:
            logger.setLevel(level)
