"""Tests of COCO files as annotation tools write them."""

import json

import numpy as np
import pytest

from encnet_jax.errors import UserError
from tests.data.annotations.annotation_files import (
    annotation,
    coco,
    data_import_of,
    expected_labels,
    labels_of,
    listed,
    polygon,
    save_image,
    write_json,
)


def roboflow(*categories, used=(1,)):
    """Returns a COCO file of (name, supercategory), of which some are annotated."""
    content = coco("a.png")
    content["categories"] = [
        {"id": index, "name": name, "supercategory": above}
        for index, (name, above) in enumerate(categories)
    ]
    content["annotations"] = [
        annotation(index, 10, category, [polygon(0, 2, 6, 6)])
        for index, category in enumerate(used)
    ]
    return content


def classes_of(root):
    return json.loads((root / "classes.json").read_text())["classes"]


@pytest.mark.parametrize(
    ("categories", "classes"),
    [
        ([("fish", "none"), ("fish", "fish")], ["fish"]),
        ([("sea", "none"), ("fish", "sea"), ("crab", "sea")], ["fish", "crab"]),
    ],
)
def test_root_of_roboflow_is_no_class(
    tmp_path, monkeypatch, capsys, categories, classes
):
    for split in ("train", "valid"):
        folder = tmp_path / "x" / split
        write_json(folder / "_annotations.coco.json", roboflow(*categories))
        save_image(folder / "a.png")
    assert data_import_of(monkeypatch, tmp_path / "x", tmp_path / "out") == 0
    assert classes_of(tmp_path / "out") == ["background", *classes]
    expected = np.zeros((8, 10), int)
    expected[2:6, 0:6] = 1
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), expected)
    lines = capsys.readouterr().out.splitlines()
    notes = [line for line in lines if "as Roboflow adds it" in line]
    assert len(notes) == 1 and f"category 0 {categories[0][0]!r}: no class" in notes[0]


@pytest.mark.parametrize(
    ("categories", "used"),
    [
        # As in COCO: classes are supercategories, and a split may lack one.
        ([("person", "person"), ("food", "food"), ("cake", "food")], (2,)),
        ([("person", "person"), ("kid", "person")], (1,)),
        ([("sea", "none"), ("fish", "sea")], (0, 1)),
        ([("sea", "none"), ("fish", "sea"), ("car", "road")], (1,)),
        ([("sky", "none"), ("sea", "none")], (1,)),
    ],
)
def test_categories_that_others_name_stay_classes(
    tmp_path, monkeypatch, categories, used
):
    source = write_json(tmp_path / "x/data.json", roboflow(*categories, used=used))
    save_image(tmp_path / "x/a.png")
    assert data_import_of(monkeypatch, source, tmp_path / "out") == 0
    names = [name for name, _ in categories]
    assert classes_of(tmp_path / "out") == ["background", *names]


def test_root_that_another_split_annotates_stays_a_class(tmp_path, monkeypatch):
    categories = ("sea", "none"), ("fish", "sea")
    for split, used in (("train", (0, 1)), ("val", (1,))):
        write_json(tmp_path / f"x/{split}.json", roboflow(*categories, used=used))
        save_image(tmp_path / f"x/{split}/a.png")
    assert data_import_of(monkeypatch, tmp_path / "x", tmp_path / "out") == 0
    assert classes_of(tmp_path / "out") == ["background", "sea", "fish"]


@pytest.mark.parametrize("flags", [{}, {"classes": "_background_,leaf"}])
def test_background_of_labelme_is_no_class_of_its_own(tmp_path, monkeypatch, flags):
    content = roboflow(("_background_", None), ("leaf", None), used=(0, 1))
    source = write_json(tmp_path / "x/data.json", content)
    save_image(tmp_path / "x/a.png")
    assert data_import_of(monkeypatch, source, tmp_path / "out", **flags) == 0
    assert classes_of(tmp_path / "out") == ["background", "leaf"]


def test_both_names_of_the_background_are_one_class(tmp_path, monkeypatch):
    names = ("_background_", None), ("background", None), ("leaf", None)
    source = write_json(tmp_path / "x/data.json", roboflow(*names, used=(0, 1, 2)))
    save_image(tmp_path / "x/a.png")
    assert data_import_of(monkeypatch, source, tmp_path / "out") == 0
    assert classes_of(tmp_path / "out") == ["background", "leaf"]


def test_numbers_as_text_and_flat_polygons_are_read(tmp_path, monkeypatch):
    content = coco("a.png")
    content["images"][0].update(height=8.0, width=10.0)
    for entry in content["annotations"]:
        entry["image_id"] = str(entry["image_id"])
        entry["category_id"] = str(entry["category_id"])
        if isinstance(entry["segmentation"], list):
            entry["segmentation"] = entry["segmentation"][0]
    source = write_json(tmp_path / "x/data.json", content)
    save_image(tmp_path / "x/a.png")
    assert data_import_of(monkeypatch, source, tmp_path / "out") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), expected_labels())


def test_ids_are_matched_exactly_first(tmp_path, monkeypatch):
    content = coco("a.png", "b.png")
    content["images"][0]["id"], content["images"][1]["id"] = 0, "0"
    content["annotations"] = [annotation(1, "0", 7, [polygon(0, 2, 6, 6)])]
    source = write_json(tmp_path / "x/data.json", content)
    for name in ("a.png", "b.png"):
        save_image(tmp_path / "x" / name)
    assert data_import_of(monkeypatch, source, tmp_path / "out") == 0
    assert not labels_of(tmp_path / "out", index=0).any()
    assert labels_of(tmp_path / "out", index=1).any()


@pytest.mark.parametrize("height", [8.5, 0.0, "8", True, float("inf")])
def test_sizes_that_are_none_are_named(tmp_path, monkeypatch, capsys, height):
    content = coco("a.png", "b.png")
    content["images"][1]["height"] = height
    content["annotations"] = content["annotations"][:3]
    source = write_json(tmp_path / "x/data.json", content)
    save_image(tmp_path / "x/a.png")
    with pytest.raises(UserError, match="1 problems"):
        data_import_of(monkeypatch, source, tmp_path / "out")
    (line,) = listed(capsys)
    assert f"image b.png: height {height!r}, width 10: must be integers" in line
