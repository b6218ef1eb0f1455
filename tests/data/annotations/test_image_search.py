"""Tests of where the images of COCO files are looked for."""

import unicodedata

import pytest

from encnet_jax.errors import UserError
from tests.data.annotations.annotation_files import (
    SHAPES,
    coco,
    data_import_of,
    labelme,
    listed,
    save_image,
    write_json,
)


def copies(root):
    """Returns the image files of an import."""
    return sorted(
        path.relative_to(root / "images").as_posix()
        for path in (root / "images").rglob("*.*")
    )


def test_bare_name_is_not_that_of_two_images(tmp_path, monkeypatch, capsys):
    names = "cam1/001.png", "cam2/001.png", "cam3/002.png"
    source = write_json(tmp_path / "x/data.json", coco(*names))
    save_image(tmp_path / "x/images/001.png")
    save_image(tmp_path / "x/images/002.png")
    flags = dict(skip_invalid=True)
    assert data_import_of(monkeypatch, source, tmp_path / "out", **flags) == 0
    lines = listed(capsys)
    assert len(lines) == 2
    for line, name in zip(lines, names):
        assert f"{source}: image {name}: no such image in" in line
        assert line.endswith("; others are named 001.png in other folders")
    assert copies(tmp_path / "out") == ["train/cam3/002.png"]


def test_a_file_is_that_of_one_image(tmp_path, monkeypatch, capsys):
    for split in ("train", "val"):
        write_json(tmp_path / f"x/{split}.json", coco("a.png"))
    image = save_image(tmp_path / "x/images/a.png")
    with pytest.raises(UserError, match="1 problems"):
        data_import_of(monkeypatch, tmp_path / "x", tmp_path / "out")
    (line,) = listed(capsys)
    x = tmp_path / "x"
    assert line == (
        f"{x}/val.json: image a.png: found {image}, which is also that of "
        f"{x}/train.json: image a.png"
    )


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_bare_name_is_not_that_of_two_images_in_other_forms(
    tmp_path, monkeypatch, capsys, forms
):
    names = [unicodedata.normalize(form, "\xe9.png") for form in forms]
    stored = [f"cam{index}/{name}" for index, name in enumerate(names)]
    source = write_json(tmp_path / "x/data.json", coco(*stored, "other.png"))
    save_image(tmp_path / "x/images" / names[0])
    save_image(tmp_path / "x/images/other.png")
    flags = dict(skip_invalid=True)
    assert data_import_of(monkeypatch, source, tmp_path / "out", **flags) == 0
    assert len(listed(capsys)) == 2
    assert copies(tmp_path / "out") == ["train/other.png"]


@pytest.mark.parametrize("kind", ["coco", "labelme"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_another_unicode_form_are_equal(tmp_path, monkeypatch, kind, forms):
    stored, name = (unicodedata.normalize(form, "caf\xe9/\xe9.png") for form in forms)
    content = coco(stored) if kind == "coco" else labelme(stored, *SHAPES)
    write_json(tmp_path / "x/data.json", content)
    image = save_image(tmp_path / "x" / name)
    assert data_import_of(monkeypatch, tmp_path / "x", tmp_path / "out", kind) == 0
    (copied,) = copies(tmp_path / "out")
    written = tmp_path / "out/images" / copied
    assert written.read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    "given", ["c/annotations/instances_val2017.json", "c/annotations"]
)
@pytest.mark.parametrize("relative", [False, True])
def test_images_are_found_beside_the_folder_of_the_annotations(
    tmp_path, monkeypatch, given, relative
):
    write_json(tmp_path / "c/annotations/instances_val2017.json", coco("a.png"))
    save_image(tmp_path / "c/val2017/a.png")
    source = tmp_path / given
    if relative:
        monkeypatch.chdir(tmp_path / "c/annotations")
        source = source.relative_to(tmp_path / "c/annotations")
    assert data_import_of(monkeypatch, source, tmp_path / "out") == 0
    assert copies(tmp_path / "out") == ["val/a.png"]


def test_images_of_cvat_are_found(tmp_path, monkeypatch):
    source = tmp_path / "c/annotations/instances_default.json"
    write_json(source, coco("a.png", "b.png"))
    save_image(tmp_path / "c/images/a.png")
    save_image(tmp_path / "c/images/default/b.png")
    assert data_import_of(monkeypatch, source, tmp_path / "out") == 0
    assert copies(tmp_path / "out") == ["train/a.png", "train/b.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 300 + ".png", "cannot be looked for: File name too long"),
        ("a" * 300 + "/b.png", "cannot be looked for: File name too long"),
        ("a\0/b.png", "cannot be looked for: embedded null"),
        (".", "not the name of an image file"),
        ("/", "not the name of an image file"),
        ("..", "not the name of an image file"),
        (".hid/b.png", "hidden, which no data set reads"),
    ],
)
def test_names_that_no_image_can_have_are_named(
    tmp_path, monkeypatch, capsys, name, message
):
    source = write_json(tmp_path / "x/data.json", coco("b.png", name))
    save_image(tmp_path / "x/b.png")
    with pytest.raises(UserError, match="1 problems; nothing was written"):
        data_import_of(monkeypatch, source, tmp_path / "out")
    (line,) = listed(capsys)
    assert message in line and line.startswith(f"{source}: image ")
