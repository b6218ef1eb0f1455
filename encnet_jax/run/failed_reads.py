"""Checkpoints that cannot be read: one error, and silence of the threads behind it."""

import contextlib
import gc
import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from encnet_jax.errors import UserError

_THREADS_END = 0.5  # seconds until reads that run beside a failed one have ended


class DamagedError(UserError):
    """A checkpoint that cannot be read: a file is truncated or missing.

    Args:
        checkpoint: Its folder.
        error: What Orbax raised.
    """

    def __init__(self, checkpoint: Path, error: Exception):
        lines = str(error).strip().splitlines()
        reason = lines[0][:100] if lines else type(error).__name__
        super().__init__(f"{checkpoint}: damaged: {reason}")


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
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
