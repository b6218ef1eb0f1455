"""Labels that say nothing: 0 and 255 only, all ignored, classes without a pixel."""

import json

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data import label_check
from encnet_jax.data.dataset_info import IGNORE_LABEL as V
from encnet_jax.data.label_check import unlabeled_classes
from encnet_jax.data.registry import open_dataset
from encnet_jax.data.statistics import Statistics, summarize
from encnet_jax.errors import UserError

BINARY = [[0, 0, 255], [255, 0, 0]]
NAMES = ["ground", "thing"]
REMEDIES = 'give it "label": 255 in classes.json.*add 255 to "ignore" there'


def write(root, classes, *labels, split="train"):
    """Writes a `folder` of one split and returns it."""
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps(classes))
    for index, array in enumerate(labels):
        array = np.asarray(array, np.uint8)
        Image.fromarray(array).save(root / f"labels/{split}/{index}.png")
        image = Image.new("RGB", array.shape[1::-1])
        image.save(root / f"images/{split}/{index}.png")
    return root


def opened(root, split="train"):
    return open_dataset("folder", split, str(root))


def test_masks_of_0_and_255_stop_with_both_remedies(tmp_path):
    root = write(tmp_path, NAMES, BINARY, [[0, 0]], [[255, 255]])
    with pytest.raises(UserError, match=REMEDIES) as raised:
        opened(root)
    message = str(raised.value)
    assert "folder, train: all labels of 3 images are 0 or 255" in message
    assert str(root / "labels/train/0.png") in message and "\n" not in message


def test_255_may_be_the_label_of_a_class(tmp_path):
    classes = ["ground", {"name": "thing", "label": 255}]
    dataset = opened(write(tmp_path, classes, BINARY))
    assert dataset[0].labels.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert dataset.statistics.pixels.tolist() == [4, 2]
    assert dataset.statistics.void == 0
    # In any order, and beside others; the rest is not ignored, but an error.
    classes = [{"name": "thing", "label": 255}, {"name": "ground", "label": 0}, "more"]
    dataset = opened(write(tmp_path, classes, [[0, 255, 2]]))
    assert dataset[0].labels.tolist() == [[1, 0, 2]]
    write(tmp_path, classes, [[0, 255, 7]])
    with pytest.raises(UserError, match="label 7; allowed are 0, 2, 255$"):
        opened(tmp_path)


def test_255_may_be_declared_ignored(tmp_path):
    content = {"classes": NAMES, "ignore": [255]}
    dataset = opened(write(tmp_path, content, BINARY))
    assert dataset[0].labels.tolist() == [[0, 0, V], [V, 0, 0]]
    assert unlabeled_classes(dataset.statistics, dataset.info) == (
        "no training pixel of 1 of 2 classes, which cannot be learned: thing"
    )


def test_other_ignored_labels_do_not_hide_masks_of_0_and_255(tmp_path):
    content = {"classes": NAMES, "ignore": [7]}
    with pytest.raises(UserError, match=REMEDIES):
        opened(write(tmp_path / "a", content, BINARY))
    # But one of them tells that the file is no mask of 0 and 255.
    dataset = opened(write(tmp_path / "b", content, BINARY, [[7, 0]]))
    assert dataset.statistics.pixels.tolist() == [5, 0]
    with pytest.raises(UserError, match=REMEDIES):
        opened(write(tmp_path / "c", {"classes": ["a", "b"], "ignore": [7]}, [[255]]))


def test_masks_are_told_whatever_0_is(tmp_path):
    classes = [{"name": "thing", "label": 1}, {"name": "ground", "label": 0}]
    with pytest.raises(UserError, match=REMEDIES):
        opened(write(tmp_path / "a", classes, BINARY))
    classes = [{"name": "thing", "label": 1}, {"name": "ground", "label": 2}]
    with pytest.raises(UserError, match=REMEDIES):
        opened(write(tmp_path / "b", {"classes": classes, "ignore": [0]}, BINARY))


def test_colors_do_not_count_as_0_and_255(tmp_path):
    classes = [
        {"name": "ground", "color": "#000000", "label": 0},
        {"name": "thing", "color": "#ff0000", "label": 255},
    ]
    content = {"classes": classes, "ignore": ["#ffffff"]}
    painted = [[(0, 0, 0), (255, 0, 0), (255, 255, 255)]]
    dataset = opened(write(tmp_path / "a", content, painted))
    # The ignored color does not become the class whose label is 255.
    assert dataset[0].labels.tolist() == [[0, 1, V]]
    classes[1]["label"] = 1
    painted = [[(0, 0, 0), (0, 0, 0), (255, 255, 255)]]
    dataset = opened(write(tmp_path / "b", content, painted))
    assert dataset[0].labels.tolist() == [[0, 0, V]]
    # Gray files beside the colors are masks as before.
    with pytest.raises(UserError, match=REMEDIES):
        opened(write(tmp_path / "c", content, BINARY))


def test_camvid_says_where_such_masks_are_read(tmp_path):
    write(tmp_path, NAMES, BINARY)
    (tmp_path / "images/train").rename(tmp_path / "train")
    (tmp_path / "labels/train").rename(tmp_path / "trainannot")
    with pytest.raises(UserError, match="0 or 255 .*data.name=folder"):
        open_dataset("camvid", "train", str(tmp_path))
    # 11 is CamVid's own void, so nothing is open; but nothing is labeled either.
    Image.fromarray(np.full((2, 3), 11, np.uint8)).save(tmp_path / "trainannot/0.png")
    with pytest.raises(UserError, match="1 images are ignored: no pixel has a class"):
        open_dataset("camvid", "train", str(tmp_path))


def test_split_without_a_labeled_pixel_stops(tmp_path):
    content = {"classes": NAMES, "ignore": [255, 9]}
    write(tmp_path, content, [[255, 255]], [[9, 255]], split="val")
    with pytest.raises(UserError, match="folder, val: all labels of 2 images are igno"):
        opened(tmp_path, "val")


def test_large_splits_are_judged_by_a_sample_of_label_files(tmp_path, monkeypatch):
    root = write(tmp_path, NAMES, *[BINARY] * 9)
    monkeypatch.setattr(label_check, "_MAX_CHECKED", 8)
    monkeypatch.setattr(label_check, "_SAMPLE", 3)
    with pytest.raises(UserError, match=f"of 3 images are 0 or 255 .*{REMEDIES}"):
        opened(root)
    read = []
    decode = "encnet_jax.data.datasets.decode_image"
    monkeypatch.setattr(decode, lambda *arguments: read.append(arguments))
    Image.fromarray(np.uint8([[0, 1]])).save(root / "labels/train/3.png")
    dataset = opened(root)
    # Images are not decoded, and a sample says nothing of classes without a pixel.
    assert not read and dataset.statistics is None


def test_counts_of_the_check_are_those_of_the_summary(tmp_path):
    labels = [[0, 1, 255]], [[1, 1], [1, 1]]
    dataset = opened(write(tmp_path, NAMES, *labels))
    expected = summarize(dataset, range(2))
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(dataset.statistics, name), value)


def test_every_class_without_an_example_is_named(tmp_path):
    info = opened(write(tmp_path, ["a", "b", "c"], [[1]])).info
    statistics = Statistics.empty(3)
    statistics.add(0, np.bincount([1], minlength=256), (1, 1))
    line = unlabeled_classes(statistics, info)
    assert line.startswith("no training pixel of 2 of 3 classes") and "a, c" in line
    statistics.add(1, np.bincount([0, 2], minlength=256), (1, 2))
    assert unlabeled_classes(statistics, info) == ""
