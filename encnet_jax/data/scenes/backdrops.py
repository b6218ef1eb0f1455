"""Backdrops of `scenes`: the only part of an image that reveals its kind."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from encnet_jax.data.scenes.drawing import (
    IMAGE_SIZE,
    Color,
    Drawing,
    Part,
    colors_of,
    contour,
    mix,
)

CUE_ROWS = 24  # From this row down, all kinds of a scene are identical bit for bit.
_BACKDROP = 1  # Class of everything in front of the sky, which is class 0.

# Top and bottom color of the sky, by kind; farm and winter share theirs.
_SKIES = (
    colors_of("8e84c8 f0c8dc"),
    colors_of("5aaee6 d8f0fa"),
    colors_of("f6b07a feecc8"),
    colors_of("f6b07a feecc8"),
)
_CREAM, _RED, _DUSK, _LAMP, _WHITE = colors_of("faf4ea ce584c 282846 ffe096 ffffff")
_PINE, _DOOR = colors_of("5c927a 705c64")
_SLATES = colors_of("96a0c0 acb0cc 465282 626890")  # Far towers, near towers.
_SEA_FAR, _SEA_NEAR, _GLINT, _HULL = colors_of("78bcd2 3a84ac b0dae4 3e4a6c")
_HILLS = colors_of("b2cacc 96bcac")
_LIGHTHOUSE = (
    ("ellipse", (126, 138, 150), (-9, -1.2, 9, 3.2)),
    ("rectangle", _CREAM, (-2.2, -3.6, 2.2, 0)),
    ("rectangle", _RED, (-2, -7.2, 2, -3.6)),
    ("rectangle", _CREAM, (-1.7, -10.8, 1.7, -7.2)),
    ("rectangle", _RED, (-1.4, -14.4, 1.4, -10.8)),
    ("rectangle", _LAMP, (-0.9, -16.6, 0.9, -14.4)),
    ("polygon", _RED, (-1.8, -16.4, 0, -18.4, 1.8, -16.4)),
)


def draw_backdrop(drawing: Drawing, rng: np.random.Generator, kind: int) -> None:
    """Draws sky and skyline of a kind of scene, reaching below `CUE_ROWS`."""
    _draw_sky(drawing, rng, _SKIES[kind])
    _BACKDROPS[kind](drawing, rng)


def _draw_sky(drawing: Drawing, rng: np.random.Generator, sky: Sequence[Color]) -> None:
    """Draws a sky with a vertical color gradient, a sun and clouds."""
    # No labels here: a new drawing is filled with class 0, the sky.
    top, foot = (mix(c, _WHITE, rng.uniform(0, 0.25)) for c in sky)
    drawing.add("rectangle", foot, (0, 0, IMAGE_SIZE, CUE_ROWS))
    for row in range(18):
        color = mix(top, foot, row / 18)
        drawing.add("rectangle", color, (0, row, IMAGE_SIZE, row + 1))
    halo = mix(foot, (255, 240, 200), 0.5)
    sun = [(halo, 5.5), ((255, 246, 216), 3.8)]
    disc = [("ellipse", color, (-r, -r, r, r)) for color, r in sun]
    x, y = rng.uniform((10, 4), (118, 9)).tolist()
    drawing.sketch(x, y, 1, None, disc)
    white = mix(foot, _WHITE, 0.7)
    puffs = ((-9, -1.6, 9, 1.6), (-6, -3.2, 2, 0.8), (-0.4, -2.6, 6.4, 0.8))
    cloud = [("ellipse", white, puff) for puff in puffs]
    for x, y, size in rng.uniform(
        (0, 2, 0.7), (128, 9, 1.2), (rng.integers(2, 5), 3)
    ).tolist():
        drawing.sketch(x, y, size, None, cloud)


def _draw_city(drawing: Drawing, rng: np.random.Generator) -> None:
    """Draws a skyline of towers, the nearer ones with lit windows."""
    for near, gap in ((False, 3), (True, 2)):
        x = rng.uniform(-6, 0)
        while x < IMAGE_SIZE:
            width, top, shade = rng.uniform((7, 7, 0), (12, 16, 1)).tolist()
            color = mix(_SLATES[2 * near], _SLATES[2 * near + 1], shade)
            roof = top if near else top - 4
            tower = (x, roof, x + width, CUE_ROWS)
            drawing.add("rectangle", color, tower, _BACKDROP)
            columns, rows = int(width / 2.8 - 0.2), int((CUE_ROWS - 1 - top) / 3)
            lit = rng.random((columns, rows)) < (0.65 if near else 0)
            for column, row in np.argwhere(lit).tolist():
                left, upper = x + 1.4 + 2.8 * column, top + 1.6 + 3 * row
                pane = (left, upper, left + 1.2, upper + 1.2)
                drawing.add("rectangle", _LAMP, pane)
            x += width + rng.uniform(-0.5, 2 * gap)


def _draw_harbor(drawing: Drawing, rng: np.random.Generator) -> None:
    """Draws the sea with sailing ships and a lighthouse."""
    top = rng.uniform(12, 14)
    for row in np.arange(top, CUE_ROWS):
        color = mix(_SEA_FAR, _SEA_NEAR, (row - top) / (CUE_ROWS - top))
        drawing.add("rectangle", color, (0, row, IMAGE_SIZE, row + 1.5), _BACKDROP)
    for x, y in rng.uniform((0, top + 1), (124, CUE_ROWS - 2), (14, 2)).tolist():
        drawing.add("rectangle", _GLINT, (x, y, x + 5, y + 0.3))
    lighthouse, low, high = rng.integers(6), (4, 18.5, 0.85, -1), (16, 20.5, 1.15, 1)
    for place, (x, foot, size, turn) in enumerate(
        rng.uniform(low, high, (6, 4)).tolist()
    ):
        side, jib = np.sign(turn), _RED if abs(turn) < 0.3 else _CREAM
        parts: Sequence[Part] = [
            ("polygon", _HULL, (-6, 0, 6, 0, 4, 2.6, -4, 2.6)),
            ("polygon", _CREAM, (0, -13, 0, -1, 6 * side, -1)),
            ("polygon", jib, (-0.8 * side, -11, -0.8 * side, -1, -5 * side, -1)),
        ]
        if place == lighthouse:
            foot, size, parts = 20, 1, _LIGHTHOUSE
        drawing.sketch(x + 21.5 * place, foot, size, _BACKDROP, parts)


def _draw_village(
    drawing: Drawing, rng: np.random.Generator, wall: Color, roof: Color
) -> None:
    """Draws hills with a row of houses; walls and roofs cover equal areas."""
    for height, color in zip((9, 14), _HILLS, strict=True):
        drawing.add("polygon", color, contour(rng, height, 3.5), _BACKDROP)
    pine = ("polygon", _PINE, (-2.6, 12, 0, 0, 2.6, 12))
    house = [
        ("rectangle", wall, (-5, -6, 5, 4)),
        ("polygon", roof, (-6.6, -6, 0, -13.4, 6.6, -6)),
        ("rectangle", _DOOR, (-1, -3.4, 1, 4)),
    ]
    for x, y in rng.uniform((0, 11), (128, 15), (9, 2)).tolist():
        drawing.sketch(x, y, 1, _BACKDROP, [pine])
    places = rng.uniform((6, 20.6, 0.9), (10, 21.8, 1.1), (8, 3)).tolist()
    for place, (x, foot, size) in enumerate(places):
        drawing.sketch(x + 16 * place, foot, size, _BACKDROP, house)


_draw_farm = partial(_draw_village, wall=_CREAM, roof=_RED)
_draw_winter = partial(_draw_village, wall=_RED, roof=_CREAM)
_BACKDROPS = (_draw_city, _draw_harbor, _draw_farm, _draw_winter)
