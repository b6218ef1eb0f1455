"""The figure of an explanation."""

import dataclasses

import numpy as np
import pytest
from PIL import ImageDraw

from encnet_jax.data.scenes import draw
from encnet_jax.explain.figure import (
    _effect,
    color_map,
    draw_explanation,
    mark,
    relative_map,
)

MARK = (255, 0, 160)


@pytest.fixture(scope="module")
def explanation(scenes):
    return scenes.explain(
        draw(99, 0, kind=1).image, context_from=draw(99, 0, kind=0).image
    )


def resized(explanation, height, width):
    """Returns an explanation of an image of another size."""
    rows, columns = np.arange(height) % 128, np.arange(width) % 128
    segmentation = dataclasses.replace(
        explanation.segmentation,
        image=explanation.segmentation.image[rows][:, columns],
        labels=explanation.segmentation.labels[rows][:, columns],
    )
    without = explanation.labels_without_context[rows][:, columns]
    return dataclasses.replace(
        explanation, segmentation=segmentation, labels_without_context=without
    )


def pixels_of(figure, color):
    return (np.asarray(figure) == color).all(-1)


def test_only_changed_pixels_are_marked(explanation):
    figure = explanation.figure()
    marked = np.argwhere(pixels_of(figure, MARK))
    # In the third panel, on the ground: the lower half of the 317 pixels.
    assert len(marked) > 5000
    assert (marked[:, 1] >= 670).all() and (marked[:, 0] > 200).mean() > 0.95
    same = dataclasses.replace(
        explanation, labels_without_context=explanation.segmentation.labels
    )
    assert not pixels_of(same.figure(), MARK).any()


def test_marks_are_stripes_and_an_outline():
    image, changed = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), bool)
    changed[10:30, 5:25] = True
    marked = pixels_of(mark(image, changed), MARK)
    assert not marked[~changed].any()
    assert marked[10, 5:25].all() and marked[10:30, 24].all()
    assert 0.1 < marked[12:28, 7:23].mean() < 0.5


def test_map_of_a_codeword_that_takes_nothing_is_violet():
    with np.errstate(all="raise"):
        colors = relative_map(np.zeros((2, 3), np.float32))
    assert (colors == color_map(np.zeros((2, 3)))).all()
    assert relative_map(np.float32([[0, 0.25]]))[0, 1].tolist() == [253, 231, 37]


def test_colors_of_maps_run_from_violet_to_yellow():
    colors = color_map(np.array([[0.0, 0.5, 1.0]]))
    np.testing.assert_array_equal(colors[0, [0, 2]], [(68, 1, 84), (253, 231, 37)])
    # Lighter throughout, so that it reads in gray as well.
    gray = color_map(np.linspace(0, 1, 64)[None]).astype(float) @ (0.299, 0.587, 0.114)
    assert (np.diff(gray[0]) > 0).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (64, 200), (2000, 1500)])
def test_images_of_any_shape_have_a_figure_of_bounded_size(explanation, size):
    figure = draw_explanation(resized(explanation, *size))
    assert figure.width == 1000 and figure.height < 1500


@pytest.mark.parametrize(
    "name", ["class with a very long name indeed, number {}", "北京市 {}"]
)
def test_names_of_any_length_stay_inside_the_figure(explanation, monkeypatch, name):
    drawn, outside = [], []

    class Spied(ImageDraw.ImageDraw):
        def text(self, xy, text, fill=None, font=None, anchor=None):
            left, _, right, _ = self.textbbox(xy, text, font, anchor)
            drawn.append(text)
            if left < -1 or right > self.im.size[0] + 1:
                outside.append(text)
            super().text(xy, text, fill, font, anchor)

    monkeypatch.setattr(ImageDraw, "Draw", Spied)
    names = tuple(name.format(k) for k in range(20))
    segmentation = dataclasses.replace(explanation.segmentation, class_names=names)
    dataclasses.replace(explanation, segmentation=segmentation).figure()
    assert len(drawn) > 20 and not outside


def test_bars_show_the_presence(explanation):
    segmentation = explanation.segmentation
    presence = np.zeros(20, np.float32)
    presence[7] = 0.5
    half = dataclasses.replace(segmentation, presence=presence)
    figures = [
        dataclasses.replace(
            explanation, segmentation=dataclasses.replace(half, presence=presence * k)
        ).figure()
        for k in (0, 1, 2)
    ]
    color = segmentation.colors[7]
    lengths = [pixels_of(f, color)[-210:].sum(1).max() for f in figures]
    assert lengths[0] == 0 and lengths[1] > 50
    assert lengths[2] == pytest.approx(2 * lengths[1], abs=3)


def test_long_names_of_changes_take_another_line(explanation):
    names = tuple(f"{name}, which has a long name" for name in explanation.class_names)
    segmentation = dataclasses.replace(explanation.segmentation, class_names=names)
    wide = dataclasses.replace(explanation, segmentation=segmentation)
    assert len(wide.transitions) >= 2
    assert _effect(wide).height > _effect(explanation).height
