"""Tests of `encnet data import`: what it writes, names, and leaves alone."""

import base64
import copy
import io
import json
import os
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image

from encnet_jax.commands import data_import
from encnet_jax.data.annotations.annotated import (
    AnnotatedImage,
    AnnotatedSet,
    split_of,
)
from encnet_jax.data.annotations.write import divide
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from tests.commands import SMALL, errors, run
from tests.data.annotations.annotation_files import (
    CATEGORIES,
    SHAPES,
    H,
    W,
    annotation,
    coco,
    data_import_of,
    expected_labels,
    labelme,
    labelme_labels,
    labels_of,
    listed,
    polygon,
    save_image,
    write_json,
)
from tests.parsed_flags import run_command


def test_coco_becomes_a_folder(tmp_path, monkeypatch, capsys):
    source = tmp_path / "coco"
    for split, name in (("train", "a.png"), ("val", "sub/b.png")):
        save_image(source / f"{split}2017" / name)
        where = source / "annotations" / f"instances_{split}2017.json"
        write_json(where, coco(name))
    write_json(source / "annotations/captions_val2017.json", {"images": []})
    output = tmp_path / "out"
    output.mkdir()
    assert data_import_of(monkeypatch, source, output) == 0
    classes = json.loads((output / "classes.json").read_text())
    assert classes["classes"] == ["background", "stem", "leaf"]  # by id
    np.testing.assert_array_equal(labels_of(output), expected_labels())
    np.testing.assert_array_equal(labels_of(output, "val"), expected_labels())
    copied = output / "images/train/a.png"
    assert copied.read_bytes() == (source / "train2017/a.png").read_bytes()
    assert (output / "labels/val/sub/b.png").is_file()
    for split in ("train", "val"):
        with Image.open(output / f"{split}.png") as sheet:
            assert sheet.width > 2 * 280
    assert "leaf" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


def test_pixels_without_annotation_can_be_ignored(tmp_path, monkeypatch):
    source = write_json(tmp_path / "x/data.json", coco("a.png"))
    save_image(tmp_path / "x/images/a.png")
    output = tmp_path / "out"
    assert data_import_of(monkeypatch, source, output, unlabeled="ignore") == 0
    np.testing.assert_array_equal(labels_of(output), expected_labels(255, 0, 1))


def test_category_named_background_is_the_background(tmp_path, monkeypatch):
    content = coco("a.png")
    content["categories"] = [*CATEGORIES, {"id": 9, "name": "background"}]
    source = write_json(tmp_path / "x/data.json", content)
    save_image(tmp_path / "x/a.png")
    assert data_import_of(monkeypatch, source, tmp_path / "out") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), expected_labels(2, 0, 1))


def test_annotated_background_needs_no_name_in_the_flag(tmp_path, monkeypatch):
    content = coco("a.png")
    content["categories"] = [*CATEGORIES, {"id": 9, "name": "_background_"}]
    content["annotations"].append(annotation(90, 10, 9, [polygon(0, 0, W, H)]))
    source = write_json(tmp_path / "x/data.json", content)
    save_image(tmp_path / "x/a.png")
    flags = dict(classes="stem,leaf")
    assert data_import_of(monkeypatch, source, tmp_path / "out", **flags) == 0
    assert not labels_of(tmp_path / "out").any()  # it covers all the others


def test_classes_of_the_flag_give_the_order(tmp_path, monkeypatch):
    source = write_json(tmp_path / "x/data.json", coco("a.png"))
    save_image(tmp_path / "x/a.png")
    flags = dict(classes="leaf,background,stem")
    assert data_import_of(monkeypatch, source, tmp_path / "out", **flags) == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), expected_labels(1, 2, 0))


def test_every_problem_of_coco_is_named(tmp_path, monkeypatch, capsys):
    content = coco("a.png", "gone.png", "small.png")
    bad = [
        annotation(90, 10, 8, [polygon(0, 0, 2, 2)]),
        annotation(91, 10, 7, [[1, 1, 2, 2]]),
        annotation(92, 10, 7, [[1, 1, 4, 1, 6, 1]]),
        annotation(93, 10, 7, {"size": [W, H], "counts": [0, H * W]}),
        annotation(94, 10, 7, [polygon(W + 2, 0, W + 4, 4)]),
        annotation(95, 99, 7, [polygon(0, 0, 2, 2)]),
        annotation(96, 10, 7, []),
        {"id": 97},
    ]
    content["annotations"] += bad
    source = write_json(tmp_path / "x/data.json", content)
    save_image(tmp_path / "x/a.png")
    save_image(tmp_path / "x/small.png", (W, H - 1))
    output = tmp_path / "out"
    with pytest.raises(UserError, match="10 problems; nothing was written"):
        data_import_of(monkeypatch, source, output)
    lines = listed(capsys)
    for parts in (
        ("a.png, annotation 90: category 8: is none of the classes",),
        ("a.png, annotation 91: a polygon needs three points",),
        ("a.png, annotation 92: covers no pixel",),
        ("a.png, annotation 93: RLE of size [10, 8], and the image has [8, 10]",),
        ("a.png, annotation 94: covers no pixel",),
        ("annotation 95: image_id 99: no such image",),
        ("a.png, annotation 96: no segmentation",),
        ("annotations[16]: must have image_id",),
        ("image gone.png: no such image",),
        ("image small.png: is 10x7 pixels, and the annotations are of 10x8",),
    ):
        found = [line for line in lines if parts[0] in line]
        assert len(found) == 1 and str(source) in found[0], (parts, lines)
    assert len(lines) == 10 and not output.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]
    assert data_import_of(monkeypatch, source, output, skip_invalid=True) == 0
    assert "left out: 10 annotations or images" in capsys.readouterr().out
    assert len(open_dataset("folder", "train", str(output))) == 1
    np.testing.assert_array_equal(labels_of(output), expected_labels())


def test_output_of_the_user_is_not_replaced(tmp_path, monkeypatch):
    source = write_json(tmp_path / "x/data.json", coco("a.png"))
    save_image(tmp_path / "x/a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="--output=.*out: is not empty"):
        data_import_of(monkeypatch, source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_validation_share_is_the_same_every_time(tmp_path, monkeypatch):
    names = [f"{index}.png" for index in range(10)]
    for name in names:
        save_image(tmp_path / "x" / name)
    sets = []
    for number, order in enumerate((names, names[::-1])):
        source = write_json(tmp_path / "x/data.json", coco(*order))
        output = tmp_path / f"out{number}"
        assert data_import_of(monkeypatch, source, output, val_fraction=0.3) == 0
        sets.append({path.name for path in (output / "images/val").iterdir()})
        assert len(list((output / "images/train").iterdir())) == 7
    assert sets[0] == sets[1] and len(sets[0]) == 3
    with pytest.raises(UserError, match="leaves none of 10 images"):
        data_import_of(monkeypatch, source, tmp_path / "no", val_fraction=0.99)
    with pytest.raises(UserError, match="--val_fraction=nan: must be from 0 to below"):
        data_import_of(monkeypatch, source, tmp_path / "no", val_fraction="nan")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("train.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("test/_annotations.coco.json", "test"),
        ("trains.json", None),
        ("annotations/instances_default.json", None),
    ],
)
def test_split_is_read_off_names(tmp_path, path, split):
    assert split_of(tmp_path / path, tmp_path) == split


def test_two_files_of_one_split_are_refused(tmp_path, monkeypatch):
    for name in ("train.json", "train/_annotations.coco.json"):
        write_json(tmp_path / "x" / name, coco("a.png"))
    with pytest.raises(UserError, match="two files of split 'train'"):
        data_import_of(monkeypatch, tmp_path / "x", tmp_path / "out")


@pytest.mark.parametrize("count", [1, 256])
def test_number_of_classes_is_that_of_the_folder(tmp_path, monkeypatch, count):
    content = coco("a.png")
    content["categories"] = [{"id": i, "name": f"c{i}"} for i in range(count)]
    source = write_json(tmp_path / "x/data.json", content)
    flags = dict(unlabeled="ignore")
    with pytest.raises(UserError, match=f"{count} classes.*allowed are 2 to 255"):
        data_import_of(monkeypatch, source, tmp_path / "out", **flags)
    assert not (tmp_path / "out").exists()


def test_labelme_becomes_a_folder(tmp_path, monkeypatch):
    source = tmp_path / "x"
    save_image(source / "images/a.png")
    write_json(source / "a.json", labelme("images\\a.png", *SHAPES))
    file = io.BytesIO()
    Image.new("RGB", (W, H)).save(file, "JPEG")
    data = base64.b64encode(file.getvalue()).decode()
    write_json(source / "b.json", labelme("gone.tif", *SHAPES, imageData=data))
    write_json(source / "other.json", {"version": 1})
    assert data_import_of(monkeypatch, source, tmp_path / "out", "labelme") == 0
    classes = json.loads((tmp_path / "out/classes.json").read_text())
    assert classes["classes"] == ["background", "car", "tree"]  # by name
    for index in range(2):
        labels = labels_of(tmp_path / "out", index=index)
        np.testing.assert_array_equal(labels, labelme_labels())
    assert (tmp_path / "out/images/train/b.jpg").read_bytes() == file.getvalue()


def test_labelme_takes_its_own_list_of_classes(tmp_path, monkeypatch, capsys):
    source = tmp_path / "x"
    save_image(source / "a.png")
    write_json(source / "a.json", labelme("a.png", *SHAPES, ("cat", [[0, 0], [1, 1]])))
    names = tmp_path / "labels.txt"
    names.write_text("__ignore__\n_background_\ntree\ncar\n")
    flags = dict(classes=names)
    with pytest.raises(UserError, match="1 problems"):
        data_import_of(monkeypatch, source, tmp_path / "out", "labelme", **flags)
    (line,) = listed(capsys)
    assert line.endswith("image a.png, shape 4: label 'cat': is none of the classes")
    flags |= dict(skip_invalid=True)
    assert (
        data_import_of(monkeypatch, source, tmp_path / "out", "labelme", **flags) == 0
    )
    labels = labels_of(tmp_path / "out")
    np.testing.assert_array_equal(labels, labelme_labels(0, 2, 1))


def test_every_problem_of_labelme_is_named(tmp_path, monkeypatch, capsys):
    source = tmp_path / "x"
    save_image(source / "a.png")
    shapes = ("tree", [[0, 0]]), ("car", [[20, 4], [19, 7]]), ("", [[4, 4], [8, 7]])
    content = labelme("a.png", *SHAPES, *shapes)
    content["shapes"].append({"label": "car", "shape_type": "star", "points": [[1, 1]]})
    write_json(source / "a.json", content)
    write_json(source / "b.json", labelme("gone.png", *SHAPES))
    (source / "c.json").write_text("{")
    save_image(source / "d.png", (W + 1, H))
    write_json(source / "d.json", labelme("d.png", *SHAPES))
    with pytest.raises(UserError, match="7 problems"):
        data_import_of(monkeypatch, source, tmp_path / "out", "labelme")
    lines = listed(capsys)
    for part in (
        "a.json: image a.png, shape 4: a rectangle needs 2 points; it has 1",
        "a.json: image a.png, shape 5: covers no pixel",
        "a.json: image a.png, shape 6: label ''",
        "a.json: image a.png, shape 7: shape_type 'star'",
        "b.json: image gone.png: no such file",
        "c.json: not JSON",
        "d.json: image d.png: is 11x8 pixels, and the annotations are of 10x8",
    ):
        assert len([line for line in lines if part in line]) == 1, (part, lines)
    assert len(lines) == 7 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(output="o"), "--format: must be given"),
        (dict(format="labelme"), "--output: must be given"),
        (
            dict(format="labelme", output="o", classes=" , "),
            "--classes.*names no class",
        ),
        (dict(format="labelme", output="o"), "no: no such folder"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run_command(monkeypatch, data_import, "no", **flags)
    assert not list(tmp_path.iterdir())


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    find = data_import.read_coco.__globals__["require_package"].__globals__
    monkeypatch.setattr(find["importlib"].util, "find_spec", lambda name: None)
    flags = dict(format="coco", output=tmp_path / "out")
    with pytest.raises(UserError, match=r"pycocotools.*encnet-jax\[polygons\]"):
        run_command(monkeypatch, data_import, tmp_path, **flags)


@pytest.mark.slow
def test_coco_file_trains_end_to_end(tmp_path):
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(0)
    names = [f"{index}.png" for index in range(10)]
    content = copy.deepcopy(coco(*names))
    for name, entry in zip(names, content["images"]):
        entry.update(height=36, width=48)
        path = tmp_path / "x" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (36, 48, 3), np.uint8)).save(path)
    for entry in content["annotations"]:
        entry["segmentation"] = [polygon(4, 4, 30, 20)]
    source = write_json(tmp_path / "x/data.json", content)
    flags = "--format=coco", f"--output={tmp_path / 'out'}", "--val_fraction=0.2"
    result = run("-m", "encnet_jax", "data", "import", source, *flags)
    assert result.returncode == 0 and not errors(result), result.stderr
    where = f"--config.data.data_dir={tmp_path / 'out'}"
    result = run(
        *("-m", "encnet_jax", "data", "folder", where, f"--output={tmp_path / 'sheet'}")
    )
    assert result.returncode == 0, result.stderr
    result = run(
        *("-m", "encnet_jax", "train", "--config=folder", where, *SMALL),
        *("--config.model.weights=", f"--workdir={tmp_path / 'run'}"),
    )
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    scores = [json.loads(line) for line in lines]
    assert any("mean_iou" in key for line in scores for key in line)


def test_name_that_no_file_can_hold_is_refused_first(tmp_path, monkeypatch):
    write_json(tmp_path / "x/a.json", labelme("a.png", ("\ud800", [[0, 0], [5, 5]])))
    save_image(tmp_path / "x/a.png")
    message = r"^classes: '\\ud800': must be a name, given once"
    with pytest.raises(UserError, match=message):
        data_import_of(monkeypatch, tmp_path / "x", tmp_path / "out", "labelme")
    assert not (tmp_path / "out").exists()


def test_command_names_problems_and_exits_with_2(tmp_path):
    write_json(tmp_path / "x/a.json", labelme("gone.png", *SHAPES))
    flags = "--format=labelme", f"--output={tmp_path / 'out'}"
    result = run("-m", "encnet_jax", "data", "import", tmp_path / "x", *flags)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "gone.png: no such file" in errors(result)[0] and len(errors(result)) == 2


def test_names_that_are_no_unicode_are_divided_too():
    names = [os.fsdecode(b"caf\xe9%d.png" % index) for index in range(4)]
    images = [
        AnnotatedImage(name, "train", PurePosixPath(name), bytes, None, [])
        for name in names
    ]
    divided = divide(AnnotatedSet(["stem"], images, [], [], []), 0.25)
    splits = [image.split for image in divided.images]
    assert sorted(splits) == ["train", "train", "train", "val"]
