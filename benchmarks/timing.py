"""Times of several candidates in turns, so that what disturbs one disturbs all."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_MOST_CALLS = 100  # of one turn


class Candidate(NamedTuple):
    """What is timed.

    Attributes:
        call: Starts the work once; may return before it is done.
        wait: Gets what the last call returned; comes back once all work is done.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]


def medians(
    candidates: Mapping[str, Candidate], *, rounds: int, seconds: float
) -> dict[str, float]:
    """Returns the median seconds a call of each candidate.

    Every candidate is called twice to warm up. Then in each round every candidate has
    its turn of as many calls as take about `seconds`, one after the other without a
    pause, as a loop over batches has them. One more before them is not timed: it finds
    memory and caches as the candidate before has left them, which no loop does.

    Args:
        candidates: Name -> what is timed.
        rounds: Turns of each candidate.
        seconds: Length of a turn; at least one call.
    """
    calls = {name: _calls(candidate, seconds) for name, candidate in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            candidate.wait(candidate.call())
            times[name].append(_turn(candidate, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _calls(candidate: Candidate, seconds: float) -> int:
    candidate.wait(candidate.call())
    return max(1, min(_MOST_CALLS, int(seconds / _turn(candidate, 1))))


def _turn(candidate: Candidate, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        result = candidate.call()
    candidate.wait(result)
    return (time.perf_counter() - started) / calls
