"""The page of a classification, on images whose probabilities are given."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np

from encnet_jax.config import default
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.data.datasets import Example
from encnet_jax.evaluate.class_page import ClassRecord, save_classification_page
from encnet_jax.evaluate.classification import classification_scores
from encnet_jax.evaluate.evaluator import ImagePrediction
from encnet_jax.evaluate.image_log import parse_image_log
from encnet_jax.evaluate.page import page_settings
from encnet_jax.report.evaluation import class_rows
from tests.report.pages import check_page

INFO = DatasetInfo(
    "mine", ("cat", "dog", "owl"), voc_colormap(3), {}, task="classification"
)
LABELS = [0, 1, 1, 0]
PROBABILITIES = np.float32(
    [[0.75, 0.25, 0], [0.75, 0.25, 0], [0.25, 0.75, 0], [0, 1, 0]]
)


class Images:
    info = INFO

    def __len__(self):
        return 4

    def __getitem__(self, index):
        image = np.full((8, 6, 3), 50 * index, np.uint8)
        return Example(image, np.asarray(np.uint8(LABELS[index])), f"image {index}")


def test_record_and_page(tmp_path):
    dataset = Images()
    record = ClassRecord(dataset)
    predictions = [
        ImagePrediction(i, dataset[i], np.asarray(np.uint8(p.argmax())), p)
        for i, p in enumerate(PROBABILITIES)
    ]
    scores = classification_scores(record.of(predictions), 3)
    record.merge_hosts()
    scores["calibration"] = record.calibration()
    # Of three at 75 % two are right, and the one at 100 % is wrong.
    error = (3 * abs(2 / 3 - 0.75) + 1) / 4
    found = scores["calibration"]
    np.testing.assert_allclose(found["expected_calibration_error"], error)
    assert found["images"] == found["pixels"] == 4
    log = parse_image_log(record.lines(), 3)
    assert log.names == [f"image {i}" for i in range(4)]
    assert log.correct.sum(1).tolist() == [1, 0, 1, 0]
    assert log.labeled.sum(0).tolist() == [2, 2, 0]
    line = json.loads(next(record.lines()))
    assert line["presence"] == [0.75, 0.25, 0] and line["thumbnail"] is None

    path = tmp_path / "test.json"
    settings = {"checkpoint": "step 3"}
    save_classification_page(path, scores, record, settings, "encnet evaluate")
    page = check_page((tmp_path / "test.html").read_text())
    # Two wrong ones, the surest first, and those of the two classes with images.
    assert page.count("img") == 2 + 4
    alts = [a["alt"] for tag, a in page.elements if tag == "img"]
    assert alts[:2] == [
        "cat, predicted dog 100.0 %: image 3",
        "dog, predicted cat 75.0 %: image 1",
    ]
    assert "cat: from 0.0 %" in page.text
    assert "50.00 %" in page.text and "Confusion" in page.text
    # No image of the last class: no accuracy, as the caption says.
    values = {row["name"]: row["values"] for row in class_rows(scores, INFO)}
    assert values["cat"] == values["dog"] == [0.5] and np.isnan(values["owl"]).all()


def test_settings_are_those_of_the_task():
    config = default()
    config.model.name = "encnet14"
    run = SimpleNamespace(config=config, info=INFO, step=7, dtype="float32")
    settings = page_settings(config, "test", run, {})
    assert settings["model.name"] == "encnet14" and settings["checkpoint"] == "step 7"
    assert not [key for key in settings if "size" in key or "backbone" in key]
    run.info = dataclasses.replace(INFO, task="segmentation")
    settings = page_settings(config, "test", run, {})
    assert {"model.backbone", "data.base_size", "evaluation.mode"} <= settings.keys()
