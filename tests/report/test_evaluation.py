"""The page of an evaluation: what it says, its markup, and its size."""

import numpy as np
import pytest

from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.data.datasets import Example
from encnet_jax.evaluate.calibration import Calibration
from encnet_jax.metrics import segmentation_metrics
from encnet_jax.report.evaluation import describe, make_strip, save_evaluation_page
from encnet_jax.report.page import percent
from tests.report.pages import check_page

NAMES = ("road", "<b>car</b>", "sky & sea")
INFO = DatasetInfo("mine", NAMES, voc_colormap(3), {})
MATRIX = np.array([[90, 10, 0], [5, 5, 0], [0, 0, 0]])


def scene(count=3, size=(90, 120), seed=0):
    """Returns an example of noise and blobs, which compress badly, and a prediction."""
    rng = np.random.default_rng(seed)
    small = -(-size[0] // 12), -(-size[1] // 12)
    labels = rng.integers(0, count, small, np.uint8).repeat(12, 0).repeat(12, 1)
    labels = np.ascontiguousarray(labels[: size[0], : size[1]])
    image = rng.integers(0, 256, (*small, 3), np.uint8).repeat(12, 0).repeat(12, 1)
    image = image[: size[0], : size[1]] // 2 + rng.integers(0, 99, (*size, 3))
    predictions = np.where(rng.random(size) < 0.1, 0, labels).astype(np.uint8)
    return Example(image.astype(np.uint8), labels, f"scene {seed}"), predictions


def save(path, info=INFO, matrix=MATRIX, **changes):
    example, predictions = scene(info.num_classes)
    calibration = Calibration()
    confidence = np.linspace(0, 1, predictions.size, dtype=np.float32)
    calibration.add(
        example.labels,
        predictions,
        confidence.reshape(predictions.shape),
        info.num_classes,
    )
    results = segmentation_metrics(matrix)
    results |= {"confusion_matrix": matrix, "calibration": calibration.results()}
    strip = make_strip(example, predictions, info, "mean IoU 12.0 %", 256)
    values = dict(
        title="mine test",
        tiles=[("Mean IoU", "45.00 %", "over 2 of 3 classes")],
        examples={"best": [strip]},
        worst=[[strip]] * info.num_classes,
        settings={"split": "test"},
        command="encnet evaluate --config='a b'",
    )
    save_evaluation_page(path, results, info, **(values | changes))
    return path.read_text()


def test_page_is_self_contained_accessible_and_escaped(tmp_path):
    html = save(tmp_path / "test.html")
    page = check_page(html)
    assert "<b>" not in html and "<b>car</b>" in page.text and "sky & sea" in page.text
    for text in ("over 2 of 3 classes", "encnet evaluate --config='a b'", "split"):
        assert text in page.text
    assert page.count("img") == 4 * (1 + 3)
    assert page.count("details") == 3 + 1
    # An absent class has a dash, not a score.
    assert "–" in page.text and "nan" not in html.lower().replace("finance", "")


def test_page_without_images_calibration_and_command(tmp_path):
    html = save(tmp_path / "test.html", examples={}, worst=[], command=None)
    page = check_page(html)
    assert not page.count("img") and "The command" not in page.text


def test_nothing_is_written_where_a_page_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("encnet_jax.report.evaluation.class_rows", lambda *a: [{}])
    with pytest.raises(Exception, match="undefined|has no"):
        save(tmp_path / "test.html")
    assert not list(tmp_path.iterdir())


def test_page_of_150_classes_is_below_5_mb(tmp_path):
    count = 150
    info = DatasetInfo(
        "big", tuple(f"class number {k}" for k in range(count)), voc_colormap(count), {}
    )
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 100, (count, count)) + np.diag([9000] * count)
    worst = []
    for k in range(count):
        example, predictions = scene(count, (480, 640), k)
        worst.append([make_strip(example, predictions, info, "IoU 1 %", 128)])
    strip = make_strip(*scene(count, (480, 640)), info, "mean IoU 12.0 %", 256)
    html = save(
        tmp_path / "test.html",
        info,
        matrix,
        worst=worst,
        examples={rank: [strip] * 2 for rank in ("best", "median", "worst")},
    )
    check_page(html)
    assert len(html.encode()) < 5e6


def test_label_maps_are_described_largest_class_first():
    labels = np.array([[0, 1, 1, 255]], np.uint8)
    assert describe(labels, ("road", "car", "sky")) == "car 50%, road 25%"
    assert describe(labels[:, 3:], ("road",)) == "no labeled pixels"


def test_share_of_wrong_pixels_leaves_out_ignored_ones():
    labels = np.array([[0, 0, 1, 255]], np.uint8)
    example = Example(np.zeros((1, 4, 3), np.uint8), labels, "a")
    strip = make_strip(example, np.array([[0, 1, 1, 1]], np.uint8), INFO, "", 128)
    assert strip.thumbnails[3].title == "Errors: 33.3 %"


def test_percent():
    assert percent(0.12345, 2) == "12.35" and percent(float("nan")) == percent(None)
    assert percent(1.0) == "100.0"
