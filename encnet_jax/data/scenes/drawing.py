"""Drawing of `scenes`: shapes are painted and labeled together."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from encnet_jax.data.class_table import IGNORE_LABEL

IMAGE_SIZE = 128
_SCALE = 2  # supersampling factor, for smooth edges
_CONTOUR_X = np.linspace(-1, IMAGE_SIZE + 1, 27)

Color = tuple[int, int, int]
Part = tuple[str, Color, Sequence[float]]  # form, color, points; see `Drawing.add`


def colors_of(text: str) -> tuple[Color, ...]:
    """Parses RGB colors in hexadecimal notation, separated by spaces."""
    codes = (bytes.fromhex(code) for code in text.split())
    return tuple((red, green, blue) for red, green, blue in codes)


class Drawing:
    """An image and its label map, drawn together in image coordinates."""

    def __init__(self) -> None:
        size = (IMAGE_SIZE * _SCALE, IMAGE_SIZE * _SCALE)
        self._image, self._labels = Image.new("RGB", size), Image.new("L", size)
        self._paint, self._mark = map(ImageDraw.Draw, (self._image, self._labels))

    def add(
        self,
        form: str,
        color: Color,
        points: Sequence[float],
        label: int | None = None,
    ) -> None:
        """Fills a form; without a label, its pixels keep theirs.

        Args:
            form: "polygon", or "rectangle" or "ellipse" given by two opposite corners.
            color: RGB 0-255.
            points: x, y, x, y, ... in pixels.
            label: Class index.
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
        parts: Sequence[Part],
    ) -> None:
        """Adds parts that are defined around (0, 0), scaled by `size` and moved."""
        for form, color, points in parts:
            moved = [(y if i % 2 else x) + size * v for i, v in enumerate(points)]
            self.add(form, color, moved, label)

    def finish(self) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """Returns image and labels; pixels that mix classes are void."""
        image, fine = np.asarray(self._image.reduce(_SCALE)), np.asarray(self._labels)
        cells = [
            fine[i % _SCALE :: _SCALE, i // _SCALE :: _SCALE] for i in range(_SCALE**2)
        ]
        mixed = np.logical_or.reduce([cell != cells[0] for cell in cells[1:]])
        return image, np.where(mixed, np.uint8(IGNORE_LABEL), cells[0])


def mix(a: Color, b: Color, share: float) -> Color:
    """Returns the color `share` (0 to 1) of the way from `a` to `b`."""
    red, green, blue = (int(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def contour(rng: np.random.Generator, height: float, swing: float) -> list[float]:
    """Returns a polygon below a random smooth line, down to the lower edge."""
    phases, waves = rng.random((2, 2)) * ((2 * np.pi,), (1.7,)) + ((0,), (0.5,))
    angles = 2 * np.pi / IMAGE_SIZE * waves * _CONTOUR_X[:, None] + phases
    y = height + swing * (np.sin(angles) @ (0.65, 0.35))
    line = np.stack([_CONTOUR_X, y], 1).ravel().tolist()
    return [*line, IMAGE_SIZE + 1, IMAGE_SIZE, -1, IMAGE_SIZE]
