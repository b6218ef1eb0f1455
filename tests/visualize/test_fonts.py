"""Names in any script: drawn with a font that has the letters, or numbered."""

import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Example
from encnet_jax.visualize import charts, fonts
from encnet_jax.visualize.fonts import Label, drawable_label, file_label
from encnet_jax.visualize.overlay import flowing_legend, overlay

ROAD = "\u9053\u8def"  # in Chinese: in no font that comes with the packages
GREY = (119, 119, 119)
COLORS = (GREY, GREY)


@pytest.fixture(autouse=True)
def no_system_fonts(monkeypatch, tmp_path):
    """The only fonts are those that a test writes to the folder returned."""
    folder = tmp_path / "fonts"
    folder.mkdir()

    def forget():
        for function in (fonts._font_files, fonts._find_font, fonts._log_missing):
            function.cache_clear()

    forget()
    monkeypatch.setattr(fonts, "_font_folders", lambda: [folder])
    yield folder
    forget()


def write_font(path, letters, filled=True):
    """Writes a font whose letters are triangles, each of another width."""
    glyphs = {".notdef": TTGlyphPen(None).glyph()}
    names = {ord(letter): f"u{ord(letter):x}" for letter in letters}
    for index, name in enumerate(dict.fromkeys(names.values())):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        pen.lineTo((0, 700))
        pen.lineTo((300 + 20 * index if filled else 300, 0))
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([*glyphs])
    builder.setupCharacterMap(names)
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (600, 0) for name in glyphs})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def drawn(label):
    """Returns the pixels of a label."""
    image = Image.new("L", (200, 40))
    ImageDraw.Draw(image).text((2, 2), label.text, 255, label.font(20))
    return np.asarray(image)


def test_ascii_is_drawn_in_the_default_font():
    assert drawable_label("road", "class 0") == Label("road")


def test_font_of_the_system_draws_its_letters_and_no_boxes(no_system_fonts):
    write_font(no_system_fonts / "Latin.ttf", "abcdef")
    path = write_font(no_system_fonts / "ChineseSans.ttf", ROAD + " 0123456789%")
    label = drawable_label(ROAD, "class 0")
    assert label == Label(ROAD, path)
    boxes = drawn(Label("\U0010ffff" * 2))  # the default font has no such letter
    assert not np.array_equal(drawn(Label(ROAD)), drawn(label))
    assert np.array_equal(drawn(Label(ROAD)), boxes)
    first, second = (drawn(Label(letter, path)) for letter in ROAD)
    assert first.any() and second.any() and not np.array_equal(first, second)


def test_classes_are_numbered_without_a_font_and_that_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "encnet_jax"):
        labels = [drawable_label(ROAD + str(k), f"class {k}") for k in range(3)]
        assert labels == [Label("class 0"), Label("class 1"), Label("class 2")]
        assert len(caplog.records) == 1 and "figures number them" in caplog.text
        assert file_label(f"{ROAD}-7.png") == Label("??-7.png")
    assert "names of files: figures show ? in their place" in caplog.messages[1]


def test_placeholder_fonts_and_broken_files_are_passed_over(no_system_fonts):
    write_font(no_system_fonts / "LastResort.ttf", ROAD, filled=False)
    (no_system_fonts / "Broken.otf").write_bytes(b"no font")
    assert drawable_label(ROAD, "class 0") == Label("class 0")


def test_regular_style_is_preferred(no_system_fonts):
    write_font(no_system_fonts / "A-Bold.ttf", ROAD)
    path = write_font(no_system_fonts / "B-Regular.ttf", ROAD)
    assert drawable_label(ROAD, "class 0").path == path


def test_accent_apart_from_its_letter_is_joined(no_system_fonts):
    path = write_font(no_system_fonts / "Latin.ttf", "\u00e4")
    assert drawable_label("a\u0308", "class 0") == Label("\u00e4", path)


def legends(names):
    """Returns all legends of an image of class 0."""
    labels = np.zeros((30, 40), np.uint8)
    image = np.zeros((30, 40, 3), np.uint8)
    return [
        np.asarray(overlay(image, labels, COLORS, names)),
        np.asarray(flowing_legend(labels, COLORS, names, 300)),
    ]


def test_legends_show_the_name_or_the_number(no_system_fonts):
    numbered = legends(("class 0", "b"))
    for found, expected in zip(legends((ROAD, "b")), numbered):
        np.testing.assert_array_equal(found, expected)
    fonts._find_font.cache_clear()
    fonts._font_files.cache_clear()
    write_font(no_system_fonts / "Chinese.ttf", ROAD)
    for found, expected in zip(legends((ROAD, "b")), numbered):
        assert found.shape != expected.shape or (found != expected).any()


@pytest.mark.parametrize("has_font", [False, True])
def test_charts_draw_names_without_missing_glyphs(no_system_fonts, tmp_path, has_font):
    # Matplotlib warns of a missing glyph, and a warning is an error in the tests.
    if has_font:
        write_font(no_system_fonts / "Chinese.ttf", ROAD)
    info = DatasetInfo("mine", (ROAD, "b"), COLORS, {})
    scores = {"per_class_iou": [0.5, 0.25], "mean_iou": 0.375, "classes_scored": 2}
    charts.save_class_bars(scores, info, tmp_path / "bars.png")
    charts.save_confusion(np.eye(2, dtype=int), info, tmp_path / "matrix.png")
    for name in ("bars.png", "matrix.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 300


def test_dollar_signs_in_names_are_no_formula(tmp_path):
    """Two of them were read as one, and this one cannot be."""
    name = "$10_$20"
    info = DatasetInfo("mine", (name, "b"), COLORS, {})
    scores = {"per_class_iou": [0.5, 0.25], "mean_iou": 0.375, "classes_scored": 2}
    charts.save_class_bars(scores, info, tmp_path / "bars.png")
    charts.save_confusion(np.eye(2, dtype=int), info, tmp_path / "matrix.png")
    pixels = np.zeros((4, 6, 3), np.uint8)
    example = Example(pixels, pixels[..., 0], name)
    rows = [(name, example, pixels[..., 0])]
    charts.save_examples(rows, info, tmp_path / "examples.png")


def test_system_folders_are_searched(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(fonts.sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_DIRS", "/first:/second")
    folders = [str(folder) for folder in fonts._font_folders()]
    assert folders[:3] == [str(tmp_path / "fonts"), "/first/fonts", "/second/fonts"]
    monkeypatch.delenv("XDG_DATA_DIRS")
    folders = [str(folder) for folder in fonts._font_folders()]
    assert folders[0] == str(tmp_path / "fonts") and "/usr/share/fonts" in folders
    assert fonts.matplotlib_font().startswith(folders[-1])
