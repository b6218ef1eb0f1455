"""Boundary IoU against erosion of one class at a time, as its authors compute it."""

import numpy as np
import pytest
from scipy import ndimage

from encnet_jax.evaluate.boundary import boundary_scores, count_boundary, near_boundary


def reference(labels, predictions, num_classes):
    """Counts as `mask_to_boundary` and `boundary_iou` of boundary-iou-api."""
    distance = max(1, round(0.02 * np.hypot(*labels.shape)))
    predictions = np.where(labels == 255, 255, predictions)

    def boundary(mask):
        padded = np.pad(mask, 1)
        eroded = ndimage.binary_erosion(padded, np.ones((3, 3)), distance)
        return mask & ~eroded[1:-1, 1:-1]

    counts = []
    for k in range(num_classes):
        one, other = boundary(labels == k), boundary(predictions == k)
        counts.append([(one & other).sum(), (one | other).sum()])
    return np.array(counts)


@pytest.mark.parametrize("shape", [(40, 60), (150, 130), (3, 4), (1, 9)])
def test_counts_are_those_of_one_class_at_a_time(shape):
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 5, (9, 9), np.uint8)
    labels = np.kron(cells, np.ones((20, 20), np.uint8))[: shape[0], : shape[1]]
    labels = np.where(labels == 4, 255, labels).astype(np.uint8)
    predictions = np.roll(np.where(labels == 255, 1, labels), 2, -1).astype(np.uint8)
    found = count_boundary(labels, predictions, 4)
    np.testing.assert_array_equal(found, reference(labels, predictions, 4))
    assert found.dtype == np.int64


def test_a_perfect_prediction_scores_one_and_a_far_one_less_than_its_iou():
    labels = np.zeros((200, 200), np.uint8)
    labels[50:150, 50:150] = 1
    counts = count_boundary(labels, labels, 3)
    scores = boundary_scores(counts)
    assert scores["mean_boundary_iou"] == 1
    np.testing.assert_array_equal(scores["per_class_boundary_iou"], [1, 1, np.nan])
    # 2 % of the diagonal of 283 pixels are 6: a ring of 100^2 - 88^2 pixels.
    assert counts[1].tolist() == [100**2 - 88**2] * 2
    moved = np.roll(labels, 6, 1)
    iou = (94 * 100) / (106 * 100)
    score = boundary_scores(count_boundary(labels, moved, 3))["per_class_boundary_iou"]
    assert 0 < score[1] < iou - 0.3


def test_absent_classes_and_images_without_labels():
    nothing = np.full((9, 9), 255, np.uint8)
    counts = count_boundary(nothing, np.zeros((9, 9), np.uint8), 2)
    assert not counts.any()
    assert np.isnan(boundary_scores(counts)["mean_boundary_iou"])
    assert boundary_scores(counts, "zero")["mean_boundary_iou"] == 0


def test_the_border_of_the_image_is_a_boundary():
    near = near_boundary(np.zeros((9, 9), np.uint8), 2)
    assert near.sum() == 81 - 25 and not near[2:-2, 2:-2].any()
