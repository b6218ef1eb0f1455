"""The geometry of figures, worked out by hand."""

import math

import numpy as np
import pytest

from encnet_jax.report import charts


def test_matrix_has_a_cell_where_a_row_has_pixels():
    matrix = np.array([[64, 36, 0], [0, 100, 0], [0, 0, 0]])
    chart = charts.matrix_chart(matrix, ("a", "b", "c"))
    m, c = chart.margin, chart.cell
    cells = {round(level.opacity, 1): level.path for level in chart.levels}
    # Square roots of the shares: 0.8, 0.6 and 1.
    assert cells == {
        0.6: f"M{m + c} {m}h{c}v{c}h-{c}z",
        0.8: f"M{m} {m}h{c}v{c}h-{c}z",
        1.0: f"M{m + c} {m + c}h{c}v{c}h-{c}z",
    }
    texts = [(0, 0, "64", "inverse"), (1, 0, "36", "plain"), (1, 1, "100", "inverse")]
    assert chart.texts == texts
    assert chart.side == m + 3 * c + 2


def test_matrix_of_many_classes_has_no_texts_and_stays_small():
    matrix = np.random.default_rng(0).integers(0, 100, (171, 171))
    chart = charts.matrix_chart(matrix, ["a name of a class that is long"] * 171)
    assert not chart.texts and len(chart.names[0]) == 22
    assert sum(len(level.path) for level in chart.levels) < 700_000


def test_largest_confusions_come_first():
    matrix = np.array([[5, 3, 2], [0, 9, 1], [4, 0, 6]])
    rows = charts.largest_confusions(matrix, ("a", "b", "c"), 2)
    assert rows == [
        {"true": "c", "predicted": "a", "pixels": 4, "share": 0.4},
        {"true": "a", "predicted": "b", "pixels": 3, "share": 0.3},
    ]
    assert charts.largest_confusions(np.eye(2, dtype=int), ("a", "b")) == []


def test_ticks_are_round_and_enclose():
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(0.31, 0.52) == [0.3, 0.35, 0.4, 0.45, 0.5, 0.55]
    for low, high in ((0, 0), (3, 3), (-2, 1600), (1e-5, 2e-5)):
        found = charts.ticks(low, high)
        assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 7


def test_curves_span_the_plot_and_leave_out_what_is_not_finite():
    runs = {"a": {0: 0.0, 100: 1.0}, "b": {}, "c": {50: math.nan, 60: 0.5}}
    chart = charts.curve_chart("loss", runs)
    a, b, c = chart.curves
    assert b is None and a.path == "M52.0 240.0L628.0 10.0"
    assert c.last == pytest.approx((52 + 0.6 * 576, 125))
    assert chart.summary == "a: 1 at step 100; c: 0.5 at step 60"
    empty = charts.curve_chart("loss", {"a": {}})
    assert empty.curves == [None]


def test_axis_of_few_steps_has_whole_numbers():
    chart = charts.curve_chart("loss", {"a": {0: 0.0, 2: 1.0}})
    assert [text for _, text in chart.x_ticks] == ["0", "1", "2"]


def test_long_curves_are_thinned_to_means():
    points = np.stack([np.arange(1200.0), np.tile([0.0, 2.0], 600)], 1)
    thin = charts.thinned(points)
    assert thin.shape == (300, 2) and (thin[:, 1] == 1).all()
    # In words it ends where the run ends, not in the middle of a group.
    chart = charts.curve_chart("loss", {"a": dict(points.tolist())})
    assert chart.summary == "a: 2 at step 1199"


def test_wide_letters_have_room():
    matrix = np.eye(1, dtype=int)
    narrow, wide = (charts.matrix_chart(matrix, (c * 9,)).margin for c in "a道")
    assert wide - 24 >= 9 * 12 > narrow - 24
    assert charts.elided("道" * 12, 22) == "道" * 10 + "…"
    assert charts.elided("道" * 11, 22) == "道" * 11
