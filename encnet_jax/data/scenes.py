"""Draws `scenes`, the embedded data set in which only the context decides.

Every picture shows a far backdrop (rows 0 to 23), a broad meadow, and a pale ground
with a few objects on it (row 66 and below). The backdrop alone tells the kind of
scene: a city, a harbour, a farm or a winter village. The ground and the objects look
exactly the same in all of them and yet bear other names: what is a car on a road is a
boat on water. At least 42 rows of meadow lie between the two, more than half the
receptive field of the demo's backbone, so a network without a view of the whole
picture can only guess.

City and harbour differ in colour and texture at large. Farm and winter village do not:
both show the same hills and houses in the same red and cream, once as red roofs on
cream walls and once as snow on the roofs of red walls, so that the mean colour is the
same and only the combination tells.

Nothing here needs TensorFlow; `builders/scenes.py` wraps it for TFDS.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

_Color = tuple[int, ...]
_Part = tuple[str, _Color, Sequence[float]]  # Form, colour, points: `_Canvas.add`.


def _colors(text: str) -> tuple[_Color, ...]:
    """Returns the RGB colours written in `text` as hexadecimal numbers."""
    return tuple(tuple(bytes.fromhex(code)) for code in text.split())


IMAGE_SIZE = 128
IGNORE_LABEL = 255
CUE_ROWS = 24  # Rows from here on are the same, bit for bit, in every kind of scene.
AMBIGUOUS_ROW = 66  # No pixel above this row bears a name that the kind decides.
SMALL_SIZE = 10  # Objects up to this many pixels across count as small.

KINDS = ("city", "harbour", "farm", "winter")
SHAPES = ("body", "ring", "wedge")
CLASS_NAMES = (
    *("sky", "backdrop", "meadow", "tree"),
    *("road", "water", "field", "snow"),  # The ground, by kind.
    *("car", "boat", "tractor", "sledge"),  # The body, by kind.
    *("tyre", "lifebuoy", "bale", "tube"),  # The ring, by kind.
    *("cone", "sail", "haystack", "tent"),  # The wedge, by kind.
)
COLORS = (
    *_colors("b7dcf0 7c8aaa 9ec97c 3e7c58 5c5e6e 3a7cbe debc6e eef2fa e23e48 163a78"),
    *_colors("965428 c454a8 7a243c 60cede ffde46 f6a0c8 ff842c 7e60cc 7c7a1e 009286"),
)
AMBIGUOUS = tuple(range(4, 20))

_BACKDROP, _MEADOW, _TREE, _GROUND, _OBJECT = 1, 2, 3, 4, 8
_SCALE = 2  # Drawn this much larger, then averaged: smooth edges.
_CONTOUR_X = np.linspace(-1, IMAGE_SIZE + 1, 27)

# A mood, whatever the kind: top of the sky, its foot, far and near meadow, ground.
_MOODS = (
    _colors("76b8de e8f2f0 b2d396 80b67a ccd9e6"),
    _colors("f6b28c feeed4 cdce8c 96b270 eddccc"),
    _colors("a09ed4 f8dee4 aacaaa 70a88a d8d0e8"),
    _colors("78c6c8 f0f6e4 beda92 7ab88c d2e2d8"),
)
_PAINTS = _colors("e85d4f f3b23e 2a8c8a 3a548a 925686 ee8254 629654 e27a92")
_LEAVES = _colors("549468 408062 74a45c 549468 ec9e5e e2bc60 eca8b4")
_PETALS = _colors("fffaeb ffde8c f6bec8")
_CREAM, _RED, _DUSK, _LAMP, _WHITE = _colors("faf4ea ce584c 282846 ffe096 ffffff")
_SLATES = _colors("96a0c0 acb0cc 465282 626890")  # Far towers, near towers.
_SEA_FAR, _SEA_NEAR, _GLINT, _HULL = _colors("78bcd2 3a84ac b0dae4 3e4a6c")
_HILLS = _colors("b2cacc 96bcac")
_PINE, _DOOR, _TRUNK = _colors("5c927a 705c64 7a5e54")
_LIGHTHOUSE = (
    ("ellipse", (126, 138, 150), (-9, -1.2, 9, 3.2)),
    ("rectangle", _CREAM, (-2.2, -3.6, 2.2, 0)),
    ("rectangle", _RED, (-2, -7.2, 2, -3.6)),
    ("rectangle", _CREAM, (-1.7, -10.8, 1.7, -7.2)),
    ("rectangle", _RED, (-1.4, -14.4, 1.4, -10.8)),
    ("rectangle", _LAMP, (-0.9, -16.6, 0.9, -14.4)),
    ("polygon", _RED, (-1.8, -16.4, 0, -18.4, 1.8, -16.4)),
)


class Scene(NamedTuple):
    """One picture.

    Attributes:
      image: uint8 [128, 128, 3], RGB 0-255.
      labels: uint8 [128, 128], class ids; 255 (void) where a pixel holds two classes.
      kind: index into `KINDS`.
      boxes: int32 [n, 5], one row an object: index into `SHAPES`, left, top, right and
        bottom in pixels (right and bottom excluded). Boxes do not overlap.
    """

    image: np.ndarray
    labels: np.ndarray
    kind: int
    boxes: np.ndarray


class _Canvas:
    """Draws the picture and its label map in one go, in picture coordinates."""

    def __init__(self) -> None:
        size = (IMAGE_SIZE * _SCALE, IMAGE_SIZE * _SCALE)
        self._image, self._labels = Image.new("RGB", size), Image.new("L", size)
        self._paint, self._mark = map(ImageDraw.Draw, (self._image, self._labels))

    def add(
        self,
        form: str,
        color: _Color,
        points: Sequence[float],
        label: int | None = None,
    ) -> None:
        """Fills a form; without a label the pixels keep the one they have.

        Args:
          form: "polygon", or "rectangle" or "ellipse" given by two opposite corners.
          color: RGB 0-255.
          points: x, y, x, y, ... in pixels.
          label: class id.
        """
        scaled = [value * _SCALE for value in points]
        getattr(self._paint, form)(scaled, fill=color)
        if label is not None:
            getattr(self._mark, form)(scaled, fill=label)

    def sketch(
        self,
        x: float,
        y: float,
        size: float,
        label: int | None,
        parts: Sequence[_Part],
    ) -> None:
        """Adds parts given around (0, 0), moved to (x, y) and `size` times as large."""
        for form, color, points in parts:
            moved = [(y if i % 2 else x) + size * v for i, v in enumerate(points)]
            self.add(form, color, moved, label)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and the labels, void where a pixel holds two classes."""
        image, fine = np.asarray(self._image.reduce(_SCALE)), np.asarray(self._labels)
        cells = [
            fine[i % _SCALE :: _SCALE, i // _SCALE :: _SCALE] for i in range(_SCALE**2)
        ]
        mixed = np.logical_or.reduce([cell != cells[0] for cell in cells[1:]])
        return image, np.where(mixed, np.uint8(IGNORE_LABEL), cells[0])


def draw(seed: int, index: int, *, kind: int | None = None) -> Scene:
    """Returns picture number `index` of the data set that `seed` stands for.

    Args:
      seed: the data set's seed, 0 or more.
      index: the picture's number, 0 or more.
      kind: index into `KINDS` to draw in place of the picture's own kind. The image
        then changes above row `CUE_ROWS` only, and the labels change there and in
        the names of the ground and the objects.

    Returns:
      The scene, a pure function of the arguments.

    Raises:
      ValueError: if `kind` is not an index into `KINDS`.
    """
    if kind is not None and kind not in range(len(KINDS)):
        raise ValueError(f"kind must be in 0..{len(KINDS) - 1}, got {kind}")
    # Two generators, so that nothing drawn for the backdrop can shift the rest.
    rng = np.random.default_rng((seed, index, 0))
    backdrop_rng = np.random.default_rng((seed, index, 1))
    own_kind = int(backdrop_rng.integers(len(KINDS)))
    kind = own_kind if kind is None else int(kind)
    mood = _MOODS[rng.integers(len(_MOODS))]

    canvas = _Canvas()
    _draw_sky(canvas, backdrop_rng, mood)
    _BACKDROPS[kind](canvas, backdrop_rng)
    _draw_meadow(canvas, rng, mood)
    _draw_ground(canvas, rng, mood[4], _GROUND + kind)
    boxes, shade = [], _mix(mood[4], _DUSK, 0.25)
    for x, y, radius in _place_objects(rng):
        shape, paint = (int(i) for i in rng.integers((len(SHAPES), len(_PAINTS))))
        foot = _FEET[shape]
        shadow = ("ellipse", shade, (-1.06, foot - 0.18, 1.06, foot + 0.18))
        canvas.sketch(x, y, radius, None, [shadow])
        label = _OBJECT + len(KINDS) * shape + kind
        canvas.sketch(x, y, radius, label, _PARTS[shape](_PAINTS[paint]))
        ends = np.floor((x - radius, y - radius, x + radius + 1, y + radius + 1))
        boxes.append((shape, *ends))
    image, labels = canvas.finish()
    return Scene(_light(image, rng), labels, kind, np.array(boxes, np.int32))


def _mix(a: _Color, b: _Color, share: float) -> _Color:
    """Returns the colour `share` (0 to 1) of the way from `a` to `b`."""
    return tuple(int(p + (q - p) * share) for p, q in zip(a, b, strict=True))


def _light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the image under a soft light that varies a little with the picture."""
    line = np.linspace(-1, 1, IMAGE_SIZE)
    centre, strength, *tint = rng.uniform(
        (-0.7, 0.02, *[0.97] * 3), (0.7, 0.06, 1, 1, 1)
    )
    across = np.outer(1 - strength * (line - centre) ** 2, tint)
    down = 256 - 96 * strength * line**2
    gains = (down[:, None, None] * across).astype(np.uint16)  # 256 leaves as it is.
    return (image * gains >> 8).astype(np.uint8)


def _contour(rng: np.random.Generator, height: float, swing: float) -> list[float]:
    """Returns the points of a gentle hill, closed along the picture's lower edge."""
    phases, waves = rng.random((2, 2)) * ((2 * np.pi,), (1.7,)) + ((0,), (0.5,))
    angles = 2 * np.pi / IMAGE_SIZE * waves * _CONTOUR_X[:, None] + phases
    y = height + swing * (np.sin(angles) @ (0.65, 0.35))
    line = np.stack([_CONTOUR_X, y], 1).ravel().tolist()
    return [*line, IMAGE_SIZE + 1, IMAGE_SIZE, -1, IMAGE_SIZE]


# The backdrop: from here to `_draw_meadow`, what is drawn may depend on the kind.


def _draw_sky(
    canvas: _Canvas, rng: np.random.Generator, mood: Sequence[_Color]
) -> None:
    """Draws the sky with a sun and clouds, the same for all kinds."""
    # No labels in this function: a fresh canvas holds class 0, the sky.
    canvas.add("rectangle", mood[1], (0, 0, IMAGE_SIZE, CUE_ROWS))
    for row in range(18):
        color = _mix(mood[0], mood[1], row / 18)
        canvas.add("rectangle", color, (0, row, IMAGE_SIZE, row + 1))
    halo = _mix(mood[1], (255, 240, 200), 0.5)
    sun = [(halo, 5.5), ((255, 246, 216), 3.8)]
    disc = [("ellipse", color, (-r, -r, r, r)) for color, r in sun]
    canvas.sketch(*rng.uniform((10, 4), (118, 9)), 1, None, disc)
    white = _mix(mood[1], _WHITE, 0.7)
    puffs = ((-9, -1.6, 9, 1.6), (-6, -3.2, 2, 0.8), (-0.4, -2.6, 6.4, 0.8))
    cloud = [("ellipse", white, puff) for puff in puffs]
    for place in rng.uniform(
        (0, 2, 0.7), (128, 9, 1.2), (rng.integers(2, 5), 3)
    ).tolist():
        canvas.sketch(*place, None, cloud)


def _draw_city(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Draws a skyline of towers, the nearer ones with lit windows."""
    for near, gap in ((False, 3), (True, 2)):
        x = rng.uniform(-6, 0)
        while x < IMAGE_SIZE:
            width, top, shade = rng.uniform((7, 7, 0), (12, 16, 1)).tolist()
            color = _mix(_SLATES[2 * near], _SLATES[2 * near + 1], shade)
            roof = top if near else top - 4
            tower = (x, roof, x + width, CUE_ROWS)
            canvas.add("rectangle", color, tower, _BACKDROP)
            columns, rows = int(width / 2.8 - 0.2), int((CUE_ROWS - 1 - top) / 3)
            lit = rng.random((columns, rows)) < (0.65 if near else 0)
            for column, row in np.argwhere(lit).tolist():
                left, upper = x + 1.4 + 2.8 * column, top + 1.6 + 3 * row
                pane = (left, upper, left + 1.2, upper + 1.2)
                canvas.add("rectangle", _LAMP, pane)
            x += width + rng.uniform(-0.5, 2 * gap)


def _draw_harbour(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Draws the sea with sailing ships and a lighthouse."""
    top = rng.uniform(12, 14)
    for row in np.arange(top, CUE_ROWS):
        color = _mix(_SEA_FAR, _SEA_NEAR, (row - top) / (CUE_ROWS - top))
        canvas.add("rectangle", color, (0, row, IMAGE_SIZE, row + 1.5), _BACKDROP)
    for x, y in rng.uniform((0, top + 1), (124, CUE_ROWS - 2), (14, 2)).tolist():
        canvas.add("rectangle", _GLINT, (x, y, x + 5, y + 0.3))
    lighthouse, low, high = rng.integers(6), (4, 18.5, 0.85, -1), (16, 20.5, 1.15, 1)
    for place, (x, foot, size, turn) in enumerate(
        rng.uniform(low, high, (6, 4)).tolist()
    ):
        side, jib = np.sign(turn), _RED if abs(turn) < 0.3 else _CREAM
        parts = [
            ("polygon", _HULL, (-6, 0, 6, 0, 4, 2.6, -4, 2.6)),
            ("polygon", _CREAM, (0, -13, 0, -1, 6 * side, -1)),
            ("polygon", jib, (-0.8 * side, -11, -0.8 * side, -1, -5 * side, -1)),
        ]
        if place == lighthouse:
            foot, size, parts = 20, 1, _LIGHTHOUSE
        canvas.sketch(x + 21.5 * place, foot, size, _BACKDROP, parts)


def _draw_village(
    canvas: _Canvas, rng: np.random.Generator, wall: _Color, roof: _Color
) -> None:
    """Draws hills with a row of houses, as much of wall to be seen as of roof."""
    for height, color in zip((9, 14), _HILLS, strict=True):
        canvas.add("polygon", color, _contour(rng, height, 3.5), _BACKDROP)
    pine = ("polygon", _PINE, (-2.6, 12, 0, 0, 2.6, 12))
    house = [
        ("rectangle", wall, (-5, -6, 5, 4)),
        ("polygon", roof, (-6.6, -6, 0, -13.4, 6.6, -6)),
        ("rectangle", _DOOR, (-1, -3.4, 1, 4)),
    ]
    for x, y in rng.uniform((0, 11), (128, 15), (9, 2)).tolist():
        canvas.sketch(x, y, 1, _BACKDROP, [pine])
    places = rng.uniform((6, 20.6, 0.9), (10, 21.8, 1.1), (8, 3)).tolist()
    for place, (x, foot, size) in enumerate(places):
        canvas.sketch(x + 16 * place, foot, size, _BACKDROP, house)


_draw_farm = partial(_draw_village, wall=_CREAM, roof=_RED)
_draw_winter = partial(_draw_village, wall=_RED, roof=_CREAM)
_BACKDROPS = (_draw_city, _draw_harbour, _draw_farm, _draw_winter)


# From here on only label values depend on the kind.


def _draw_meadow(
    canvas: _Canvas, rng: np.random.Generator, mood: Sequence[_Color]
) -> None:
    """Draws rolling meadows with flowers and trees, opaque from `CUE_ROWS` down."""
    for step, swing in enumerate((0.9, 3.5, 3.5, 3.5)):
        color, line = _mix(mood[2], mood[3], step / 3), 22 + 11 * step
        label = None if step else _MEADOW
        canvas.add("polygon", color, _contour(rng, line, swing), label)
    for x, y in rng.uniform((0, 46), (128, 64), (rng.integers(10, 30), 2)).tolist():
        petal = _PETALS[int(8 * x) % len(_PETALS)]
        canvas.add("ellipse", petal, (x - 0.7, y - 0.6, x + 0.7, y + 0.6))
    shade = _mix(mood[3], (40, 80, 80), 0.3)
    trees = rng.uniform((31, 2, 0.8, 0), (62, 126, 1.2, 1), (rng.integers(5, 10), 4))
    for foot, x, size, look in sorted(trees.tolist()):
        leaf = _LEAVES[int(look * 99) % len(_LEAVES)]
        light = _mix(leaf, (255, 255, 220), 0.2)
        size *= (foot - 10) / 34
        w, h = (2.3, 6.4) if look < 0.35 else (4.6, 4.8)
        ground = ("ellipse", shade, (-1.2 * w, -0.9, 1.2 * w, 0.9))
        canvas.sketch(x, foot, size, _MEADOW, [ground])
        tree = [
            ("rectangle", _TRUNK, (-0.5, -h, 0.5, 0)),
            ("ellipse", leaf, (-w, -1.6 - 2 * h, w, -1.6)),
            ("ellipse", light, (-0.86 * w, -1.6 - 1.9 * h, 0.46 * w, -1.6 - 0.5 * h)),
        ]
        canvas.sketch(x, foot, size, _TREE, tree)


def _draw_ground(
    canvas: _Canvas, rng: np.random.Generator, base: _Color, label: int
) -> None:
    """Draws the pale ground: softly graded bands with streaks, and a bright verge."""
    shore = _contour(rng, 68.5, 2)
    verge = [v - 1.6 * (i % 2) for i, v in enumerate(shore)]
    canvas.add("polygon", _mix(base, (255, 252, 240), 0.6), verge, _MEADOW)
    for step in range(6):
        color = _mix(base, _WHITE, 0.35 - 0.08 * step)
        line = _contour(rng, 68 + 9.5 * step, 2.4) if step else shore
        canvas.add("polygon", color, line, None if step else label)
    pale = _mix(base, _WHITE, 0.5)
    for x, near in rng.uniform((-8, 0), (128, 1), (rng.integers(6, 14), 2)).tolist():
        y, width = 74 + 52 * near, 6 + 12 * near
        canvas.add("ellipse", pale, (x, y, x + width, y + 0.4 + 0.7 * near))


def _place_objects(rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Returns x, y and radius of objects that keep apart, the far ones first."""
    placed: list[tuple[float, float, float]] = []
    wanted = rng.integers(3, 6)
    for near, spread, across in rng.uniform(
        (0, 0.8, 0), (1, 1.25, 1), (30, 3)
    ).tolist():
        radius = min(max((3 + 10.5 * near) * spread, 3), 13)
        x = radius + 1 + (IMAGE_SIZE - 2 * radius - 2) * across
        y = 71 + radius + (IMAGE_SIZE - 74 - 2 * radius) * near
        gaps = [max(abs(x - p[0]), abs(y - p[1])) - radius - p[2] for p in placed]
        if len(placed) < wanted and min(gaps, default=9) > 3:
            placed.append((x, y, radius))
    return sorted(placed, key=lambda place: place[1])


def _body(color: _Color) -> Sequence[_Part]:
    """Returns a hull with a cabin: car, boat, tractor or sledge."""
    dark, pale = _mix(color, _DUSK, 0.35), _mix(color, _WHITE, 0.72)
    keel = (0.95, 0.5, 0.76, 0.7, -0.76, 0.7, -0.95, 0.5)
    return [
        ("polygon", color, (-0.64, 0, -0.4, -0.72, 0.4, -0.72, 0.64, 0)),
        ("polygon", pale, (-0.44, -0.08, -0.28, -0.52, 0.28, -0.52, 0.44, -0.08)),
        ("polygon", color, (-1, 0.1, -0.9, -0.1, 0.9, -0.1, 1, 0.1, *keel)),
        ("polygon", dark, (-0.98, 0.34, 0.98, 0.34, *keel)),
    ]


def _ring(color: _Color) -> Sequence[_Part]:
    """Returns a ring: tyre, lifebuoy, bale or tube."""
    dark, pale = _mix(color, _DUSK, 0.35), _mix(color, _WHITE, 0.72)
    discs = ((dark, 1), (color, 0.86), (dark, 0.5), (pale, 0.4))
    return [("ellipse", paint, (-r, -r, r, r)) for paint, r in discs]


def _wedge(color: _Color) -> Sequence[_Part]:
    """Returns a striped wedge: cone, sail, haystack or tent."""
    dark, pale = _mix(color, _DUSK, 0.35), _mix(color, _WHITE, 0.72)
    return [
        ("polygon", color, (0, -1, 0.9, 0.85, -0.9, 0.85)),
        ("polygon", pale, (-0.38, -0.22, 0.38, -0.22, 0.6, 0.23, -0.6, 0.23)),
        ("polygon", dark, (-0.78, 0.6, 0.78, 0.6, 0.9, 0.85, -0.9, 0.85)),
    ]


_PARTS = (_body, _ring, _wedge)
_FEET = (0.7, 1, 0.85)  # How far below its centre a shape stands, in radii.
