"""Label maps as pictures: palettes, overlays with a legend, panels."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from encnet_jax.data.classes import IGNORE_LABEL

Color = tuple[int, int, int]
_GAP = 4  # pixels between the pictures of a panel


def palette_image(labels: np.ndarray, colors: Sequence[Color]) -> Image.Image:
    """Returns a palette image whose indices are the labels.

    Args:
        labels: Integers (h, w), 0-255; `IGNORE_LABEL` is black.
        colors: One RGB triple a class.
    """
    image = Image.fromarray(labels.astype(np.uint8), "L")
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    image.putpalette(table.ravel().tolist())
    return image


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    colors: Sequence[Color],
    class_names: Sequence[str],
    *,
    opacity: float = 0.55,
    legend: bool = True,
) -> Image.Image:
    """Returns the image under its colours, with a legend of the classes in it.

    Args:
        image: uint8 (h, w, 3).
        labels: Integers (h, w); where `IGNORE_LABEL` the image shows unchanged.
        colors: One RGB triple a class.
        class_names: One name a class.
        opacity: Of the colours, 0 to 1.
        legend: Add names and shares of the classes, largest first, on the right.
    """
    painted = np.asarray(palette_image(labels, colors).convert("RGB"))
    mixed = image * (1 - opacity) + painted * opacity
    mixed = _with_borders(mixed.round().astype(np.uint8), labels)
    mixed = np.where((labels == IGNORE_LABEL)[..., None], image, mixed)
    picture = Image.fromarray(mixed)
    return _with_legend(picture, labels, colors, class_names) if legend else picture


def panel(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], width: int = 320
) -> Image.Image:
    """Returns pictures in a grid under the titles of the columns.

    Args:
        rows: Rows of as many pictures as there are titles.
        titles: Of the columns.
        width: Of each picture in pixels; they are scaled to it by whole pixels.
    """
    font = _font(16)
    scaled = [[_fit(picture, width) for picture in row] for row in rows]
    heights = [max(picture.height for picture in row) for row in scaled]
    top = 26
    size = (
        len(titles) * (width + _GAP) + _GAP,
        top + sum(heights) + _GAP * len(heights),
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        left = _GAP + column * (width + _GAP)
        draw.text((left + width // 2, 3), title, "black", font, anchor="ma")
    y = top
    for row, height in zip(scaled, heights):
        for column, picture in enumerate(row):
            canvas.paste(picture, (_GAP + column * (width + _GAP), y))
        y += height + _GAP
    return canvas


def prediction_panel(
    examples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    colors: Sequence[Color],
) -> Image.Image:
    """Returns a panel of images, true labels and predictions, one row each."""
    rows = [
        [Image.fromarray(image)]
        + [palette_image(ids, colors).convert("RGB") for ids in (labels, predictions)]
        for image, labels, predictions in examples
    ]
    return panel(rows, ("image", "label", "prediction"))


def _with_borders(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Darkens the pixels where one class meets another."""
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return np.where(edge[..., None], picture // 2, picture)


def _with_legend(
    picture: Image.Image,
    labels: np.ndarray,
    colors: Sequence[Color],
    class_names: Sequence[str],
) -> Image.Image:
    counts = np.bincount(labels.ravel(), minlength=256)[: len(class_names)]
    present = [k for k in np.argsort(-counts) if counts[k]]
    scale = max(1, round(picture.height / 400))
    font = _font(13 * scale)
    line = 20 * scale
    lines = [f"{class_names[k]}  {counts[k] / labels.size:.0%}" for k in present]
    width = int(max((font.getlength(text) for text in lines), default=0)) + 2 * line
    height = max(picture.height, line * (len(present) + 1))
    canvas = Image.new("RGB", (picture.width + width, height), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (k, text) in enumerate(zip(present, lines)):
        x, y = picture.width + line // 2, line // 2 + row * line
        box = (x, y + line // 8, x + line // 2, y + 5 * line // 8)
        draw.rectangle(box, colors[k], "black")
        draw.text((x + 3 * line // 4, y), text, "black", font)
    return canvas


def _fit(picture: Image.Image, width: int) -> Image.Image:
    height = max(1, round(picture.height * width / picture.width))
    return picture.resize((width, height), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
