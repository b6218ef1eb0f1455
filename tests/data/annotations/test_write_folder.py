"""Tests of the images that an import copies: their kinds, sizes, and orientations."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.annotations.annotated import class_labels
from encnet_jax.errors import UserError
from tests.data.annotations.annotation_files import (
    SHAPES,
    H,
    W,
    coco,
    data_import_of,
    expected_labels,
    labelme,
    labelme_labels,
    labels_of,
    listed,
    save_image,
    write_json,
)


def save_bands(path, **settings):
    tifffile = pytest.importorskip("tifffile")
    values = np.arange(H * W * 5).reshape(H, W, 5).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = dict(photometric="minisblack", planarconfig="contig", **settings)
    tifffile.imwrite(path, values, **settings)
    return path


def labels_file(root, name):
    with Image.open(root / "labels/train" / name) as file:
        return np.array(file)


def test_images_of_many_bands_are_copied(tmp_path, monkeypatch, capsys):
    source = write_json(tmp_path / "x/data.json", coco("a.tif", "b.tif", "c.png"))
    paths = [save_bands(tmp_path / "x/a.tif"), tmp_path / "x/b.tif"]
    planes = np.arange(4 * H * W).reshape(4, H, W).astype(np.uint16)
    settings = dict(photometric="minisblack", planarconfig="separate")
    pytest.importorskip("tifffile").imwrite(paths[1], planes, **settings)
    with Image.open(paths[1]) as opened, pytest.raises((OSError, ValueError)):
        opened.load()  # Pillow reads no more than the header
    save_image(tmp_path / "x/c.png")
    assert data_import_of(monkeypatch, source, tmp_path / "out") == 0
    for path in paths:
        copied = tmp_path / "out/images/train" / path.name
        assert copied.read_bytes() == path.read_bytes()
        labels = labels_file(tmp_path / "out", f"{path.stem}.png")
        np.testing.assert_array_equal(labels, expected_labels())
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warn" in line]
    (line,) = warnings  # not shown in the contact sheet
    assert "a TIFF of 5 channels, uint16" in line and line.endswith("(and 1 more)")


def test_images_of_many_bands_are_checked(tmp_path, monkeypatch, capsys):
    names = "turned.tif", "short.tif", "large.tif", "other.tif"
    source = write_json(tmp_path / "x/data.json", coco(*names))
    save_bands(tmp_path / "x/turned.tif", extratags=[(274, "H", 1, 6, True)])
    whole = save_bands(tmp_path / "x/short.tif").read_bytes()
    (tmp_path / "x/short.tif").write_bytes(whole[:-8])
    save_bands(tmp_path / "x/large.tif")
    (tmp_path / "x/other.tif").write_bytes(b"II*\0" + bytes(90))
    content = json.loads(source.read_text())
    content["images"][2]["width"] = W + 1
    write_json(source, content)
    with pytest.raises(UserError, match="4 problems"):
        data_import_of(monkeypatch, source, tmp_path / "out")
    lines = listed(capsys)
    for line, name, message in zip(
        lines,
        names,
        (
            "is stored rotated or mirrored",
            "a truncated TIFF",
            "is 10x8 pixels, and the annotations are of 11x8",
            "cannot be read as a TIFF",
        ),
        strict=True,
    ):
        assert f"image {name}: {message}" in line


def test_size_of_bands_is_limited(tmp_path, monkeypatch, capsys):
    source = write_json(tmp_path / "x/data.json", coco("a.tif"))
    save_bands(tmp_path / "x/a.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 39)
    with pytest.raises(UserError, match="1 problems"):
        data_import_of(monkeypatch, source, tmp_path / "out")
    (line,) = listed(capsys)
    assert "(80 pixels) exceeds limit of 78 pixels" in line
    assert "(--max_image_pixels) allows it" in line


def test_truncated_images_are_named(tmp_path, monkeypatch, capsys):
    source = write_json(tmp_path / "x/data.json", coco("a.jpg", "b.tif", "c.png"))
    noise = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    for name in ("a.jpg", "b.tif", "c.png"):
        file = io.BytesIO()
        image = Image.fromarray(noise)
        image.save(file, Image.registered_extensions()[f".{name[-3:]}"])
        # Headers, which TIFF has at the end here, stay.
        cut = file.getvalue()[:-60]
        if name == "b.tif":
            cut = file.getvalue().replace(noise.tobytes(), b"")
        (tmp_path / "x" / name).write_bytes(cut)
        assert name == "b.tif" or Image.open(io.BytesIO(cut)).size == (W, H)
    with pytest.raises(UserError, match="3 problems"):
        data_import_of(monkeypatch, source, tmp_path / "out")
    for line, name in zip(listed(capsys), ("a.jpg", "b.tif", "c.png"), strict=True):
        reason = "a truncated TIFF" if name == "b.tif" else "cannot be"
        assert f"image {name}: {reason}" in line


def save_turned(path, orientation, size=(W, H)):
    exif = Image.Exif()
    exif[274] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 50, 20)).save(path, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "size", "sized", "warned"),
    [
        (1, (W, H), True, False),
        (1, (W, H), False, False),
        (2, (W, H), True, True),
        (3, (W, H), False, True),
        (6, (H, W), True, False),  # only as shown it has the size
        (6, (H, W), False, True),
    ],
)
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_orientations_that_sizes_do_not_tell_are_counted(
    tmp_path, monkeypatch, capsys, orientation, size, sized, warned, kind
):
    content = coco(f"a.{kind}", f"b.{kind}")
    for entry in () if sized else content["images"]:
        del entry["height"], entry["width"]
    source = write_json(tmp_path / "x/data.json", content)
    for name in ("a", "b"):
        save_turned(tmp_path / f"x/{name}.{kind}", orientation, size)
    assert data_import_of(monkeypatch, source, tmp_path / "out") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), expected_labels())
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if "EXIF" in line]
    assert len(warnings) == warned
    for line in warnings:
        assert line.startswith("warning: 2 images with an EXIF orientation that")
        assert f"{source}: image a.{kind}: annotations are taken to be" in line


def test_square_images_that_are_turned_are_counted(tmp_path, monkeypatch, capsys):
    content = labelme("a.jpg", *SHAPES, imageHeight=W)
    write_json(tmp_path / "x/a.json", content)
    save_turned(tmp_path / "x/a.jpg", 8, (W, W))
    assert data_import_of(monkeypatch, tmp_path / "x", tmp_path / "out", "labelme") == 0
    assert "warning: 1 images with an EXIF orientation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "unlabeled", "classes", "blank"),
    [
        (["leaf"], "background", ["background", "leaf"], 0),
        (["leaf", "Background"], "background", ["leaf", "Background"], 1),
        (["Background", "background"], "background", ["Background", "background"], 1),
        (["leaf", "BACKGROUND"], "ignore", ["leaf", "BACKGROUND"], 255),
    ],
)
def test_background_of_the_user_is_kept(names, unlabeled, classes, blank):
    found, labels, unlabeled_label = class_labels(names, unlabeled)
    assert found == classes and unlabeled_label == blank
    assert [labels[name] for name in classes] == [*range(len(classes))]


def test_labelme_background_is_that_of_the_user(tmp_path, monkeypatch):
    write_json(
        tmp_path / "x/a.json",
        labelme("a.png", *SHAPES, ("Background", [[9, 7], [9, 7]])),
    )
    save_image(tmp_path / "x/a.png")
    assert data_import_of(monkeypatch, tmp_path / "x", tmp_path / "out", "labelme") == 0
    classes = json.loads((tmp_path / "out/classes.json").read_text())["classes"]
    assert classes == ["Background", "car", "tree"]
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), labelme_labels())
