"""The counts of each image on disk: what is read is what was counted."""

import numpy as np
import pytest

from encnet_jax.errors import UserError
from encnet_jax.evaluate.accumulator import ImageMetrics
from encnet_jax.evaluate.image_log import (
    image_log_path,
    parse_image_log,
    read_image_log,
    worst_images,
    write_image_log,
)

MATRICES = [
    [[8, 2, 0], [0, 0, 0], [0, 0, 0]],
    [[0, 0, 0], [5, 5, 0], [0, 0, 0]],
    [[1, 0, 0], [1, 3, 0], [0, 0, 4]],
    [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
]


def lines():
    return [
        ImageMetrics(i, np.array(m), name=f"ä{i}", thumbnail="x").to_json()
        for i, m in enumerate(MATRICES)
    ]


def test_counts_are_those_of_the_matrices(tmp_path):
    path = image_log_path(tmp_path / "val-ms.json")
    assert path.name == "val-ms-images.jsonl"
    write_image_log(path, lines())
    log = read_image_log(path, 3)
    matrices = np.array(MATRICES)
    assert log.names == ["ä0", "ä1", "ä2", "ä3"] and log.thumbnails == ["x"] * 4
    np.testing.assert_array_equal(log.correct, matrices.diagonal(0, 1, 2))
    np.testing.assert_array_equal(log.labeled, matrices.sum(2))
    np.testing.assert_array_equal(log.predicted, matrices.sum(1))
    np.testing.assert_allclose(log.iou[0], [0.8, 0, np.nan])
    assert np.isnan(log.iou[3]).all()
    assert parse_image_log([], 3).iou.shape == (0, 3)


def test_worst_images_show_the_class_before_those_that_only_predict_it():
    log = parse_image_log(lines(), 3)
    # Image 1 only predicts class 0; image 0 has it with 0.8, image 2 with 0.5. Class 1:
    # 0.5 in image 1, 0.75 in image 2, and predicted in image 0.
    assert worst_images(log, 3) == [[2, 0, 1], [1, 2, 0], []]
    assert worst_images(log, 1) == [[2], [1], []]


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", '{"index": 0}', lines()[1], "[" * 99_999),
        lines()[0].replace("[0, 1]", "[0, 9]"),
        lines()[0].replace("[0, 1]", f"[0, {10**30}]"),
        lines()[0].replace('"x"', "7"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, damage):
    path = tmp_path / "val-images.jsonl"
    path.write_text(f"{damage}\n")
    with pytest.raises(UserError, match="damaged: .*; evaluate the run again"):
        read_image_log(path, 3)
    with pytest.raises(UserError, match="no-images.jsonl: cannot be read"):
        read_image_log(tmp_path / "no-images.jsonl", 3)
