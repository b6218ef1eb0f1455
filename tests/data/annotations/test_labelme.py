"""Tests of labelme files: their folders, and the images and masks inside of them."""

import base64
import io
import re
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image, features

from encnet_jax.data.annotations.labelme import read_labelme
from encnet_jax.errors import UserError
from tests.data.annotations.annotation_files import (
    SHAPES,
    H,
    W,
    data_import_of,
    labelme,
    labelme_labels,
    labels_of,
    listed,
    save_image,
    write_json,
)
from tests.data.png_files import chunk

# The start of a mask of 20000x20000 pixels of 1 bit.
HEADER = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
LARGE = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", HEADER) + chunk(b"IDAT", b"")
LARGE = base64.b64encode(LARGE).decode()


def encoded(image, kind, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return base64.b64encode(file.getvalue()).decode()


def test_folders_are_splits_for_all_or_none(tmp_path, monkeypatch):
    source = tmp_path / "x"
    for folder in ("train", "val", "extra"):
        write_json(source / folder / "a.json", labelme("a.png", *SHAPES))
        save_image(source / folder / "a.png")
    with pytest.raises(UserError) as caught:
        data_import_of(monkeypatch, source, tmp_path / "out", "labelme")
    assert str(caught.value) == (
        f"{source}/extra/a.json: image a.png: in no folder train, val, or test, unlike "
        f"{source}/train/a.json: image a.png: must hold for all; 2 are in such, 1 are "
        "not"
    )
    assert not (tmp_path / "out").exists()
    (source / "extra/a.json").unlink()
    assert data_import_of(monkeypatch, source, tmp_path / "out", "labelme") == 0
    for split in ("train", "val"):
        labels = labels_of(tmp_path / "out", split)
        np.testing.assert_array_equal(labels, labelme_labels())


def test_second_file_of_an_image_is_named(tmp_path, monkeypatch, capsys):
    x = tmp_path / "x"
    write_json(x / "json/a.json", labelme("../a.png", *SHAPES))
    write_json(x / "json/a copy.json", labelme("..\\a.png", *SHAPES[:1]))
    save_image(x / "a.png")
    with pytest.raises(UserError, match="1 problems"):
        data_import_of(monkeypatch, x, tmp_path / "out", "labelme")
    (line,) = listed(capsys)
    assert line == (
        f"{x}/json/a.json: image ../a.png: found {x}/json/../a.png, which is also that "
        f"of {x}/json/a copy.json: image ..\\a.png"
    )


def test_images_and_masks_are_not_kept(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8)
    size = dict(imageHeight=400, imageWidth=400)
    mask = encoded(Image.fromarray(noise), "PNG")
    for index in range(8):
        pixels = np.roll(noise, index)
        data = encoded(Image.fromarray(pixels), "PNG")
        content = labelme("gone.png", imageData=data, **size)
        points = [[0, 0], [399, 399]]
        content["shapes"] = [
            {"label": "car", "shape_type": "mask", "points": points, "mask": mask}
        ]
        write_json(tmp_path / f"{index}.json", content)
    tracemalloc.start()
    try:
        read = read_labelme(tmp_path)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * noise.size  # of 8 images and masks
    assert len(read.images) == 8
    for index, image in enumerate(read.images):
        with Image.open(io.BytesIO(image.content())) as stored:
            np.testing.assert_array_equal(stored, np.roll(noise, index))
        (region,) = image.regions
        np.testing.assert_array_equal(region.draw(400, 400), noise != 0)


def test_long_name_of_an_image_is_named(tmp_path, monkeypatch, capsys):
    source, name = tmp_path / "x", "a" * 300 + ".png"
    write_json(source / "a.json", labelme(name, *SHAPES))
    save_image(source / "b.png")
    write_json(source / "b.json", labelme("b.png", *SHAPES))
    data = encoded(Image.new("RGB", (W, H)), "PNG")
    write_json(source / "c.json", labelme(name, *SHAPES, imageData=data))
    flags = dict(skip_invalid=True)
    assert (
        data_import_of(monkeypatch, source, tmp_path / "out", "labelme", **flags) == 0
    )
    (line,) = listed(capsys)
    assert f"a.json: image {name}: no such file as" in line
    copied = sorted(path.name for path in (tmp_path / "out/images/train").iterdir())
    assert copied == ["b.png", "c.png"]


@pytest.mark.parametrize(("kind", "suffix"), [("MPO", ".jpg"), ("JPEG2000", ".jp2")])
def test_embedded_images_get_the_suffix_of_their_kind(
    tmp_path, monkeypatch, kind, suffix
):
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("Pillow without OpenJPEG")
    image = Image.new("RGB", (W, H), (90, 50, 20))
    settings = dict(save_all=True, append_images=[image]) if kind == "MPO" else {}
    data = encoded(image, kind, **settings)
    write_json(tmp_path / "x/a.json", labelme("gone", *SHAPES, imageData=data))
    assert data_import_of(monkeypatch, tmp_path / "x", tmp_path / "out", "labelme") == 0
    copied = tmp_path / f"out/images/train/a{suffix}"
    assert copied.read_bytes() == base64.b64decode(data)
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), labelme_labels())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (LARGE, "mask: .*--max_image_pixels"),
        (encoded(Image.new("L", (3, 2)), "BMP"), "mask: not a PNG but BMP"),
        (encoded(Image.new("L", (99, 99)), "PNG")[:80], "mask: .*decoded as an image"),
        ("?", "mask: not a PNG in base64"),
    ],
)
def test_masks_that_cannot_be_read_are_named(
    tmp_path, monkeypatch, capsys, mask, message
):
    content = labelme("a.png", *SHAPES)
    points = [[1, 2], [3, 3]]
    shape = {"label": "car", "shape_type": "mask", "points": points, "mask": mask}
    content["shapes"].append(shape)
    write_json(tmp_path / "x/a.json", content)
    save_image(tmp_path / "x/a.png")
    with pytest.raises(UserError, match="1 problems"):
        data_import_of(monkeypatch, tmp_path / "x", tmp_path / "out", "labelme")
    (line,) = listed(capsys)
    assert re.search(message, line)
    assert "a.json: image a.png, shape 4: mask" in line
