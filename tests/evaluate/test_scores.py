"""Scores as text: a mean says over how many classes it is."""

import dataclasses

import numpy as np

from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.evaluate.object_sizes import scores_by_size
from encnet_jax.evaluate.scores import add_dataset_metrics, format_table
from encnet_jax.metrics import segmentation_metrics
from encnet_jax.train.validation import score_texts

INFO = DatasetInfo("hand", ("a", "b", "c", "d"), voc_colormap(4), {})
# One class alone scores 1.0, in a set of four.
MATRIX = np.diag([5, 0, 0, 0])


def rows(scores, info=INFO):
    return [" ".join(line.split()) for line in format_table(scores, info).splitlines()]


def test_mean_iou_says_over_how_many_classes_it_is():
    assert "mean IoU 100.00 over 1 of 4 classes" in rows(segmentation_metrics(MATRIX))
    zero = segmentation_metrics(MATRIX, "zero")
    assert "mean IoU 25.00 over 4 of 4 classes" in rows(zero)
    none = segmentation_metrics(0 * MATRIX)
    assert "mean IoU 0.00 over 0 of 4 classes" in rows(none)


def test_background_and_object_sizes_count_their_own_classes():
    info = dataclasses.replace(INFO, name="pascal_context")
    scores = add_dataset_metrics(segmentation_metrics(MATRIX), info)
    counts = np.zeros((3, 4, 3), np.int64)
    counts[0, :2] = [1, 1, 0]
    scores["by_object_size"] = scores_by_size(counts)
    found = rows(scores, info)
    assert "mean IoU, background wrong 50.00 over 2 of 5 classes" in found
    assert "small objects 50.00 50.00 over 2 of 4 classes" in found
    assert "large objects - - over 0 of 4 classes" in found


def test_scores_of_training_are_formatted_with_their_classes():
    scores = {"mean_iou": 0.5, "pixel_accuracy": 0.25}
    counts = {"classes_scored": 3, "num_classes": 4}
    expected = ["mean IoU 0.5000 over 3 of 4 classes", "pixel accuracy 0.2500"]
    assert score_texts({**scores, **counts}) == expected
    texts = score_texts({"accuracy": 0.75, "error": 0.25})
    assert texts == ["accuracy 0.7500", "error 0.2500"]
