"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax


class Progress:
    """Counts training steps and shows loss, rate and time left.

    Args:
        start: Number of steps already taken.
        total: Number of steps of the run.
        images_per_step: Batch size, for the rate.
    """

    def __init__(self, start: int, total: int, images_per_step: int):
        self.step = start
        self.total = total
        self.images_per_step = images_per_step
        self._mark = self._began = (start, time.perf_counter())
        self._bar = _bar(initial=start, total=total, unit="step", leave=True)

    def advance(self, loss: jax.Array) -> None:
        """Counts one step, whose loss may not have been computed yet."""
        first = self.step == self._began[0]
        self.step += 1
        if self._bar is not None:
            self._bar.update()
        if first:
            jax.block_until_ready(loss)
            self._mark = (self.step, time.perf_counter())

    def images_per_second(self) -> float:
        """Returns the mean rate since the last call, without what was `paused`.

        The first step, for which the program was compiled, counts only if there was no
        other.
        """
        step, then = self._mark if self.step > self._mark[0] else self._began
        now = time.perf_counter()
        self._mark = (self.step, now)
        return (self.step - step) * self.images_per_step / (now - then)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time that the block takes, as of an evaluation."""
        began = time.perf_counter()
        yield
        step, then = self._mark
        self._mark = (step, then + time.perf_counter() - began)
        if self._bar is not None:
            self._bar.unpause()

    def show(self, loss: float, rate: float) -> None:
        """Shows the loss, the rate in images per second, and the time left."""
        if jax.process_index() > 0:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:.1f} images/s")
            return
        left = (self.total - self.step) * self.images_per_step / rate
        print(
            f"step {self.step}/{self.total}  loss {loss:.4f}  "
            f"{rate:.1f} images/s  {_clock(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()


def _bar(**settings: Any) -> Any:
    """Returns a tqdm bar, or None without a terminal or without tqdm."""
    if not sys.stderr.isatty() or jax.process_index() > 0:
        return None
    if importlib.util.find_spec("tqdm") is None:
        return None
    from tqdm import tqdm

    return tqdm(**settings)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class Counter:
    """Shows how many of `total` items are done: a bar on a terminal, else nothing."""

    def __init__(self, total: int, unit: str):
        self._bar = _bar(total=total, unit=unit, leave=False)

    def show(self, done: int) -> None:
        """Shows the number of items done so far."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
