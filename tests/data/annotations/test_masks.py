"""Tests of masks: polygons, run-length encodings, and labelme's shapes, by hand."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.annotations.masks import polygon_mask, rle_mask, shape_mask
from encnet_jax.errors import UserError


def box(y0, y1, x0, x1, size=(5, 6)):
    """Returns a mask of rows y0 to y1 - 1, columns x0 to x1 - 1."""
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def shape(kind, *points, **more):
    return {"shape_type": kind, "points": [list(point) for point in points], **more}


def test_polygons_by_hand():
    pytest.importorskip("pycocotools")
    square = [1, 1, 4, 1, 4, 3, 1, 3]
    np.testing.assert_array_equal(polygon_mask([square], 5, 6), box(1, 3, 1, 4))
    both = polygon_mask([square, [0, 4, 6, 4, 6, 5, 0, 5.0]], 5, 6)
    np.testing.assert_array_equal(both, box(1, 3, 1, 4) | box(4, 5, 0, 6))
    clipped = polygon_mask([[-2, -2, 2, -2, 2, 9, -2, 9]], 5, 6)
    np.testing.assert_array_equal(clipped, box(0, 5, 0, 2))


def test_rle_by_hand_and_as_pycocotools():
    # Column by column: 1 x 0, 2 x 1, 3 x 0.
    runs = {"size": [2, 3], "counts": [1, 2, 3]}
    expected = [[0, 1, 0], [1, 0, 0]]
    np.testing.assert_array_equal(rle_mask(runs, 2, 3), np.array(expected, bool))
    text = {"size": [2, 3], "counts": "123"}
    np.testing.assert_array_equal(rle_mask(text, 2, 3), np.array(expected, bool))
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random((40, 700)) > 0.9
    mask[:, 300:] = False
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": [40, 700], "counts": encoded["counts"].decode()}
    np.testing.assert_array_equal(rle_mask(text, 40, 700), mask)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 2], "RLE of 3 pixels, and the image has 6"),  # pycocotools: garbage
        ([1, 20], "RLE of 21 pixels"),
        ("12", "RLE of 3 pixels"),
        ("12\x7f", "counts hold"),
        ("12o", "end within a number"),
        ([-1, 7], "integers >= 0"),
        ([1.5, 4.5], "integers >= 0"),
        (None, "must be text or a list"),
    ],
)
def test_malformed_rle_is_refused(counts, message):
    with pytest.raises(UserError, match=message):
        rle_mask({"size": [2, 3], "counts": counts}, 2, 3)


def test_rle_of_another_size_is_refused():
    with pytest.raises(UserError, match=r"size \[3, 2\], and the image has \[2, 3\]"):
        rle_mask({"size": [3, 2], "counts": [1, 2, 3]}, 2, 3)


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([[1, 1, 4, 1]], "three points"),
        ([[1, 1, 4, 1, 4, 3, 1]], "three points"),
        ([[1e9, 1, 4, 1, 4, 3]], "far outside"),  # pycocotools: all memory
        ([[float("nan"), 1, 4, 1, 4, 3]], "far outside"),
        ([[None, 1, 4, 1, 4, 3]], "two numbers"),
        ([7], "three points"),
    ],
)
def test_malformed_polygons_are_refused(polygons, message):
    pytest.importorskip("pycocotools")
    with pytest.raises(UserError, match=message):
        polygon_mask(polygons, 5, 6)


def test_labelme_shapes_by_hand():
    # As labelme, by Pillow: the outline belongs to the shape.
    square = shape("polygon", (1, 1), (3, 1), (3, 3), (1, 3))
    np.testing.assert_array_equal(shape_mask(square, 5, 6), box(1, 4, 1, 4))
    square["shape_type"] = None
    np.testing.assert_array_equal(shape_mask(square, 5, 6), box(1, 4, 1, 4))
    square["shape_type"] = "oriented_rectangle"
    np.testing.assert_array_equal(shape_mask(square, 5, 6), box(1, 4, 1, 4))
    rectangle = shape("rectangle", (3, 3), (1, 2))
    np.testing.assert_array_equal(shape_mask(rectangle, 5, 6), box(2, 4, 1, 4))
    plus = box(1, 4, 2, 3) | box(2, 3, 1, 4)
    circle = shape_mask(shape("circle", (2, 2), (3, 2)), 5, 6)
    assert circle[plus].all() and not circle[~box(1, 4, 1, 4)].any()
    point = shape_mask(shape("point", (15, 10)), 21, 31)
    assert np.ptp(np.argwhere(point), 0).tolist() == [10, 10] and point[10, 15]
    line = shape_mask(shape("line", (5, 10), (25, 10)), 21, 31)
    assert line[:, 15].sum() == 10 and line[10, 5:26].all()
    strip = shape_mask(shape("linestrip", (5, 5), (25, 5), (25, 20)), 31, 31)
    assert strip[5, 5:25].all() and strip[5:20, 25].all()


def test_labelme_mask_is_pasted_at_its_box():
    patch = np.uint8([[1, 0, 1], [0, 1, 0]])
    file = io.BytesIO()
    Image.fromarray(patch * 255).save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    drawn = shape_mask(shape("mask", (1, 2), (3, 3), mask=encoded), 5, 6)
    expected = np.zeros((5, 6), bool)
    expected[2:4, 1:4] = patch
    np.testing.assert_array_equal(drawn, expected)
    drawn = shape_mask(shape("mask", (-1, 4), (1, 5), mask=encoded), 5, 6)
    assert np.argwhere(drawn).tolist() == [[4, 1]]  # the rest is outside
    with pytest.raises(UserError, match=r"shape \(2, 3\), and its box has \(2, 4\)"):
        shape_mask(shape("mask", (1, 2), (4, 3), mask=encoded), 5, 6)
    with pytest.raises(UserError, match="mask: cannot be decoded as an image: unknown"):
        shape_mask(shape("mask", (1, 2), (4, 3), mask="AAAA"), 5, 6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (shape("polygon", (1, 1), (2, 2)), "polygon needs 3 or more points; it has 2"),
        (shape("rectangle", (1, 1)), "rectangle needs 2 points; it has 1"),
        (shape("star", (1, 1)), "shape_type 'star': allowed are polygon"),
        (shape("point", (1e8, 1)), "far outside"),
        ({"shape_type": "circle"}, "circle needs 2 points; it has 0"),
    ],
)
def test_malformed_shapes_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        shape_mask(given, 5, 6)
