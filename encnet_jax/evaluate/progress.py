"""Progress of an evaluation: a bar on a terminal, elsewhere a log line now and then."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from encnet_jax.run.progress import Counter

_SECONDS_BETWEEN_LINES = 30.0
_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")


def show_progress(
    images: Iterable[_Item], total: int, done: int = 0
) -> Iterator[_Item]:
    """Yields images and shows how many have been consumed.

    Args:
        images: What to yield.
        total: Number of images when all is done.
        done: How many of them were done before.
    """
    counter = Counter(total, "images")
    started = shown = time.monotonic()
    for count, image in enumerate(images, done + 1):
        yield image
        counter.show(count)
        now = time.monotonic()
        due = now - shown > _SECONDS_BETWEEN_LINES
        if due and count < total and not sys.stderr.isatty():
            shown, rate = now, (count - done) / (now - started)
            _log.info(
                "%d/%d images  %.2f images/s  %.0f min left",
                count,
                total,
                rate,
                (total - count) / rate / 60,
            )
    counter.close()
