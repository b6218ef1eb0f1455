"""Scores by the size of objects, on objects that can be counted by hand."""

import numpy as np

from encnet_jax.evaluate.object_sizes import count_by_size, scores_by_size


def test_objects_are_counted_by_their_own_size():
    labels = np.zeros((200, 200), np.uint8)
    labels[:10, :10] = 1  # small: 100 pixels
    labels[50:90, 50:90] = 1  # medium: 1600 pixels
    predictions = labels.copy()
    predictions[:10, :4] = 0  # 40 of the small one are missed
    counts = count_by_size(labels, predictions, 2)
    small, medium, large = counts[:, 1]
    assert small.tolist() == [60, 40, 0]
    assert medium.tolist() == [1600, 0, 0]
    assert large.tolist() == [0, 0, 0]
    # The rest is one large region of class 0, and so is its prediction.
    assert counts[2, 0].tolist() == [200 * 200 - 1700, 0, 40]


def test_false_pixels_count_at_the_size_of_what_was_predicted():
    labels = np.zeros((64, 64), np.uint8)
    predictions = labels.copy()
    predictions[:5, :5] = 1
    predictions[20:60, 20:60] = 1
    counts = count_by_size(labels, predictions, 2)
    assert counts[0, 1].tolist() == [0, 0, 25]
    assert counts[1, 1].tolist() == [0, 0, 1600]
    assert counts[1, 0].tolist() == [64 * 64 - 1625, 1625, 0]


def test_regions_that_touch_at_a_corner_are_one_object():
    labels = np.zeros((80, 80), np.uint8)
    labels[:30, :30] = 1
    labels[30:60, 30:60] = 1
    counts = count_by_size(labels, labels, 2)
    assert counts[1, 1].tolist() == [1800, 0, 0]


def test_ignored_pixels_count_nowhere():
    labels = np.full((8, 8), 255, np.uint8)
    labels[:4] = 1
    counts = count_by_size(labels, np.zeros((8, 8), np.uint8), 2)
    assert counts[0, 1].tolist() == [0, 32, 0]
    assert counts[:, 0, 2].tolist() == [32, 0, 0]
    assert counts.sum() == 64


def test_scores_are_those_worked_out_by_hand():
    counts = np.zeros((3, 3, 3), np.int64)
    counts[0, 0] = [6, 2, 4]
    counts[0, 1] = [1, 3, 0]
    counts[0, 2] = [0, 0, 9]  # no small object of class 2
    counts[2, 2] = [5, 0, 0]
    scores = scores_by_size(counts)
    np.testing.assert_allclose(scores["small"]["per_class_iou"], [0.5, 0.25, np.nan])
    assert scores["small"]["mean_iou"] == 0.375
    assert scores["small"]["mean_recall"] == (6 / 8 + 1 / 4) / 2
    assert np.isnan(scores["medium"]["mean_iou"])
    assert scores["large"]["mean_iou"] == 1
    scored = [scores[size]["classes_scored"] for size in ("small", "medium", "large")]
    assert scored == [2, 0, 1]
