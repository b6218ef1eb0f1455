"""Tests of `python -m encnet_jax.data`: statistics, contact sheets and problems."""

import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from encnet_jax.commands import data
from encnet_jax.commands.data import _name_config
from encnet_jax.config import default
from encnet_jax.data.dataset_info import CIFAR10, IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import Example, TFRecordDataset, map_examples
from encnet_jax.data.registry import open_dataset
from encnet_jax.data.result_file import save_result
from encnet_jax.data.statistics import (
    Statistics,
    describe,
    evenly_spaced,
    median_frequency_weights,
    summarize,
)
from encnet_jax.errors import UserError
from encnet_jax.visualize.panels import contact_sheet
from tests.commands import errors, run

V = IGNORE_LABEL
INFO = DatasetInfo(
    name="hand",
    class_names=("sky", "house", "dog", "never"),
    colors=((250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)),
    splits={"train": None},
)
LABELS = ([[0, 0, 0], [0, 1, V]], [[0, 2], [2, 2]], [[1] * 8])


class ListDataset:
    """Examples in memory; None is one that cannot be read."""

    info = INFO

    def __init__(self, labels):
        self.labels = [None if item is None else np.uint8(item) for item in labels]

    def __len__(self):
        return len(self.labels)

    def encoded(self, index):
        raise NotImplementedError

    def __getitem__(self, index):
        labels = self.labels[index]
        if labels is None:
            raise UserError(f"file {index} is bad")
        return Example(np.zeros((*labels.shape, 3), np.uint8), labels, f"n{index}")


@pytest.fixture
def counted():
    return summarize(ListDataset(LABELS), range(3))


def test_summary_counts_pixels_images_and_sizes(counted):
    assert counted.pixels.tolist() == [5, 9, 3, 0]
    assert counted.images.tolist() == [2, 2, 1, 0]
    assert counted.pixels_with_class.tolist() == [10, 14, 4, 0]
    assert (counted.void, counted.void_images) == (1, 1)
    assert counted.sizes == [(2, 3), (2, 2), (1, 8)] and counted.indices == [0, 1, 2]
    assert not counted.problems


def test_summary_keeps_every_problem_and_counts_the_rest():
    labels = (None, LABELS[0], None, LABELS[1], LABELS[2], None)
    done = []
    found = summarize(ListDataset(labels), range(6), done.append)
    assert found.problems == [f"file {index} is bad" for index in (0, 2, 5)]
    assert found.indices == [1, 3, 4] and found.pixels.tolist() == [5, 9, 3, 0]
    assert done == [1, 2, 3, 4, 5, 6]


def test_summary_of_some_indices_reads_only_them():
    found = summarize(ListDataset((None, *LABELS)), [1, 3])
    assert found.indices == [1, 3] and found.pixels.tolist() == [4, 9, 0, 0]


def test_map_examples_keeps_the_order_beyond_one_round_of_threads():
    dataset = ListDataset([[[0] * (1 + n % 5)] for n in range(1100)])
    sizes = list(map_examples(dataset, range(1100), lambda e: e.labels.size))
    assert sizes == [1 + n % 5 for n in range(1100)]


def test_median_frequency_weights_by_hand(counted):
    # Frequencies 5/10, 9/14 and 3/4: the median is 9/14.
    expected = [(9 / 14) / 0.5, 1, (9 / 14) / 0.75, 1]
    np.testing.assert_allclose(median_frequency_weights(counted), expected)


def test_median_of_an_even_number_of_classes_is_interpolated():
    weights = median_frequency_weights(summarize(ListDataset(LABELS[:1]), range(1)))
    # 4/6 and 1/6: the median is 5/12.
    np.testing.assert_allclose(weights, [5 / 8, 5 / 2, 1, 1])


def test_weights_without_labels_are_one():
    found = summarize(ListDataset([[[V, V]]]), range(1))
    assert median_frequency_weights(found).tolist() == [1, 1, 1, 1]
    assert median_frequency_weights(Statistics.empty(2)).tolist() == [1, 1]


def test_table_shows_shares_of_pixels_and_images(counted):
    lines = describe(counted, INFO).splitlines()
    assert lines[0] == "sizes: smallest 2x2, median 3x2, largest 8x1"
    assert [line.split() for line in lines[2:7]] == [
        ["sky", "29.412", "66.67"],
        ["house", "52.941", "66.67"],
        ["dog", "17.647", "33.33"],
        ["never", "0.000", "0.00"],
        ["void", "5.556", "33.33"],  # 1 of all 18 pixels
    ]


def test_evenly_spaced_indices():
    assert evenly_spaced(range(10), 4) == [0, 2, 5, 7]
    assert evenly_spaced([3, 5, 8], 5) == [3, 5, 8]
    assert evenly_spaced(range(4), 4) == [0, 1, 2, 3]


def example(height, width, name="one"):
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 2] = 1
    labels[-1, -1] = V
    return Example(np.full((height, width, 3), 100, np.uint8), labels, name)


def has(image, color):
    """Returns where an image has a color, bool (h, w)."""
    return (np.asarray(image) == color).all(-1)


def test_contact_sheet_shows_images_labels_and_legends():
    examples = [example(8, 8), example(4, 8), example(8, 2), example(8, 8)]
    sheet = contact_sheet(examples, INFO.colors, INFO.class_names, width=160)
    assert sheet.width < 3 * (2 * 160 + 40) and sheet.height > 2 * 160
    # Areas of the gray images: 160x160, a half and a quarter of that.
    gray = has(sheet, (100, 100, 100)).sum()
    least = 160 * 160 * (1 + 1 / 2 + 1 / 4 + 1)
    assert least <= gray < 1.05 * least
    # 100 * 0.45 + 250 * 0.55 = 182.5: half of each overlay is a `house`.
    mixed = has(sheet, (45, 182, 45)).sum() / (160 * 160)
    assert 1.2 < mixed <= 2.75 / 2
    # Every legend has a box for each class in it, and for no other.
    boxes = [has(sheet, color).sum() for color in INFO.colors]
    assert boxes[0] == boxes[1] > 0 and boxes[0] % 4 == 0
    assert boxes[2] == boxes[3] == 0


def test_contact_sheet_of_one_example_has_one_column():
    one = contact_sheet([example(8, 8)], INFO.colors, INFO.class_names, width=160)
    assert 2 * 160 < one.width < 3 * 160


def test_legend_of_a_contact_sheet_wraps():
    names = [f"a class with a long name {n}" for n in range(40)]
    labels = np.arange(40, dtype=np.uint8).repeat(40).reshape(40, 40)
    many = Example(np.zeros((40, 40, 3), np.uint8), labels, "many")
    few = Example(many.image, np.zeros_like(labels), "few")
    colors = [(n, 200, 0) for n in range(40)]
    tall = contact_sheet([many], colors, names, width=160)
    assert all(has(tall, color).any() for color in colors)
    assert tall.height > contact_sheet([few], colors, names, width=160).height + 200


def png(array):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_invalid_records_are_problems_with_their_names(tmp_path):
    path = str(tmp_path / "hand.tfrecord")
    images = np.zeros((2, 3, 3)), np.zeros((2, 2, 3)), np.zeros((2, 2, 3))
    labels = LABELS[0], LABELS[0], [[0, 9], [0, 0]]
    with tf.io.TFRecordWriter(path) as writer:
        for name, image, ids in zip(("fits", "differs", "unknown"), images, labels):
            fields = {"image": png(image), "label": png(ids), "id": name.encode()}
            features = {
                key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for key, value in fields.items()
            }
            record = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(record.SerializeToString())
    split = SimpleNamespace(filepaths=[path])
    builder = SimpleNamespace(info=SimpleNamespace(splits={"train": split}))
    found = summarize(TFRecordDataset(INFO, builder, "train"), range(3))
    assert found.indices == [0] and found.pixels.tolist() == [4, 1, 0, 0]
    assert found.problems[0].startswith("differs is 2x2 pixels and its label is 3x2")
    assert found.problems[1].startswith("unknown: label 9; allowed are 0 to 3")
    assert len(found.problems) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a `folder` of six training images and one validation image."""
    root = tmp_path_factory.mktemp("mine")
    (root / "classes.json").write_text(json.dumps(["sky", "house", "dog"]))
    labels = np.repeat(np.repeat(LABELS[0], 8, 0), 8, 1)
    content = {"images": png(labels[..., None] * [9, 5, 1]), "labels": png(labels)}
    for split, count in (("train", 6), ("val", 1)):
        for kind in content:
            (root / kind / split).mkdir(parents=True)
            for index in range(count):
                (root / kind / split / f"{index}.png").write_bytes(content[kind])
    return root


class Classified:
    """Five images of 4x6 pixels in classes 0, 0, 3, 3, and 3."""

    info = CIFAR10

    def __len__(self):
        return 5

    def __getitem__(self, index):
        color = (0, 200, 0) if index < 2 else (200, 0, 0)
        label = np.uint8(0 if index < 2 else 3)
        return Example(np.full((4, 6, 3), color, np.uint8), label, f"n{index}")


def test_command_counts_and_shows_images_in_classes(tmp_path, monkeypatch, capsys):
    given = SimpleNamespace(config="", split=["train", "test"], limit=None)
    given.output, given.manual_dir = "~/out", "~"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(data.flags, "FLAGS", given)
    config = default()
    config.data.name = "cifar10"
    monkeypatch.setattr(data.cli, "config_and_workdir", lambda _: (config, tmp_path))
    opened = []

    def open_split(name, split, *where, **settings):
        opened.append(settings["manual_dir"])
        return Classified()

    monkeypatch.setattr(data, "open_dataset", open_split)
    assert data.main([]) == 0
    output, log = capsys.readouterr()
    assert "sizes: smallest 6x4, median 6x4, largest 6x4" in output
    rows = [line.split() for line in output.splitlines()]
    assert rows.count(["airplane", "2", "40.00"]) == 2
    assert rows.count(["cat", "3", "60.00"]) == 2
    assert ["truck", "0", "0.00"] in rows
    assert not any(word in output for word in ("pixel", "void", "weights"))
    assert "no training image of 8 of 10 classes" in log
    assert opened == [str(tmp_path)] * 2
    for split in ("train", "test"):
        with Image.open(tmp_path / "out" / f"{split}.png") as sheet:
            green, red = (
                has(sheet, color).sum() for color in [(0, 200, 0), (200, 0, 0)]
            )
            assert green and 2 * red == 3 * green
    given.limit = 2  # the first and the third: one of each class
    assert data.main([]) == 0
    output, log = capsys.readouterr()
    assert output.count("5 images (50000 published); 2 read, 0 problems") == 1
    rows = [line.split() for line in output.splitlines()]
    assert rows.count(["airplane", "1", "50.00"]) == 2
    assert "no training image" not in log  # the others may have been left out


def data_command(folder, output, *more):
    where = f"--config.data.data_dir={folder}"
    options = where, f"--output={output}", *more
    return run("-m", "encnet_jax.data", "folder", *options)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["scenes:fcn", "--limit=1"], ["--config=scenes:fcn", "--limit=1"]),
        (["--config.seed=1", "a.py"], ["--config=a.py", "--config.seed=1"]),
        (["--limit", "1", "scenes"], ["--config=scenes", "--limit", "1"]),
        (["--config", "scenes", "x"], ["--config", "scenes", "x"]),
        (["--config=scenes", "x"], ["--config=scenes", "x"]),
        (["--output", "scenes"], ["--output", "scenes"]),
        ([], []),
    ],
)
def test_first_positional_argument_is_the_configuration(arguments, expected):
    assert _name_config(arguments) == expected


def test_command_shows_both_splits_of_the_config(folder, tmp_path):
    result = data_command(folder, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "folder, train: 6 images; 6 read, 0 problems" in result.stdout
    assert "folder, val: 1 images; 1 read, 0 problems" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows.count(["sky", "80.000", "100.00"]) == 2
    assert rows.count(["void", "16.667", "100.00"]) == 2
    # 5/12 over 4/6 and 1/6; `dog` does not occur.
    pasted = result.stdout.split("config.loss.class_weights = (")[1].split(")")[0]
    assert [float(item) for item in pasted.split(",")] == [0.625, 2.5, 1]
    assert result.stdout.count("class_weights") == 1
    (warning,) = (x for x in result.stderr.splitlines() if x.startswith("warning: "))
    assert "no training pixel of 1 of 3 classes" in warning and "dog" in warning
    for split in ("train", "val"):
        with Image.open(tmp_path / "out" / f"{split}.png") as sheet:
            assert has(sheet, (128, 0, 0)).any()  # the color of `sky`


def test_image_of_the_user_is_not_replaced_by_a_contact_sheet(folder, tmp_path):
    (tmp_path / "val.png").write_bytes(png([[0, 1]]))
    result = data_command(folder, tmp_path)
    assert result.returncode == 2 and len(errors(result)) == 1
    assert "val.png: exists, and is not a contact sheet" in errors(result)[0]
    assert (tmp_path / "val.png").read_bytes() == png([[0, 1]])
    assert not (tmp_path / "train.png").exists()
    with (tmp_path / "val.png").open("wb") as file:  # a prediction
        save_result(Image.new("L", (2, 2)), file, tmp_path / "val.jpg")
    result = data_command(folder, tmp_path)
    assert result.returncode == 2 and "not a contact sheet" in errors(result)[0]


def test_command_lists_all_problems_and_exits_with_2(folder, tmp_path):
    root = tmp_path / "bad"
    for path in folder.rglob("*.*"):
        target = root / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    images, labels = root / "images/train", root / "labels/train"
    (labels / "1.png").write_bytes(png([[0, 7]]))
    (labels / "2.png").write_bytes(png([[0, 1, 2]]))
    content = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(content[: len(content) // 2])
    (labels / "4.png").unlink()
    (labels / "9.png").write_bytes(png([[0]]))
    result = data_command(root, tmp_path / "out", "--split=train")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    found = errors(result)
    expected = (
        (labels / "4.png", "missing, the label file"),
        (labels / "9.png", "without an image"),
        (labels / "1.png", "label 7; allowed are 0 to 2"),
        (images / "2.png", "is 24x16 pixels and"),
        (images / "3.png", "cannot be decoded"),
    )
    assert len(found) == len(expected)
    for line, (path, what) in zip(found, expected):
        assert str(path) in line and what in line
    assert "train: 5 images; 2 read, 5 problems" in result.stdout
    assert "sky" in result.stdout and (tmp_path / "out" / "train.png").is_file()
    with pytest.raises(UserError, match="missing, the label file"):
        open_dataset("folder", "train", str(root))


def test_command_refuses_masks_of_0_and_255_and_ignored_labels(folder, tmp_path):
    root = tmp_path / "masks"
    shutil.copytree(folder, root)
    for path in (root / "labels/train").iterdir():
        path.write_bytes(png(np.kron([[0, 255, 0]], np.ones((16, 8)))))
    (root / "labels/val/0.png").write_bytes(png(np.full((16, 24), 3)))
    classes = {"classes": ["sky", "house"], "ignore": [3]}
    (root / "classes.json").write_text(json.dumps(classes))
    result = data_command(root, tmp_path / "out")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    masks, ignored = errors(result)
    assert "folder, train: all labels of 6 images are 0 or 255" in masks
    assert '"label": 255' in masks and 'add 255 to "ignore"' in masks
    assert "folder, val: all labels of 1 images are ignored" in ignored
    assert "folder, train: 6 images; 6 read, 1 problems" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split=train"], "no configuration"),
        (["configs/folder.py", "--split=dev"], "'dev' of folder: allowed are train"),
        (["configs/folder.py", "--manual_dir=/no/such"], "--manual_dir=/no/such"),
    ],
)
def test_mistake_is_reported_in_one_line(folder, tmp_path, arguments, message):
    output = tmp_path / "out"
    where = f"--config.data.data_dir={folder}" if arguments[1:] else "--limit=1"
    result = run("-m", "encnet_jax.data", *arguments, where, f"--output={output}")
    assert result.returncode == 2 and len(errors(result)) == 1
    assert message in errors(result)[0] and "Traceback" not in result.stderr
    assert not output.exists()
