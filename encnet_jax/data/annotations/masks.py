"""Polygons, run-length encodings, and drawn shapes as masks."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from encnet_jax.data.annotations.annotated import Mask
from encnet_jax.data.image_io import open_image
from encnet_jax.errors import UserError

# Widths in which labelme draws lines and points (`labelme.utils.shape_to_mask`).
_LINE_WIDTH, _POINT_RADIUS = 10, 5
_POINTS = {"rectangle": 2, "oriented_rectangle": 4, "circle": 2, "line": 2, "point": 1}
SHAPES = ("polygon", *_POINTS, "linestrip", "mask")


def polygon_mask(polygons: Any, height: int, width: int) -> Mask:
    """Rasterizes COCO polygons, [[x1, y1, x2, y2, ...], ...], by pycocotools.

    Raises:
        UserError: Not three points or more each, or far outside the image.
    """
    from pycocotools import mask as coco

    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise UserError("a polygon needs three points or more, x and y of each")
        check_points(
            [polygon[i : i + 2] for i in range(0, len(polygon), 2)], (height, width)
        )
    encoded = coco.merge(coco.frPyObjects(polygons, height, width))
    # Not by its `decode`, which warns under NumPy 2.
    text = encoded["counts"].decode()
    return rle_mask({"size": [height, width], "counts": text}, height, width)


def rle_mask(segmentation: Any, height: int, width: int) -> Mask:
    """Decodes a run-length encoding of COCO, compressed (text) or not (numbers).

    pycocotools does not check that the runs fill the mask: of short ones it returns
    memory that was never written.

    Raises:
        UserError: Malformed, or of another size than the image.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise UserError(
            f"RLE of size {size}, and the image has [{height}, {width}] (height, width)"
        )
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not isinstance(counts, list) or not all(
        type(count) is int and count >= 0 for count in counts
    ):
        raise UserError("RLE: counts must be text or a list of integers >= 0")
    if sum(counts) != height * width:
        raise UserError(
            f"RLE of {sum(counts)} pixels, and the image has {height * width}"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    """Returns the runs of compressed text: LEB128-like, 5 bits a character.

    From the fourth on, a run is stored as the difference to the one before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for char in text:
        code = ord(char) - 48
        if not 0 <= code < 64:
            raise UserError(f"RLE: counts hold {char!r}, which is no part of any")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError("RLE: counts end within a number")
    return counts


def shape_mask(shape: Any, height: int, width: int) -> Mask:
    """Draws a shape of labelme as labelme does.

    Raises:
        UserError: An unknown kind, a wrong number of points, or far outside the image.
    """
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind not in SHAPES:
        raise UserError(f"shape_type {kind!r}: allowed are {', '.join(SHAPES)}")
    if kind == "mask":
        return _pasted_mask(shape.get("mask"), points, height, width)
    minimum = {"polygon": 3, "linestrip": 2}.get(kind, 0)
    expected = _POINTS.get(kind)
    count = len(points) if isinstance(points, list) else 0
    if count < minimum or expected not in (None, count):
        need = expected or f"{minimum} or more"
        raise UserError(f"a {kind} needs {need} points; it has {count}")
    check_points(points, (height, width))
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    xy = [(x, y) for x, y in points]
    if kind in ("polygon", "oriented_rectangle"):
        draw.polygon(xy, fill=1, outline=1)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = xy
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        draw.rectangle(corners, fill=1, outline=1)
    elif kind in ("line", "linestrip"):
        joint = "curve" if kind == "linestrip" else None
        draw.line(xy, fill=1, width=_LINE_WIDTH, joint=joint)
    else:
        (x, y), radius = xy[0], float(_POINT_RADIUS)
        if kind == "circle":
            radius = math.dist(*xy)
        draw.ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=1, outline=1
        )
    return np.array(image)


def _pasted_mask(encoded: Any, points: Any, height: int, width: int) -> Mask:
    """Returns labelme's `mask`: a PNG for the box between two points."""
    try:
        data = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"mask: not a PNG in base64: {error}") from error
    image = open_image(data, "mask", load=True)
    if image.format != "PNG":
        raise UserError(f"mask: not a PNG but {image.format}")
    patch = np.array(image) != 0
    if not isinstance(points, list) or len(points) != 2:
        raise UserError("a mask needs 2 points, the corners of its box")
    check_points(points, (height, width))
    (x0, y0), (x1, y1) = np.round(points).astype(int).tolist()
    box = (y1 - y0 + 1, x1 - x0 + 1)
    whole = all(float(v).is_integer() for point in points for v in point)
    # labelme rounds the corners of boxes that were moved by fractions one by one.
    if patch.ndim != 2 or whole and patch.shape != box:
        raise UserError(f"mask of shape {patch.shape}, and its box has {box}")
    mask = np.zeros((height, width), bool)
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = y0 + patch.shape[0], x0 + patch.shape[1]
    if bottom > 0 and right > 0:
        target = mask[top:bottom, left:right]
        target |= patch[top - y0 :, left - x0 :][: target.shape[0], : target.shape[1]]
    return mask


def check_points(points: Sequence[Any], size: tuple[int, int]) -> None:
    """Raises `UserError` unless points are numbers near an image.

    Points of a shape may lie outside the image, by no more than its size: rasterizers
    need memory for anything farther away.
    """
    height, width = size
    for point in points:
        valid = isinstance(point, list) and len(point) == 2
        if not valid or not all(type(v) in (int, float) for v in point):
            raise UserError(f"point {point!r}: must be [x, y], two numbers")
        x, y = point
        # False for NaN too.
        if not (-width <= x <= 2 * width and -height <= y <= 2 * height):
            raise UserError(f"point {point}: far outside the image, {width}x{height}")
