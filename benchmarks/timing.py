"""Times of several sides in turns, so that what disturbs one disturbs all."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_MOST_CALLS = 100  # of one turn


class Side(NamedTuple):
    """What is timed.

    Attributes:
        call: Starts the work once; may return before it is done.
        wait: Gets what the last call returned; comes back once all work is done.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]


def medians(
    sides: Mapping[str, Side], *, rounds: int, seconds: float
) -> dict[str, float]:
    """Returns the median seconds a call of each side.

    Every side is called twice to warm up. Then in each round every side has its turn of
    as many calls as take about `seconds`, one after the other without a pause, as a
    loop over batches has them. One more before them is not timed: it finds memory and
    caches as the side before has left them, which no loop does.

    Args:
        sides: Name -> what is timed.
        rounds: Turns of each side.
        seconds: Length of a turn; at least one call.
    """
    calls = {name: _calls(side, seconds) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            side.wait(side.call())
            times[name].append(_turn(side, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _calls(side: Side, seconds: float) -> int:
    side.wait(side.call())
    return max(1, min(_MOST_CALLS, int(seconds / _turn(side, 1))))


def _turn(side: Side, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        result = side.call()
    side.wait(result)
    return (time.perf_counter() - started) / calls
