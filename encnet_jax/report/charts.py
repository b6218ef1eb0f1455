"""Geometry of figures, in pixels; `templates/charts.html` draws them as SVG."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer

_LEVELS = 10  # of the colors of a confusion matrix
_LETTER = 0.6  # width of a letter relative to the font size
_MAX_ANNOTATED = 28  # classes up to which cells show their values
_MAX_POINTS = 300  # of a curve


class Level(NamedTuple):
    """The cells of a confusion matrix that share a color.

    Attributes:
        opacity: Of the color, 0 to 1.
        path: The cells as the data of an SVG path.
    """

    opacity: float
    path: str


class MatrixChart(NamedTuple):
    """A confusion matrix.

    Attributes:
        cell: Side of a cell.
        margin: Space for the names, on the left and on top.
        side: Width and height of all.
        font: Size of the names.
        names: Names of the classes, shortened.
        levels: The cells.
        texts: Column, row, percent, and class of the color; empty for many classes.
    """

    cell: int
    margin: int
    side: int
    font: float
    names: list[str]
    levels: list[Level]
    texts: list[tuple[int, int, str, str]]


def matrix_chart(
    matrix: Integer[np.ndarray, "n n"], class_names: Sequence[str]
) -> MatrixChart:
    """Lays out a confusion matrix, each row relative to its true class."""
    count = len(matrix)
    cell = 26 if count <= _MAX_ANNOTATED else 14 if count <= 60 else 9
    font = min(12.0, 0.8 * cell)
    names = [elided(name, 22) for name in class_names]
    margin = math.ceil(max(map(_letters, names)) * font * _LETTER) + 24
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    # Square root, so that small shares of wrong pixels show; below 0.25 % none does.
    level = np.ceil(np.sqrt(share) * _LEVELS - 0.5).astype(int)
    levels = []
    for value in range(1, _LEVELS + 1):
        cells = [
            f"M{margin + cell * j} {margin + cell * i}h{cell}v{cell}h-{cell}z"
            for i, j in zip(*np.nonzero(level == value))
        ]
        if cells:
            levels.append(Level(value / _LEVELS, "".join(cells)))
    texts = []
    if count <= _MAX_ANNOTATED:
        texts = [
            (int(j), int(i), f"{100 * share[i, j]:.0f}", _ink(int(level[i, j])))
            for i, j in zip(*np.nonzero(share >= 0.005))
        ]
    side = margin + cell * count + 2
    return MatrixChart(cell, margin, side, font, names, levels, texts)


def _ink(level: int) -> str:
    """Returns the color of a text that can be read on a cell, in light and dark."""
    return "plain" if level <= 6 else "black" if level == 7 else "inverse"


def largest_confusions(
    matrix: Integer[np.ndarray, "n n"], class_names: Sequence[str], count: int = 12
) -> list[dict[str, Any]]:
    """Returns the pairs of classes with the most wrong pixels: names, pixels, share.

    The share is that of the true class's pixels.
    """
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    rows = []
    for i, j in zip(*np.unravel_index(order, wrong.shape)):
        if wrong[i, j] > 0:
            share = float(wrong[i, j] / matrix[i].sum())
            pair = {"true": class_names[i], "predicted": class_names[j]}
            rows.append({**pair, "pixels": int(wrong[i, j]), "share": share})
    return rows


def elided(text: str, length: int) -> str:
    """Returns a text of at most so many letters, with an ellipsis if it was longer.

    Letters that are drawn twice as wide as others, as those of Chinese, count twice.
    """
    if _letters(text) <= length:
        return text
    while _letters(text) > length - 1:
        text = text[:-1]
    return f"{text}…"


def _letters(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


class Curve(NamedTuple):
    """A line of a chart.

    Attributes:
        name: What it shows.
        path: Data of an SVG path.
        last: The last point: x, y.
    """

    name: str
    path: str
    last: tuple[float, float]


class CurveChart(NamedTuple):
    """Curves over steps.

    Attributes:
        title: What the values are.
        width: Of all.
        height: Of all.
        left: Of the plot.
        bottom: Of the plot.
        curves: The lines, in the order of the runs; None where a run has no values.
        x_ticks: Position and text.
        y_ticks: Position and text.
        summary: The values in words.
    """

    title: str
    width: int
    height: int
    left: int
    bottom: int
    curves: list[Curve | None]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    summary: str


def curve_chart(title: str, series: Mapping[str, Mapping[int, float]]) -> CurveChart:
    """Lays out values over steps, one curve per run.

    Args:
        title: What the values are.
        series: Name of a run -> step -> value; values that are not finite are left out.
    """
    width, height, left, right, top, bottom = 640, 280, 52, 12, 10, 240
    finite = {
        name: np.array([p for p in sorted(v.items()) if math.isfinite(p[1])])
        for name, v in series.items()
    }
    points = {name: thinned(values) for name, values in finite.items()}
    present = [p for p in points.values() if len(p)]
    every = np.concatenate(present) if present else np.array([[0.0, 0.0], [1.0, 1.0]])
    (x_low, y_low), (x_high, y_high) = every.min(0), every.max(0)
    x_ticks, y_ticks = ticks(min(x_low, 0), x_high), ticks(y_low, y_high)
    x_low, x_high = min(x_low, 0), max(x_high, 1)
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def x_of(value: float) -> float:
        return left + (width - right - left) * (value - x_low) / (x_high - x_low)

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * (value - y_low) / (y_high - y_low)

    curves: list[Curve | None] = []
    for name, values in points.items():
        if not len(values):
            curves.append(None)
            continue
        placed = [(x_of(x), y_of(y)) for x, y in values]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        curves.append(Curve(name, f"M{path}", placed[-1]))
    summary = "; ".join(
        f"{name}: {v[-1, 1]:.4g} at step {v[-1, 0]:.0f}"
        for name, v in finite.items()
        if len(v)
    )
    return CurveChart(
        title,
        width,
        height,
        left,
        bottom,
        curves,
        # Steps are whole numbers.
        [
            (x_of(value), f"{value:,.0f}")
            for value in x_ticks
            if value <= x_high and value == int(value)
        ],
        [(y_of(value), f"{value:.4g}") for value in y_ticks],
        summary,
    )


def thinned(points: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "k 2"]:
    """Returns the means of groups of neighboring points, few enough to draw."""
    if len(points) <= _MAX_POINTS:
        return points.astype(np.float64)
    groups = np.array_split(points, _MAX_POINTS)
    return np.stack([group.mean(0) for group in groups])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns round values that enclose a range, at most `count` + 2."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(s * power for s in (1, 2, 5, 10) if s * power * count >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]
