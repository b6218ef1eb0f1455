"""Reliability worked out by hand, and confidences against `Segmenter`'s."""

import numpy as np
import pytest

from encnet_jax import Segmenter
from encnet_jax.config import load_config
from encnet_jax.data.datasets import Example
from encnet_jax.evaluate.calibration import (
    BINS,
    Calibration,
    make_confidence_fn,
    sample_indices,
)
from encnet_jax.run.workdir import load_workdir
from tests.small_workdir import TINY, write_workdir


def test_error_is_the_mean_gap_by_pixels():
    calibration = Calibration()
    labels = np.array([[0, 0, 1, 255]], np.uint8)
    predictions = np.array([[0, 1, 1, 1]], np.uint8)
    confidence = np.array([[0.5, 0.5, 1.0, 0.9]], np.float32)
    calibration.add(labels, predictions, confidence, 2)
    found = calibration.results()
    # Two pixels of 0.5, one of them right; one of 1.0, right; one without a label.
    assert found["pixels"] == 3 and found["images"] == 1
    assert found["expected_calibration_error"] == 0
    assert found["count"][[7, 14]].tolist() == [2, 1] and found["count"].sum() == 3
    assert found["accuracy"][[7, 14]].tolist() == [0.5, 1] and len(found["count"]) == 15
    assert np.isnan(found["accuracy"][0]) and np.isnan(found["confidence"][0])
    calibration.add(np.uint8([[1]]), np.uint8([[0]]), np.float32([[1]]), 2)
    # Now the last bin of two pixels is half right: 2 * 0.5 of 4 pixels.
    assert calibration.results()["expected_calibration_error"] == 0.25


def test_confidence_of_logits_that_are_not_finite_is_none():
    calibration = Calibration()
    labels = np.array([[0, 1]], np.uint8)
    confidence = np.array([[np.nan, 1.0]], np.float32)
    calibration.add(labels, labels, confidence, 2)
    found = calibration.results()
    assert found["count"][[0, 14]].tolist() == [1, 1]
    assert found["expected_calibration_error"] == 0.5  # certain of one, right in both


def test_nothing_labeled_has_no_error():
    assert np.isnan(Calibration().results()["expected_calibration_error"])


@pytest.mark.parametrize(
    ("count", "size"), [(1, 1), (7, 7), (16, 16), (500, 16), (2000, 20), (50_000, 100)]
)
def test_sample_is_bounded_even_and_distinct(count, size):
    indices = sample_indices(count)
    assert len({*indices}) == size and indices == sorted(indices)
    assert 0 <= indices[0] and indices[-1] < count
    gaps = np.diff(indices)
    assert not gaps.size or gaps.max() - gaps.min() <= 1
    assert abs(indices[0] + indices[-1] - count) <= 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "slide"},
        pytest.param(
            {"mode": "slide", "scales": (0.5, 1.0), "flip": True},
            marks=pytest.mark.slow,
        ),
        pytest.param({"protocol": "mmseg", "mode": "slide"}, marks=pytest.mark.slow),
    ],
    ids=["whole", "slide", "flip", "mmseg"],
)
def test_confidences_are_the_largest_probabilities(tmp_path, settings):
    data = {"base_size": 40, "crop_size": 24}
    write_workdir(tmp_path, data=data, evaluation=settings, **TINY)
    config, run = load_config(tmp_path / "config.json"), load_workdir(tmp_path)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (30, 48, 3), np.uint8) for _ in range(2)]
    examples = [
        (i, Example(image, np.zeros((30, 48), np.uint8), f"{i}"))
        for i, image in enumerate(images)
    ]
    predict = make_confidence_fn(config, run.model, run.info)
    found = list(predict(run.params, run.batch_stats, examples))
    assert [p.index for p in found] == [0, 1]
    segmenter = Segmenter.from_workdir(tmp_path)
    for image, prediction in zip(images, found):
        probabilities = segmenter(image).probabilities
        np.testing.assert_array_equal(prediction.labels, probabilities.argmax(-1))
        np.testing.assert_allclose(
            prediction.confidence, probabilities.max(-1), rtol=1e-4
        )
    assert BINS == 15
