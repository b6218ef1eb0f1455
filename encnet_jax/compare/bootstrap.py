"""Paired bootstrap over images: how far a difference depends on the images drawn."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from encnet_jax.evaluate.image_log import ImageLog

DRAWS = 2000
_CHUNK_ELEMENTS = 10**7  # of the counts of a chunk of draws


class Differences(NamedTuple):
    """Differences of scores, second minus first, with their 95 % intervals.

    Attributes:
        mean: Of the mean IoU, or of the accuracy.
        mean_interval: Its bounds, (2,); NaN where there is no interval.
        by_class: Of each class; NaN where a run has no score.
        intervals: Their bounds, (2, n).
        scores: The scores of both runs by class, (2, n).
    """

    mean: float
    mean_interval: Float[np.ndarray, " 2"]
    by_class: Float[np.ndarray, " n"]
    intervals: Float[np.ndarray, "2 n"]
    scores: Float[np.ndarray, "2 n"]


def paired_differences(
    first: ImageLog,
    second: ImageLog,
    task: str,
    *,
    absent_classes: str = "skip",
    draws: int = DRAWS,
    seed: int = 0,
) -> Differences:
    """Compares two evaluations of the same images.

    Images are drawn with replacement, as many as there are, and the scores of both runs
    are computed from the same draw. The interval is that of the percentiles 2.5 and
    97.5 of the differences; a class counts in the draws that contain it. One image says
    nothing about others, so a class that is in a single image has no interval.

    Args:
        first: Counts of the images.
        second: Likewise, in the same order.
        task: `"segmentation"`: IoU; `"classification"`: accuracy.
        absent_classes: As in `metrics.segmentation_metrics`.
        draws: Number of draws.
        seed: Of the draws.
    """
    logs = first, second
    ones = np.ones((1, len(first.names)), np.int64)
    (mean,), (by_class,) = _differences(logs, ones, task, absent_classes)
    parts = [
        _differences(logs, counts, task, absent_classes)
        for counts in _resampled(len(first.names), draws, seed)
    ]
    means, classes = (np.concatenate(part) for part in zip(*parts))
    intervals, mean_interval = _interval(classes), _interval(means[:, None])[:, 0]
    shown = first.labeled
    if task == "segmentation":  # whose scores count wrong predictions of a class too
        shown = shown + first.predicted + second.predicted
    intervals[:, (shown > 0).sum(0) == 1] = np.nan
    if len(first.names) < 2:
        mean_interval[:] = np.nan
    return Differences(
        float(mean),
        mean_interval,
        by_class,
        intervals,
        np.concatenate([_scores(log, ones, task, absent_classes)[1] for log in logs]),
    )


def _resampled(count: int, draws: int, seed: int) -> Iterator[Int64[np.ndarray, "d N"]]:
    """Yields how often each of `count` images is in each draw."""
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK_ELEMENTS // count)
    for start in range(0, draws, size):
        share = np.full(count, 1 / count)
        yield rng.multinomial(count, share, min(size, draws - start))


def _differences(
    logs: Sequence[ImageLog],
    counts: Int64[np.ndarray, "d N"],
    task: str,
    absent_classes: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the differences of the mean score (d,) and of each class (d, n)."""
    scores = [_scores(log, counts, task, absent_classes) for log in logs]
    return scores[1][0] - scores[0][0], scores[1][1] - scores[0][1]


def _scores(
    log: ImageLog, counts: Int64[np.ndarray, "d N"], task: str, absent_classes: str
) -> tuple[np.ndarray, np.ndarray]:
    # In float64: the products are exact up to 2^53 pixels, and BLAS multiplies them.
    weights = counts.astype(np.float64)
    correct, labeled, predicted = (
        weights @ part.astype(np.float64)
        for part in (log.correct, log.labeled, log.predicted)
    )
    classifies = task == "classification"
    total = labeled if classifies else labeled + predicted - correct
    missing = np.nan if classifies or absent_classes == "skip" else 0.0
    by_class = np.full(correct.shape, missing)
    np.divide(correct, total, out=by_class, where=total > 0)
    if classifies:
        return correct.sum(1) / np.maximum(labeled.sum(1), 1), by_class
    known = ~np.isnan(by_class)
    sums = np.where(known, by_class, 0).sum(1)
    return sums / np.maximum(known.sum(1), 1), by_class


def _interval(values: Float[np.ndarray, "d n"]) -> Float[np.ndarray, "2 n"]:
    """Returns the percentiles 2.5 and 97.5 of each column; NaN for one of NaN."""
    bounds = np.full((2, values.shape[1]), np.nan)
    for k, column in enumerate(values.T):
        known = column[~np.isnan(column)]
        if known.size:
            bounds[:, k] = np.percentile(known, (2.5, 97.5))
    return bounds
