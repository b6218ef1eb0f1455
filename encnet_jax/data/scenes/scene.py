"""Draws `scenes`, a synthetic data set in which only context determines the classes.

Every image shows a distant backdrop (rows 0 to 23), a broad meadow, and a pale ground
with a few objects on it (row 69 and below). Only the backdrop reveals the kind of
scene: a city, a harbor, a farm or a winter village. Ground and objects look identical
in all kinds but belong to different classes: a car on a road is a boat on water. At
least 45 rows of meadow separate the two, more than half the receptive field of the
demo's backbone, so that a network without global context can only guess.

City and harbor differ in their overall color and texture. Farm and winter village do
not: both show the same sky, hills and houses in the same red and cream, with red roofs
on cream walls or snow-covered roofs on red walls, so that their mean color is the same
and only the arrangement differs.

Nothing here needs TensorFlow; `builders/scenes.py` wraps it for TFDS.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from encnet_jax.data.scenes.backdrops import CUE_ROWS as CUE_ROWS
from encnet_jax.data.scenes.backdrops import draw_backdrop
from encnet_jax.data.scenes.drawing import IGNORE_LABEL as IGNORE_LABEL
from encnet_jax.data.scenes.drawing import (
    IMAGE_SIZE,
    Color,
    Drawing,
    Part,
    colors_of,
    contour,
    mix,
)

AMBIGUOUS_ROW = 69  # no pixel above this row has a class that depends on the kind
SMALL_SIZE = 10  # objects up to this width in pixels count as small

KINDS = ("city", "harbor", "farm", "winter")
SHAPES = ("body", "ring", "wedge")
CLASS_NAMES = (
    *("sky", "backdrop", "meadow", "tree"),
    *("road", "water", "field", "snow"),  # ground, by kind
    *("car", "boat", "tractor", "sledge"),  # body, by kind
    *("tyre", "lifebuoy", "bale", "tube"),  # ring, by kind
    *("cone", "sail", "haystack", "tent"),  # wedge, by kind
)
COLORS = (
    *colors_of("b7dcf0 7c8aaa 9ec97c 3e7c58 5c5e6e 3a7cbe debc6e eef2fa e23e48 163a78"),
    *colors_of("965428 c454a8 7a243c 60cede ffde46 f6a0c8 ff842c 7e60cc 7c7a1e 009286"),
)
AMBIGUOUS = tuple(range(4, 20))

_MEADOW, _TREE, _GROUND, _OBJECT = 2, 3, 4, 8

# Color schemes, independent of the kind: far meadow, near meadow, ground.
_MOODS = (
    colors_of("b2d396 80b67a ccd9e6"),
    colors_of("cdce8c 96b270 eddccc"),
    colors_of("aacaaa 70a88a d8d0e8"),
    colors_of("beda92 7ab88c d2e2d8"),
)
_PAINTS = colors_of("e85d4f f3b23e 2a8c8a 3a548a 925686 ee8254 629654 e27a92")
_LEAVES = colors_of("549468 408062 74a45c 549468 ec9e5e e2bc60 eca8b4")
_PETALS = colors_of("fffaeb ffde8c f6bec8")
_DUSK, _WHITE = colors_of("282846 ffffff")
(_TRUNK,) = colors_of("7a5e54")


class Scene(NamedTuple):
    """One scene.

    Attributes:
        image: RGB, 0-255.
        labels: Class indices; 255 (void) where a pixel mixes two classes.
        kind: Index into `KINDS`.
        boxes: One row per object: index into `SHAPES`, left, top, right and bottom in
            pixels (right and bottom exclusive). Boxes do not overlap.
    """

    image: UInt8[np.ndarray, "128 128 3"]
    labels: UInt8[np.ndarray, "128 128"]
    kind: int
    boxes: Int32[np.ndarray, "n 5"]


def draw(seed: int, index: int, *, kind: int | None = None) -> Scene:
    """Draws one scene, a pure function of the arguments.

    Args:
        seed: Seed of the data set, 0 or more.
        index: Index of the scene, 0 or more.
        kind: Index into `KINDS`, to override the kind of the scene. The image then
            changes only above row `CUE_ROWS`; the labels change there and in the
            classes of ground and objects.

    Raises:
        ValueError: `kind` is not an index into `KINDS`.
    """
    if kind is not None and kind not in range(len(KINDS)):
        raise ValueError(f"kind must be in 0..{len(KINDS) - 1}, got {kind}")
    # Two generators, so that the rest does not depend on the draws of the backdrop.
    rng = np.random.default_rng((seed, index, 0))
    backdrop_rng = np.random.default_rng((seed, index, 1))
    own_kind = int(backdrop_rng.integers(len(KINDS)))
    kind = own_kind if kind is None else int(kind)
    mood = _MOODS[rng.integers(len(_MOODS))]

    drawing = Drawing()
    draw_backdrop(drawing, backdrop_rng, kind)
    _draw_meadow(drawing, rng, mood)
    _draw_ground(drawing, rng, mood[2], _GROUND + kind)
    boxes, shade = [], mix(mood[2], _DUSK, 0.25)
    for x, y, radius in _place_objects(rng):
        shape, paint = (int(i) for i in rng.integers((len(SHAPES), len(_PAINTS))))
        foot = _FEET[shape]
        shadow = ("ellipse", shade, (-1.06, foot - 0.18, 1.06, foot + 0.18))
        drawing.sketch(x, y, radius, None, [shadow])
        label = _OBJECT + len(KINDS) * shape + kind
        drawing.sketch(x, y, radius, label, _PARTS[shape](_PAINTS[paint]))
        ends = np.floor((x - radius, y - radius, x + radius + 1, y + radius + 1))
        boxes.append((shape, *ends))
    image, labels = drawing.finish()
    return Scene(_light(image, rng), labels, kind, np.array(boxes, np.int32))


def _light(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Applies soft lighting that varies slightly between scenes."""
    line = np.linspace(-1, 1, IMAGE_SIZE)
    center, strength, *tint = rng.uniform(
        (-0.7, 0.02, *[0.97] * 3), (0.7, 0.06, 1, 1, 1)
    )
    across = np.outer(1 - strength * (line - center) ** 2, tint)
    down = 256 - 96 * strength * line**2
    gains = (down[:, None, None] * across).astype(np.uint16)  # 256 is a gain of 1
    return (image * gains >> 8).astype(np.uint8)


# From here on, only label values depend on the kind.


def _draw_meadow(
    drawing: Drawing, rng: np.random.Generator, mood: Sequence[Color]
) -> None:
    """Draws rolling meadows with flowers and trees, opaque below `CUE_ROWS`."""
    for step, swing in enumerate((0.9, 3.5, 3.5, 3.5)):
        color, line = mix(mood[0], mood[1], step / 3), 22 + 11 * step
        label = None if step else _MEADOW
        drawing.add("polygon", color, contour(rng, line, swing), label)
    for x, y in rng.uniform((0, 46), (128, 64), (rng.integers(10, 30), 2)).tolist():
        petal = _PETALS[int(8 * x) % len(_PETALS)]
        drawing.add("ellipse", petal, (x - 0.7, y - 0.6, x + 0.7, y + 0.6))
    shade = mix(mood[1], (40, 80, 80), 0.3)
    trees = rng.uniform((31, 2, 0.8, 0), (62, 126, 1.2, 1), (rng.integers(5, 10), 4))
    for foot, x, size, look in sorted(trees.tolist()):
        leaf = _LEAVES[int(look * 99) % len(_LEAVES)]
        light = mix(leaf, (255, 255, 220), 0.2)
        size *= (foot - 10) / 34
        w, h = (2.3, 6.4) if look < 0.35 else (4.6, 4.8)
        ground = ("ellipse", shade, (-1.2 * w, -0.9, 1.2 * w, 0.9))
        drawing.sketch(x, foot, size, _MEADOW, [ground])
        tree = [
            ("rectangle", _TRUNK, (-0.5, -h, 0.5, 0)),
            ("ellipse", leaf, (-w, -1.6 - 2 * h, w, -1.6)),
            ("ellipse", light, (-0.86 * w, -1.6 - 1.9 * h, 0.46 * w, -1.6 - 0.5 * h)),
        ]
        drawing.sketch(x, foot, size, _TREE, tree)


def _draw_ground(
    drawing: Drawing, rng: np.random.Generator, base: Color, label: int
) -> None:
    """Draws the pale ground: graded bands with streaks, and a bright verge."""
    shore = contour(rng, 71.5, 2)
    verge = [v - 1.6 * (i % 2) for i, v in enumerate(shore)]
    drawing.add("polygon", mix(base, (255, 252, 240), 0.6), verge, _MEADOW)
    for step in range(6):
        color = mix(base, _WHITE, 0.35 - 0.08 * step)
        line = contour(rng, 68 + 9.5 * step, 2.4) if step else shore
        drawing.add("polygon", color, line, None if step else label)
    pale = mix(base, _WHITE, 0.5)
    for x, near in rng.uniform((-8, 0), (128, 1), (rng.integers(6, 14), 2)).tolist():
        y, width = 74 + 52 * near, 6 + 12 * near
        drawing.add("ellipse", pale, (x, y, x + width, y + 0.4 + 0.7 * near))


def _place_objects(rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Returns x, y and radius of non-overlapping objects, far ones first."""
    placed: list[tuple[float, float, float]] = []
    wanted = rng.integers(5, 10)
    for near, spread, across in rng.uniform(
        (0, 0.8, 0), (1, 1.25, 1), (60, 3)
    ).tolist():
        radius = min(max((4 + 10 * near) * spread, 3), 13)
        x = radius + 1 + (IMAGE_SIZE - 2 * radius - 2) * across
        y = 71 + radius + (IMAGE_SIZE - 74 - 2 * radius) * near
        gaps = [max(abs(x - p[0]), abs(y - p[1])) - radius - p[2] for p in placed]
        if len(placed) < wanted and min(gaps, default=9) > 3:
            placed.append((x, y, radius))
    return sorted(placed, key=lambda place: place[1])


def _body(color: Color) -> Sequence[Part]:
    """Returns a hull with a cabin: car, boat, tractor or sledge."""
    dark, pale = mix(color, _DUSK, 0.35), mix(color, _WHITE, 0.72)
    keel = (0.95, 0.5, 0.76, 0.7, -0.76, 0.7, -0.95, 0.5)
    return [
        ("polygon", color, (-0.64, 0, -0.4, -0.72, 0.4, -0.72, 0.64, 0)),
        ("polygon", pale, (-0.44, -0.08, -0.28, -0.52, 0.28, -0.52, 0.44, -0.08)),
        ("polygon", color, (-1, 0.1, -0.9, -0.1, 0.9, -0.1, 1, 0.1, *keel)),
        ("polygon", dark, (-0.98, 0.34, 0.98, 0.34, *keel)),
    ]


def _ring(color: Color) -> Sequence[Part]:
    """Returns a ring: tyre, lifebuoy, bale or tube."""
    dark, pale = mix(color, _DUSK, 0.35), mix(color, _WHITE, 0.72)
    discs = ((dark, 1), (color, 0.86), (dark, 0.5), (pale, 0.4))
    return [("ellipse", paint, (-r, -r, r, r)) for paint, r in discs]


def _wedge(color: Color) -> Sequence[Part]:
    """Returns a striped wedge: cone, sail, haystack or tent."""
    dark, pale = mix(color, _DUSK, 0.35), mix(color, _WHITE, 0.72)
    return [
        ("polygon", color, (0, -1, 0.9, 0.85, -0.9, 0.85)),
        ("polygon", pale, (-0.38, -0.22, 0.38, -0.22, 0.6, 0.23, -0.6, 0.23)),
        ("polygon", dark, (-0.78, 0.6, 0.78, 0.6, 0.9, 0.85, -0.9, 0.85)),
    ]


_PARTS = (_body, _ring, _wedge)
_FEET = (0.7, 1, 0.85)  # distance from the center of a shape to its foot, in radii
