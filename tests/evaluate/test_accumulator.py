"""Sums over images, and the stored metrics of each."""

import dataclasses

import numpy as np
import pytest

from encnet_jax.evaluate.accumulator import ImageMetrics, MetricAccumulator


def metrics_of(index, matrix, presence=None, by_size=None):
    return ImageMetrics(index, np.asarray(matrix, np.int64), presence, by_size)


def test_metrics_survive_a_round_trip_through_json_bit_by_bit():
    rng = np.random.default_rng(0)
    matrix = np.zeros((150, 150), np.int64)
    matrix[3, 140], matrix[149, 0] = 2**40, 1
    sizes = rng.integers(0, 2, (3, 150, 3))
    metrics = dataclasses.replace(
        metrics_of(7, matrix, rng.random(150, np.float32), sizes),
        boundary=rng.integers(0, 2, (150, 2)),
        name="a\udc80 ü",
        thumbnail="x",
    )
    line = metrics.to_json()
    assert "\n" not in line
    back = ImageMetrics.from_json(line, 150)
    assert back.index == 7
    for old, new in zip(*(list(vars(m).values())[1:] for m in (metrics, back))):
        np.testing.assert_array_equal(old, new)
        assert getattr(old, "dtype", None) == getattr(new, "dtype", None)
    bare = ImageMetrics.from_json(metrics_of(1, matrix).to_json(), 150)
    assert bare.presence is None and bare.by_size is None


def test_results_come_from_the_summed_matrix_and_each_image_has_its_own():
    accumulator = MetricAccumulator(2, 2)
    accumulator.add(metrics_of(1, [[3, 1], [0, 0]]))
    accumulator.add(metrics_of(0, [[1, 0], [2, 1]]))
    total = accumulator.over_hosts()
    np.testing.assert_array_equal(total.matrix, [[4, 1], [2, 1]])
    np.testing.assert_allclose(total.image_iou, [(1 / 3 + 1 / 3) / 2, (3 / 4 + 0) / 2])
    results = total.results("skip")
    assert results["images"] == 2 and results["pixel_accuracy"] == 5 / 8
    assert "presence_average_precision" not in results
    assert "by_object_size" not in results


def test_image_without_labels_has_no_score():
    accumulator = MetricAccumulator(2, 2)
    accumulator.add(metrics_of(0, [[0, 0], [0, 0]]))
    accumulator.add(metrics_of(1, [[0, 0], [1, 1]]))
    total = accumulator.over_hosts()
    np.testing.assert_array_equal(total.image_iou, [np.nan, 0.25])
    assert total.results("skip")["mean_iou"] == 0.25


@pytest.mark.parametrize("indices", [[0], [0, 1, 1]])
def test_image_missed_or_counted_twice_is_an_error(indices):
    accumulator = MetricAccumulator(2, 2)
    for index in indices:
        accumulator.add(metrics_of(index, [[1, 0], [0, 1]]))
    with pytest.raises(RuntimeError, match=f"image 1 was scored {len(indices) - 1}"):
        accumulator.over_hosts()


def test_presence_is_ranked_against_the_classes_in_the_labels():
    accumulator = MetricAccumulator(3, 2)
    matrices = ([[1, 0], [0, 0]], [[1, 0], [0, 1]], [[0, 0], [0, 1]])
    for index, matrix in enumerate(matrices):
        presence = np.array([0.5 - index / 10, index / 10], np.float32)
        accumulator.add(metrics_of(index, matrix, presence))
    results = accumulator.results("skip")
    assert results["presence_average_precision"] == 1
    np.testing.assert_array_equal(results["per_class_presence_average_precision"], 1)
