"""Label maps as pictures: palettes, overlays with a legend, panels, contact sheets."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from encnet_jax.data.dataset_info import IGNORE_LABEL
from encnet_jax.data.datasets import Example

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
    """Returns the image under its colors, with a legend of the classes in it.

    Args:
        image: uint8 (h, w, 3).
        labels: Integers (h, w); where `IGNORE_LABEL` the image shows unchanged.
        colors: One RGB triple a class.
        class_names: One name a class.
        opacity: Of the colors, 0 to 1.
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


def class_panel(
    examples: Sequence[tuple[np.ndarray, int, int]],
    class_names: Sequence[str],
    columns: int = 8,
) -> Image.Image:
    """Returns images above the classes predicted for them, wrong ones in red.

    Args:
        examples: Images uint8 (h, w, 3), their classes, and what was predicted.
        class_names: One name a class.
        columns: Images in a row.
    """
    side, line = 96, 20
    rows = -(-len(examples) // columns)
    size = (columns * (side + _GAP) + _GAP, rows * (side + line + _GAP) + _GAP)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), _font(13)
    for place, (image, label, predicted) in enumerate(examples):
        left = _GAP + place % columns * (side + _GAP)
        top = _GAP + place // columns * (side + line + _GAP)
        picture = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
        canvas.paste(picture, (left, top))
        color = "black" if label == predicted else "#c00000"
        middle = left + side // 2
        draw.text(
            (middle, top + side + 2), class_names[predicted], color, font, anchor="ma"
        )
    return canvas


def contact_sheet(
    examples: Sequence[Example],
    colors: Sequence[Color],
    class_names: Sequence[str],
    *,
    columns: int = 3,
    width: int = 280,
) -> Image.Image:
    """Returns examples side by side: image, labels over it, and the classes in it.

    Args:
        examples: At least one.
        colors: One RGB triple a class.
        class_names: One name a class.
        columns: Examples in a row.
        width: Of the longer side of each picture in pixels.
    """
    cells = [_cell(example, colors, class_names, width) for example in examples]
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + 3 * _GAP for row in rows]
    step = cells[0].width + 5 * _GAP
    canvas = Image.new("RGB", (columns * step, sum(heights) + 2 * _GAP), "white")
    y = 2 * _GAP
    for row, height in zip(rows, heights):
        for column, cell in enumerate(row):
            canvas.paste(cell, (column * step + 5 * _GAP // 2, y))
        y += height
    return canvas


def _cell(
    example: Example, colors: Sequence[Color], class_names: Sequence[str], width: int
) -> Image.Image:
    """Returns an example of a contact sheet, `2 * width + _GAP` wide."""
    height, length = example.labels.shape
    scale = width / max(height, length)
    size = max(1, round(length * scale)), max(1, round(height * scale))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    image = Image.fromarray(example.image).resize(size, smooth)
    ids = Image.fromarray(example.labels).resize(size, Image.Resampling.NEAREST)
    painted = overlay(
        np.asarray(image), np.asarray(ids), colors, class_names, legend=False
    )
    legend = _flowing_legend(example.labels, colors, class_names, 2 * width + _GAP)
    top = 20
    canvas = Image.new("RGB", (legend.width, top + size[1] + legend.height), "white")
    title = f"{example.name}   {length}x{height}"
    ImageDraw.Draw(canvas).text((0, 2), title, "black", _font(13))
    canvas.paste(image, (0, top))
    canvas.paste(painted, (size[0] + _GAP, top))
    canvas.paste(legend, (0, top + size[1]))
    return canvas


def _flowing_legend(
    labels: np.ndarray, colors: Sequence[Color], class_names: Sequence[str], width: int
) -> Image.Image:
    """Returns names and shares of the classes in lines of a width, void the last."""
    counts = np.bincount(labels.ravel(), minlength=256)
    present = [k for k in np.argsort(-counts[: len(class_names)]) if counts[k]]
    entries = [(class_names[k], colors[k], counts[k]) for k in present]
    if counts[IGNORE_LABEL]:
        entries.append(("void", (255, 255, 255), counts[IGNORE_LABEL]))
    font, line, box = _font(12), 17, 10
    places, x, y = [], 0, _GAP
    for name, color, count in entries:
        share = count / labels.size
        text = f"{name} {share:.0%}" if share >= 0.005 else f"{name} <1%"
        length = box + 4 + int(font.getlength(text)) + 12
        if x and x + length > width:
            x, y = 0, y + line
        places.append((x, y, text, color))
        x += length
    canvas = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(canvas)
    for x, y, text, color in places:
        draw.rectangle((x, y + 3, x + box, y + 3 + box), color, "black")
        draw.text((x + box + 4, y), text, "black", font)
    return canvas


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
