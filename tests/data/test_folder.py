"""Tests of the data set `folder`: classes.json, layouts, colors, and problems."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.dataset_info import (
    CIFAR10,
    IGNORE_LABEL,
    load_info,
    save_info,
    voc_colormap,
)
from encnet_jax.data.folder import read_info
from encnet_jax.data.registry import dataset_info, open_dataset
from encnet_jax.errors import UserError

NAMES = ["road", "car", "tree"]
COLORS = {"road": "#804080", "car": [0, 0, 142], "tree": "#6B8e23"}
PAINT = np.array([(128, 64, 128), (0, 0, 142), (107, 142, 35), (0, 0, 0)], np.uint8)
LABELS = np.array([[0, 1, 2], [2, 2, 1]])


def write_classes(root, content):
    root.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "classes.json").write_text(text)


def write_image(root, name, size=(3, 2)):
    path = root / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (len(name), 2, 3)).save(path)
    return path


def write_label(root, name, labels=LABELS):
    path = root / "labels" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, np.uint8)).save(path)
    return path


def write_pair(root, name, labels=LABELS):
    """Writes an image of any suffix and the label file that belongs to it."""
    stem = name.rpartition(".")[0]
    return write_image(root, name), write_label(root, f"{stem}.png", labels)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with sub-folders for two splits."""
    root = tmp_path / "mine"
    write_classes(root, NAMES)
    for name in ("train/b.jpg", "train/a.v2/x.png", "val/a.webp"):
        write_pair(root, name)
    return root


def one_line_error(root, split="train"):
    """Returns the error message of opening a split."""
    with pytest.raises(UserError) as raised:
        open_dataset("folder", split, str(root))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def names_of(dataset):
    return [dataset[index].name for index in range(len(dataset))]


def test_list_of_names_gives_labels_by_position(folder):
    info = dataset_info("folder", str(folder))
    assert info.name == "folder" and info.class_names == ("road", "car", "tree")
    assert info.label_map == {0: 0, 1: 1, 2: 2} and not info.label_colors
    assert info.colors == voc_colormap(3)
    assert dict(info.splits) == {"train": None, "val": None}


def test_subfolders_are_read_at_any_depth_sorted(folder):
    dataset = open_dataset("folder", "train", str(folder))
    assert [str(image.relative_to(folder)) for image, _ in dataset.pairs] == [
        "images/train/a.v2/x.png",
        "images/train/b.jpg",
    ]
    np.testing.assert_array_equal(dataset[1].labels, LABELS)
    assert dataset[1].image.shape == (2, 3, 3)
    assert len(open_dataset("folder", "val", str(folder))) == 1


def test_environment_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv("ENCNET_FOLDER", str(folder))
    assert len(open_dataset("folder", "train")) == 2
    monkeypatch.delenv("ENCNET_FOLDER")
    with pytest.raises(UserError, match="data.data_dir.*ENCNET_FOLDER"):
        open_dataset("folder", "train")
    with pytest.raises(UserError, match="data.data_dir=gs://b: must be a folder"):
        open_dataset("folder", "train", "gs://b")


def test_hidden_files_and_other_files_are_skipped(folder):
    for name in ("images/train/.DS_Store", "labels/train/._b.png", "images/train/a.db"):
        (folder / name).write_bytes(b"?")
    write_image(folder, "train/.ipynb_checkpoints/b-checkpoint.jpg")
    assert len(open_dataset("folder", "train", str(folder))) == 2


def test_split_files_list_stems_or_paths(folder):
    write_pair(folder, "c.v2.jpg")
    write_pair(folder, "d.jpeg", LABELS[::-1])
    lines = ["\ufeffval/a", "", "./c.v2", "train/b.jpg  ", "d.jpeg"]
    (folder / "mix.txt").write_text("\r\n".join(lines), encoding="utf-8")
    (folder / "train.txt").write_text("d\n")
    dataset = open_dataset("folder", "mix", str(folder))
    assert names_of(dataset) == ["a", "c.v2", "b", "d"]
    np.testing.assert_array_equal(dataset[3].labels, LABELS[::-1])
    # A file takes precedence over the folder of that name.
    assert names_of(open_dataset("folder", "train", str(folder))) == ["d"]
    assert set(read_info(folder).splits) == {"mix", "train", "val"}


def test_raw_labels_are_mapped_and_ignored_ones_are_void(folder):
    classes = [{"name": "road", "label": 7}, {"name": "car", "label": 0}, "tree"]
    write_classes(folder, {"classes": classes, "ignore": [3, 255]})
    write_label(folder, "train/b.png", [[7, 0, 2], [3, 255, 2]])
    write_label(folder, "train/a.v2/x.png", [[2, 2, 2], [2, 2, 2]])
    dataset = open_dataset("folder", "train", str(folder))
    ignored = IGNORE_LABEL
    assert dataset[1].labels.tolist() == [[0, 1, 2], [ignored, ignored, 2]]


def test_palette_files_are_read_by_index_not_by_color(folder):
    palette = Image.fromarray(LABELS.astype(np.uint8))
    palette.putpalette([9, 9, 9] * 256)
    assert palette.mode == "P"
    palette.save(folder / "labels/train/b.png")
    dataset = open_dataset("folder", "train", str(folder))
    np.testing.assert_array_equal(dataset[1].labels, LABELS)


@pytest.fixture
def colored(folder):
    """Returns the folder with label files in colors; black is to be ignored."""
    classes = [{"name": name, "color": COLORS[name]} for name in NAMES]
    write_classes(folder, {"classes": classes, "ignore": ["#000000"]})
    painted = PAINT[[[0, 1, 3], [2, 2, 1]]]
    write_label(folder, "train/b.png", painted)
    clear = np.dstack([painted, np.zeros((2, 3), np.uint8)])  # transparent all over
    write_label(folder, "train/a.v2/x.png", clear)
    return folder


def test_colors_tell_the_classes_of_rgb_files(colored):
    dataset = open_dataset("folder", "train", str(colored))
    assert dataset.info.colors == ((128, 64, 128), (0, 0, 142), (107, 142, 35))
    for index in range(2):
        labels = dataset[index].labels
        assert labels.dtype == np.uint8
        assert labels.tolist() == [[0, 1, IGNORE_LABEL], [2, 2, 1]]
    # Gray files remain valid.
    assert open_dataset("folder", "val", str(colored))[0].labels[0, 2] == 2


def test_colors_give_raw_labels_that_are_then_mapped(colored):
    classes = [
        {"name": "tree", "color": "#6b8e23", "label": 9},
        {"name": "rest", "color": "#804080", "label": 4},
    ]
    write_classes(colored, {"classes": classes, "ignore": ["#000000", [0, 0, 142]]})
    dataset = open_dataset("folder", "train", str(colored))
    void = IGNORE_LABEL
    assert dataset[0].labels.tolist() == [[1, void, void], [0, 0, void]]


def test_unknown_color_names_file_color_and_place(colored):
    painted = PAINT[[[0, 1, 3], [2, 2, 1]]]
    painted[1, :2] = (1, 2, 171)
    path = write_label(colored, "train/b.png", painted)
    message = one_line_error(colored)
    assert f"{path}: the color #0102ab at x=0, y=1" in message
    assert "2 pixels" in message


def test_palettes_in_other_orders_are_read_by_color(colored):
    for name, order in (("b", [3, 1, 0, 2]), ("a.v2/x", [2, 1, 3, 0])):
        image = Image.fromarray(np.argsort(order)[[[0, 1, 3], [2, 2, 1]]].astype("u1"))
        image.putpalette(PAINT[order].ravel().tolist())
        image.save(colored / f"labels/train/{name}.png")
    dataset = open_dataset("folder", "train", str(colored))
    for index in range(2):
        labels = dataset[index].labels
        assert labels.tolist() == [[0, 1, IGNORE_LABEL], [2, 2, 1]]


def test_palette_of_other_colors_is_named(colored):
    path = colored / "labels/train/b.png"
    image = Image.fromarray(LABELS.astype(np.uint8))
    image.putpalette([200, 9, 9] * 256)
    image.save(path)
    message = one_line_error(colored)
    assert message.startswith(f"{path}: palette entry 0 has the color #c80909")


def test_label_suffix_and_value_range_are_settings_of_the_folder(folder):
    classes = {"classes": NAMES, "label_suffix": "_mask", "value_range": [-10, 5.5]}
    write_classes(folder, classes)
    for split, name in (("train", "b"), ("train", "a.v2/x"), ("val", "a")):
        path = folder / "labels" / split / name
        path.with_name(f"{path.name}.png").rename(f"{path}_mask.PNG")
        write_label(folder, f"{split}/{name}.png", LABELS + 9)
    (folder / "images/train/b.jpg").unlink()
    values = np.float32([[-10, 5.5, -7], [0, 2.5, 99]])
    Image.fromarray(values).save(folder / "images/train/b.tif")
    (folder / "both.txt").write_text("train/b\nval/a.webp\n")
    assert read_info(folder).value_range == (-10, 5.5)
    for split in ("train", "both"):
        dataset = open_dataset("folder", split, str(folder))
        example = next(dataset[n] for n in range(2) if dataset[n].name == "b")
        np.testing.assert_array_equal(example.labels, LABELS)
        # (value + 10) / 15.5 of 255
        expected = [[0, 255, 49], [165, 206, 255]]
        np.testing.assert_array_equal(example.image[..., 1], expected)


def test_images_of_unknown_range_are_named(folder):
    path = folder / "images/train/b.tif"
    (folder / "images/train/b.jpg").unlink()
    Image.fromarray(np.float32(LABELS)).save(path)
    assert one_line_error(folder).startswith(f"{path}: floats of unknown range: give")


def test_colors_without_a_table_are_rejected(folder):
    path = write_label(folder, "train/b.png", PAINT[LABELS])
    message = one_line_error(folder)
    assert str(path) in message and "mode RGB; allowed are gray" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[" * 100_000, "not JSON: maximum recursion depth"),
        ("7", "7: must be an object"),
        ({"classes": "road"}, "classes='road': must be a list"),
        ({"classes": NAMES, "ignore": 0}, "ignore=0: must be a list"),
        ({"names": NAMES}, "key 'names': allowed are classes, ignore"),
        ({"classes": NAMES, "value_range": 255}, "value_range=255: must be a list"),
        ({"classes": NAMES, "value_range": [1]}, r"value_range=\[1\]: must be \[low"),
        ({"classes": NAMES, "value_range": [4, 4]}, "value_range=.* low < high"),
        ({"classes": NAMES, "value_range": [0, "9"]}, "value_range=.* two numbers"),
        ({"classes": NAMES, "value_range": [0, True]}, "value_range=.* two numbers"),
        ('{"classes": ["a", "b"], "value_range": [0, NaN]}', "value_range=.* two"),
        ({"classes": NAMES, "value_range": [0, 10**400]}, "value_range=.* two"),
        ({"classes": NAMES, "label_suffix": 1}, "label_suffix=1: must be the end"),
        ({"classes": NAMES, "label_suffix": "a/b"}, "label_suffix='a/b': must be"),
        ({"classes": NAMES, "label_suffix": "_m.PNG"}, "'_m.PNG': .* without .png"),
        ([], "0 classes; allowed are 2 to 255"),
        (["road"], "1 classes; allowed are 2 to 255"),
        ([str(n) for n in range(256)], "256 classes; allowed are 2 to 255"),
        ([1, "car"], r"classes\[0\]: 1: must be an object or a name"),
        (["road", " "], r"classes\[1\].name=' ': must be a name"),
        (["road", "\ud800"], r"classes\[1\].name='\\ud800': must be a name"),
        (["road", {"label": 1}], r"classes\[1\].name=None"),
        (["road", {"name": "car", "colour": "#000000"}], "key 'colour': allowed are"),
        (
            ["road", {"name": "car", "label": 256}],
            "label=256: must be an integer from 0 to 255",
        ),
        (["road", {"name": "car", "label": -1}], "label=-1: must be"),
        (["road", {"name": "car", "label": True}], "label=True: must be"),
        (["road", {"name": "car", "label": "1"}], "label='1': must be"),
        (["road", {"name": "car", "color": "red"}], "color='red': must be '#rrggbb'"),
        (["road", {"name": "car", "color": [1, 2]}], r"color=\[1, 2\]: must be"),
        (["road", {"name": "car", "color": [1, 2, 256]}], "color=.* must be"),
        (["road", {"name": "car", "color": "#000000"}], "'road' has no color"),
        (["road", "road"], "the name 'road' is given twice"),
        (["road", {"name": "car", "label": 0}], "0 is given twice"),
        ({"classes": NAMES, "ignore": [2]}, "2 is given twice"),
        (
            {"classes": ["road", {"name": "car", "label": 255}], "ignore": [255]},
            "255 is given twice",
        ),
        ({"classes": NAMES, "ignore": [256]}, r"ignore\[0\]=256: must be an integer"),
        (
            [{"name": n, "color": c} for n, c in (("a", "#010203"), ("b", [1, 2, 3]))],
            r"\(1, 2, 3\) is given twice",
        ),
    ],
)
def test_invalid_classes_name_file_and_what_is_allowed(folder, content, message):
    write_classes(folder, content)
    path = folder / "classes.json"
    with pytest.raises(UserError, match=message) as raised:
        dataset_info("folder", str(folder))
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_255_classes_are_allowed(folder):
    write_classes(folder, [f"class {n}" for n in range(255)])
    write_label(folder, "train/b.png", [[254, 0, 255], [0, 0, 0]])
    dataset = open_dataset("folder", "train", str(folder))
    assert dataset.info.num_classes == 255
    assert dataset[1].labels[0].tolist() == [254, 0, IGNORE_LABEL]


def test_missing_parts_of_the_folder_are_named(tmp_path):
    root = tmp_path / "mine"
    assert one_line_error(root) == f"{root}: no such folder"
    root.mkdir()
    assert one_line_error(root).startswith(f"{root / 'classes.json'}: missing")
    write_classes(root, NAMES)
    assert one_line_error(root) == f"{root / 'images'}: no such folder"
    (root / "images").mkdir()
    assert one_line_error(root).startswith(f"{root}: no splits")
    (root / "images" / "train").mkdir()
    assert one_line_error(root) == f"{root / 'labels/train'}: no such folder"
    (root / "labels" / "train").mkdir(parents=True)
    assert one_line_error(root).startswith(f"{root / 'images/train'}: no images")
    assert one_line_error(root, "dev") == "split 'dev' of folder: allowed are train"


def test_image_without_label_and_label_without_image_are_all_found(folder):
    image = write_image(folder, "train/lonely.jpg")
    label = write_label(folder, "train/a.v2/left.png")
    dataset = open_dataset("folder", "train", str(folder), check=False)
    assert len(dataset) == 2
    missing = folder / "labels/train/lonely.png"
    assert dataset.problems == [
        f"{missing}: missing, the label file of {image}",
        f"{label}: a label file without an image",
    ]
    assert one_line_error(folder) == dataset.problems[0]


def test_two_images_for_one_label_are_named(folder):
    image = write_image(folder, "train/b.png")
    message = one_line_error(folder)
    assert str(image) in message and str(folder / "images/train/b.jpg") in message


def test_lines_of_a_split_file_that_name_no_image_are_all_found(folder):
    write_image(folder, "train/b.png")  # next to b.jpg
    image = write_image(folder, "train/new.jpg")
    listing = folder / "dev.txt"
    listing.write_text("train/b\nval/a\nval/b\nval/a.webp\ntrain/new\ntrain/b.jpg\n")
    dataset = open_dataset("folder", "dev", str(folder), check=False)
    assert names_of(dataset) == ["a", "b"]
    assert dataset.problems == [
        f"{listing} line 1: train/b: b.jpg or b.png in {folder / 'images'}",
        f"{listing} line 3: val/b: no such image in {folder / 'images'}",
        f"{listing} line 4: val/a.webp: listed twice",
        f"{folder / 'labels/train/new.png'}: missing, the label file of {image}",
    ]
    assert one_line_error(folder, "dev") == dataset.problems[0]


def test_empty_split_file_is_named(folder):
    (folder / "dev.txt").write_text("\n  \n")
    assert one_line_error(folder, "dev").startswith(f"{folder / 'dev.txt'}: empty")


def test_split_file_that_is_not_text_is_named(folder):
    (folder / "dev.txt").write_bytes(b"\xff\xfe\x00a")
    assert f"{folder / 'dev.txt'}: not UTF-8 text" in one_line_error(folder, "dev")


def test_value_range_is_kept_with_the_model(tmp_path):
    info = dataclasses.replace(CIFAR10, value_range=(-1.5, 4095))
    save_info(info, tmp_path / "classes.json")
    assert load_info(tmp_path / "classes.json").value_range == (-1.5, 4095)
    # Workdirs of older versions have no such key.
    stored = json.loads((tmp_path / "classes.json").read_text())
    del stored["value_range"]
    (tmp_path / "classes.json").write_text(json.dumps(stored))
    assert load_info(tmp_path / "classes.json").value_range is None
