"""Palette images, overlays, legends, panels."""

import io

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.dataset_info import IGNORE_LABEL, voc_colormap
from encnet_jax.visualize.overlay import overlay, palette_image
from encnet_jax.visualize.panels import panel, prediction_panel

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLORS = (RED, GREEN, BLUE)
NAMES = ("fire", "grass", "water")


def stored(result):
    """Returns an image after a round trip through PNG."""
    file = io.BytesIO()
    result.save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_palette_image_keeps_every_label_through_png(dtype):
    labels = np.arange(256, dtype=dtype).reshape(16, 16)
    colors = voc_colormap(150)
    result = stored(palette_image(labels, colors))
    assert result.mode == "P"
    np.testing.assert_array_equal(np.asarray(result), labels)
    painted = np.asarray(result.convert("RGB")).reshape(256, 3)
    np.testing.assert_array_equal(painted[:150], colors)
    assert not painted[150:].any()  # 255, to ignore, with them.


def test_overlay_mixes_image_and_colors():
    image = np.full((8, 8, 3), 100, np.uint8)
    labels = np.full((8, 8), 1)
    result = overlay(image, labels, COLORS, NAMES, opacity=0.25, legend=False)
    assert result.size == (8, 8) and result.mode == "RGB"
    # 100 * 0.75 + (0, 255, 0) * 0.25, rounded.
    np.testing.assert_array_equal(np.asarray(result)[4, 4], [75, 139, 75])


@pytest.mark.parametrize("opacity", [0, 1])
def test_opacity_of_0_or_1_is_image_or_color(opacity):
    image = np.full((8, 8, 3), 100, np.uint8)
    labels = np.full((8, 8), 1)
    result = overlay(image, labels, COLORS, NAMES, opacity=opacity, legend=False)
    expected = GREEN if opacity else (100, 100, 100)
    np.testing.assert_array_equal(np.asarray(result)[4, 4], expected)


@pytest.mark.parametrize("opacity", [-0.1, 1.01, 55, float("nan")])
def test_opacity_beyond_its_range_is_refused(opacity):
    image, labels = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    with pytest.raises(ValueError, match=f"opacity={opacity}: must be at least 0, at"):
        overlay(image, labels, COLORS, NAMES, opacity=opacity)


def test_overlay_shows_the_image_where_labels_are_ignored():
    image = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    labels = np.zeros((8, 10), np.uint8)
    labels[:, 5:] = IGNORE_LABEL
    result = np.asarray(overlay(image, labels, COLORS, NAMES, legend=False))
    np.testing.assert_array_equal(result[:, 5:], image[:, 5:])
    assert (result[:, :5, 0] > image[:, :5, 0] * 0.45 + 139).mean() > 0.9


def test_overlay_darkens_where_classes_meet():
    labels = np.zeros((6, 6), int)
    labels[:, 3:] = 2
    image = np.zeros((6, 6, 3), np.uint8)
    result = np.asarray(overlay(image, labels, COLORS, NAMES, legend=False))
    assert result[0, :, 2].tolist() == [0, 0, 0, 70, 140, 140]


def test_legend_shows_the_colors_of_the_classes_there_are():
    image = np.zeros((60, 40, 3), np.uint8)
    labels = np.zeros((60, 40), int)
    labels[:20] = 2
    labels[:5, :5] = IGNORE_LABEL
    result = np.asarray(overlay(image, labels, COLORS, NAMES))
    plain = np.asarray(overlay(image, labels, COLORS, NAMES, legend=False))
    np.testing.assert_array_equal(result[:60, :40], plain)
    assert result.shape[1] > 40 and result.shape[0] >= 60
    legend = result[:, 40:].reshape(-1, 3)
    found = [np.flatnonzero((legend == color).all(1)) for color in COLORS]
    assert found[0].size and found[2].size and not found[1].size
    assert found[0][0] < found[2][0]  # The larger class comes first.


def test_legend_makes_the_image_taller_if_it_must():
    labels = np.arange(30).repeat(2).reshape(6, 10)
    names = [f"class {number}" for number in range(30)]
    result = overlay(np.zeros((6, 10, 3), np.uint8), labels, voc_colormap(30), names)
    assert result.height > 30 * 12


def test_legend_of_only_ignored_pixels_is_empty():
    labels = np.full((5, 5), IGNORE_LABEL, np.uint8)
    image = np.full((5, 5, 3), 9, np.uint8)
    result = np.asarray(overlay(image, labels, COLORS, NAMES))
    np.testing.assert_array_equal(result[:5, :5], image)
    assert (result[:, 5:] == 255).all()


def test_panel_scales_images_to_one_width_in_rows_and_columns():
    wide = Image.new("RGB", (20, 10), RED)
    tall = Image.new("RGB", (10, 20), GREEN)
    result = panel([[wide, wide], [tall, wide]], ("left", "right"), width=40)
    pixels = np.asarray(result)
    for color, area in ((RED, 3 * 40 * 20), (GREEN, 40 * 80)):
        assert (pixels == color).all(-1).sum() == area
    assert result.width == 2 * 40 + 3 * 4


def test_tall_images_do_not_make_the_panel_tall():
    image = Image.new("RGB", (2, 1100))
    assert panel([[image]], ["a"], width=100).height < 400


def test_prediction_panel_shows_image_labels_and_predictions():
    image = np.full((4, 4, 3), (1, 2, 3), np.uint8)
    labels, predictions = np.zeros((4, 4), np.uint8), np.full((4, 4), 2, np.uint8)
    pixels = np.asarray(prediction_panel([(image, labels, predictions)], COLORS))
    columns = [
        np.flatnonzero((pixels == c).all(-1).any(0)) for c in ((1, 2, 3), RED, BLUE)
    ]
    assert columns[0].max() < columns[1].min() and columns[1].max() < columns[2].min()
