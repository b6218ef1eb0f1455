"""The paired bootstrap against draws of images one by one."""

import numpy as np
import pytest

from encnet_jax.compare import bootstrap
from encnet_jax.compare.bootstrap import paired_differences
from encnet_jax.evaluate.image_log import ImageLog
from encnet_jax.metrics import segmentation_metrics


def log_of(matrices):
    """Returns the log of images with given confusion matrices (N, n, n)."""
    names = [f"{i}" for i in range(len(matrices))]
    counts = matrices.diagonal(0, 1, 2), matrices.sum(2), matrices.sum(1)
    return ImageLog(names, *counts, [None] * len(matrices))


@pytest.fixture
def matrices():
    """Confusion matrices of 30 images by two runs; class 3 is never there."""
    rng = np.random.default_rng(1)
    found = []
    for right in (60, 80):
        diagonal = rng.integers(0, right, (30, 4, 1)) * np.eye(4, dtype=int)
        found.append(rng.integers(0, 20, (30, 4, 4)) + diagonal)
        found[-1][:, 3] = found[-1][:, :, 3] = 0
    return found


@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_differences_are_those_of_the_scores(matrices, absent):
    one, two = (segmentation_metrics(m.sum(0), absent) for m in matrices)
    logs = map(log_of, matrices)
    found = paired_differences(*logs, "segmentation", absent_classes=absent, draws=50)
    assert found.mean == pytest.approx(two["mean_iou"] - one["mean_iou"])
    expected = two["per_class_iou"] - one["per_class_iou"]
    np.testing.assert_allclose(found.by_class, expected)
    assert np.isnan(found.intervals[:, 3]).all() == (absent == "skip")


def test_intervals_are_those_of_images_drawn_one_by_one(matrices):
    logs = map(log_of, matrices)
    found = paired_differences(*logs, "segmentation", draws=4000)
    rng = np.random.default_rng(7)
    draws = []
    for _ in range(4000):
        chosen = rng.integers(0, 30, 30)
        one, two = (segmentation_metrics(m[chosen].sum(0)) for m in matrices)
        scores = zip(
            (one["mean_iou"], *one["per_class_iou"]),
            (two["mean_iou"], *two["per_class_iou"]),
        )
        draws.append([b - a for a, b in scores])
    low, high = np.percentile(draws, (2.5, 97.5), axis=0)
    tolerance = 0.06 * np.nanmax(high - low)
    np.testing.assert_allclose(found.mean_interval, (low[0], high[0]), atol=tolerance)
    both = low[1:4], high[1:4]
    np.testing.assert_allclose(found.intervals[:, :3], both, atol=tolerance)


def test_same_draws_whatever_the_size_of_a_chunk(matrices, monkeypatch):
    logs = [log_of(m) for m in matrices]
    one = paired_differences(*logs, "segmentation", draws=20)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 30 * 7)
    two = paired_differences(*logs, "segmentation", draws=20)
    np.testing.assert_array_equal(one.intervals, two.intervals)
    other = paired_differences(*logs, "segmentation", draws=20, seed=1)
    assert (one.mean_interval != other.mean_interval).any()


def test_a_run_does_not_differ_from_itself(matrices):
    log = log_of(matrices[0])
    found = paired_differences(log, log, "segmentation", draws=20)
    assert found.mean == 0 and not found.mean_interval.any()
    assert not np.nan_to_num(found.intervals).any()


def test_one_image_gives_no_interval(matrices):
    few = [m.copy() for m in matrices]
    for m in few:  # class 2 is in the last image only
        m[:-1, 2] = m[:-1, :, 2] = 0
    found = paired_differences(*map(log_of, few), "segmentation", draws=50)
    assert found.by_class[2] != 0 and np.isnan(found.intervals[:, 2]).all()
    assert not np.isnan(found.intervals[:, :2]).any()
    found = paired_differences(
        *(log_of(m[:1]) for m in matrices), "segmentation", draws=50
    )
    assert found.mean != 0 and np.isnan(found.mean_interval).all()
    assert np.isnan(found.intervals).all()


def test_only_what_differs_between_the_runs_widens_an_interval(matrices):
    """Where pairing counts: both runs vary with the images, their difference not."""
    better = matrices[0].copy()
    better[:, 0, 0] += matrices[0][:, 0].sum(1)
    one, two = log_of(matrices[0]), log_of(better)
    found = paired_differences(one, two, "segmentation", draws=500)
    assert found.intervals[0, 0] > 0


def test_classification_compares_accuracies():
    right = np.array([1, 1, 0, 0, 1, 0])
    labels = np.array([0, 0, 0, 1, 1, 1])
    logs = []
    for correct in (right, np.ones(6, int)):
        predicted = np.where(correct, labels, 1 - labels)
        eye = np.eye(3, dtype=int)
        logs.append(log_of(eye[labels][:, :, None] * eye[predicted][:, None]))
    found = paired_differences(*logs, "classification", draws=200)
    assert found.mean == 0.5
    np.testing.assert_allclose(found.by_class, [1 / 3, 2 / 3, np.nan])
    assert found.mean_interval[0] >= 0 and found.mean_interval[1] <= 1
