"""Tests of the scores against values worked out by hand."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from encnet_jax.metrics import (
    average_precision,
    confusion_matrix,
    confusion_matrix_np,
    mean_iou_with_background,
    segmentation_metrics,
)

# Rows are true classes. Classes 0, 1 and 2 have 4, 3 and 5 pixels.
MATRIX = np.array([[3, 1, 0], [0, 2, 1], [2, 0, 3]])


def test_confusion_matrix_counts_true_classes_in_rows():
    labels = np.repeat([0, 0, 1, 1, 2, 2], [3, 1, 2, 1, 2, 3]).astype(np.uint8)
    predictions = np.repeat([0, 1, 1, 2, 0, 2], [3, 1, 2, 1, 2, 3])
    order = np.random.default_rng(0).permutation(12)
    actual = jax.jit(confusion_matrix, static_argnums=2)(
        labels[order].reshape(3, 4), predictions[order].reshape(3, 4), 3
    )
    np.testing.assert_array_equal(actual, MATRIX)


@pytest.mark.parametrize("ignore_label", [255, 1])
def test_ignored_pixels_count_nowhere(ignore_label):
    labels = np.array([0, ignore_label, 2, ignore_label])
    matrix = confusion_matrix(labels, np.array([0, 0, 0, 2]), 3, ignore_label)
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize("count", [confusion_matrix, confusion_matrix_np])
@pytest.mark.parametrize("label", [-1, -3, 3, 9, 100, 254])
def test_labels_that_are_no_class_count_nowhere(label, count):
    matrix = count(np.array([label, 2]), np.array([1, 1]), 3)
    np.testing.assert_array_equal(matrix, [[0, 0, 0], [0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("count", [confusion_matrix, confusion_matrix_np])
@pytest.mark.parametrize("prediction", [-1, -4, 3, 5, 255])
def test_predictions_that_are_no_class_are_in_no_other_class(prediction, count):
    matrix = count(np.array([1, 2]), np.array([prediction, 2]), 3)
    np.testing.assert_array_equal(matrix, [[0, 0, 0], [0, 0, 0], [0, 0, 1]])


INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int64, np.uint64)


@pytest.mark.parametrize("of_predictions", INTEGERS)
@pytest.mark.parametrize("of_labels", INTEGERS)
def test_host_counts_integers_of_any_dtype(of_labels, of_predictions):
    labels = np.array([0, 119, 119, 125, -1]).astype(of_labels)
    predictions = np.array([0, 119, -1, 3, 4]).astype(of_predictions)
    matrix = confusion_matrix_np(labels, predictions, 120)
    assert matrix.dtype == np.int64 and matrix.shape == (120, 120)
    assert matrix[0, 0] == matrix[119, 119] == 1 and matrix.sum() == 2


@pytest.fixture
def unchecked(monkeypatch):
    """Turns the shape checks of `tests/conftest.py` off: users have none."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


COUNTS = [
    confusion_matrix,
    jax.jit(confusion_matrix, static_argnums=2),
    confusion_matrix_np,
]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("shapes", [((4,), (3,)), ((4, 6), (6, 4)), ((1, 4), (4,))])
@pytest.mark.usefixtures("unchecked")
def test_predictions_of_another_shape_raise(shapes, count):
    labels, predictions = (np.zeros(shape, np.uint8) for shape in shapes)
    with pytest.raises(ValueError) as error:
        count(labels, predictions, 2)
    assert f"labels of {shapes[0]} for predictions of {shapes[1]}" in str(error.value)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.complex64, jnp.bfloat16])
@pytest.mark.usefixtures("unchecked")
def test_probabilities_are_no_labels(dtype, count):
    labels, scores = np.zeros((4, 6), np.uint8), np.ones((4, 6), dtype)
    with pytest.raises(TypeError, match=f"predictions of {scores.dtype}: must be int"):
        count(labels, scores, 2)
    with pytest.raises(TypeError, match=f"labels of {scores.dtype}: must be int"):
        count(scores, labels, 2)


def test_booleans_are_two_classes():
    labels, found = np.array([True, True, False]), np.array([True, False, False])
    matrix = confusion_matrix(labels, found, 2)
    np.testing.assert_array_equal(matrix, [[1, 0], [1, 1]])
    np.testing.assert_array_equal(
        confusion_matrix(labels, found.astype(int), 2), matrix
    )


def test_scores_are_those_worked_out_by_hand():
    actual = segmentation_metrics(MATRIX)
    iou = [3 / 6, 2 / 4, 3 / 6]
    assert actual["pixel_accuracy"] == pytest.approx(8 / 12)
    np.testing.assert_allclose(actual["per_class_iou"], iou)
    np.testing.assert_allclose(actual["per_class_accuracy"], [3 / 4, 2 / 3, 3 / 5])
    assert actual["mean_iou"] == pytest.approx(0.5)
    assert actual["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 3 + 3 / 5) / 3)
    assert actual["frequency_weighted_iou"] == pytest.approx(0.5)


def test_frequency_weights_are_those_of_the_labels():
    actual = segmentation_metrics(np.array([[6, 0], [1, 1]]))
    expected = (6 * 6 / 7 + 2 * 1 / 2) / 8
    assert actual["frequency_weighted_iou"] == pytest.approx(expected)


@pytest.mark.parametrize("absent, iou, count", [("skip", np.nan, 2), ("zero", 0.0, 3)])
def test_absent_class_is_skipped_or_zero(absent, iou, count):
    matrix = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 2]])
    actual = segmentation_metrics(matrix, absent)
    np.testing.assert_allclose(actual["per_class_iou"], [1 / 2, iou, 2 / 3])
    np.testing.assert_allclose(actual["per_class_accuracy"], [1, iou, 2 / 3])
    assert actual["mean_iou"] == pytest.approx((1 / 2 + 2 / 3) / count)
    assert actual["classes_scored"] == count
    assert actual["mean_accuracy"] == pytest.approx((1 + 2 / 3) / count)


@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_class_that_is_only_predicted_has_an_iou_of_zero(absent):
    actual = segmentation_metrics(np.array([[1, 1], [0, 0]]), absent)
    np.testing.assert_allclose(actual["per_class_iou"], [0.5, 0])
    assert actual["mean_iou"] == 0.25 and actual["classes_scored"] == 2
    # Of its accuracy nothing is known.
    assert actual["mean_accuracy"] == (0.5 if absent == "skip" else 0.25)


@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_no_pixel_at_all_scores_zero(absent):
    actual = segmentation_metrics(np.zeros((2, 2), int), absent)
    assert actual["pixel_accuracy"] == actual["mean_iou"] == 0
    assert actual["mean_accuracy"] == actual["frequency_weighted_iou"] == 0


def test_sums_beyond_32_bits_are_exact():
    actual = segmentation_metrics(np.array([[3, 1], [0, 4]], np.int64) * 2**40)
    np.testing.assert_allclose(actual["per_class_iou"], [3 / 4, 4 / 5])


def test_unknown_rule_for_absent_classes_raises():
    with pytest.raises(
        ValueError, match="absent_classes='drop': allowed are 'skip', 'zero'"
    ):
        segmentation_metrics(MATRIX, "drop")


def test_host_counts_as_the_device_does():
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 1, 2, 3, 9, 255], np.uint8), (50, 40))
    predictions = rng.integers(0, 4, (50, 40)).astype(np.uint8)
    actual = confusion_matrix_np(labels, predictions, 4)
    assert actual.dtype == np.int64
    expected = confusion_matrix(labels, predictions, 4)
    np.testing.assert_array_equal(actual, expected)


def test_ade_score_is_the_mean_of_pixel_accuracy_and_mean_iou():
    assert segmentation_metrics(MATRIX)["ade_score"] == pytest.approx(
        (8 / 12 + 0.5) / 2
    )


def test_background_that_is_always_wrong_is_one_more_class_of_zero():
    # PASCAL-Context in the paper: 52.6 over 59 classes is 51.7 over 60.
    assert mean_iou_with_background(np.full(59, 0.526)) == pytest.approx(
        0.526 * 59 / 60
    )
    assert mean_iou_with_background(np.array([0.6, np.nan, 0.3])) == pytest.approx(0.3)


def test_average_precision_is_that_worked_out_by_hand():
    present = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]], bool)
    probability = np.array([[0.9, 0.9, 0.5], [0.8, 0, 0.5], [0.7, 0, 0.5], [0.1, 0, 0]])
    actual = average_precision(present, probability)
    # Class 0 is found first and third; class 2 has three ties, two of them right.
    np.testing.assert_allclose(actual, [(1 + 2 / 3) / 2, np.nan, 2 / 3])
