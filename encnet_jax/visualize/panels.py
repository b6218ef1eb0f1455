"""Grids of images: predictions beside labels, classified images, contact sheets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Example
from encnet_jax.data.result_file import save_result
from encnet_jax.files import whole_file
from encnet_jax.visualize.fonts import file_label
from encnet_jax.visualize.overlay import (
    Color,
    class_label,
    flowing_legend,
    overlay,
    palette_image,
)

_GAP = 4  # pixels between images


def panel(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], width: int = 320
) -> Image.Image:
    """Returns images in a grid below the titles of its columns.

    Args:
        rows: Rows of one image per title.
        titles: Titles of the columns.
        width: Width of each image in pixels, narrower if it would be more than three
            times as high; resized by nearest neighbor.
    """
    font = ImageFont.load_default(16)
    scaled = [[_fit(image, width) for image in row] for row in rows]
    heights = [max(image.height for image in row) for row in scaled]
    top = 26
    size = (
        len(titles) * (width + _GAP) + _GAP,
        top + sum(heights) + _GAP * len(heights),
    )
    result = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(result)
    for column, title in enumerate(titles):
        left = _GAP + column * (width + _GAP)
        draw.text((left + width // 2, 3), title, "black", font, anchor="ma")
    y = top
    for row, height in zip(scaled, heights):
        for column, image in enumerate(row):
            result.paste(image, (_GAP + column * (width + _GAP), y))
        y += height + _GAP
    return result


def prediction_panel(
    examples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    colors: Sequence[Color],
) -> Image.Image:
    """Returns a panel of images, true labels and predictions, one row per example."""
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
    """Returns images above their predicted classes, wrong ones in red.

    Args:
        examples: Images uint8 (h, w, 3), true and predicted classes.
        class_names: One name per class.
        columns: Images per row.
    """
    side, line = 96, 20
    rows = -(-len(examples) // columns)
    size = (columns * (side + _GAP) + _GAP, rows * (side + line + _GAP) + _GAP)
    result = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(result)
    for index, (image, label, predicted) in enumerate(examples):
        left = _GAP + index % columns * (side + _GAP)
        top = _GAP + index // columns * (side + line + _GAP)
        cell = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
        result.paste(cell, (left, top))
        color = "black" if label == predicted else "#c00000"
        name = class_label(class_names, predicted)
        middle = left + side // 2, top + side + 2
        draw.text(middle, name.text, color, name.font(13), anchor="ma")
    return result


def contact_sheet(
    examples: Sequence[Example],
    colors: Sequence[Color],
    class_names: Sequence[str],
    *,
    columns: int = 3,
    width: int = 280,
) -> Image.Image:
    """Returns a grid of examples: image, overlaid labels, and a legend.

    Args:
        examples: At least one.
        colors: One RGB triple per class.
        class_names: One name per class.
        columns: Examples per row.
        width: Longer side of each image in pixels.
    """
    cells = [_cell(example, colors, class_names, width) for example in examples]
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + 3 * _GAP for row in rows]
    step = cells[0].width + 5 * _GAP
    result = Image.new("RGB", (columns * step, sum(heights) + 2 * _GAP), "white")
    y = 2 * _GAP
    for row, height in zip(rows, heights):
        for column, cell in enumerate(row):
            result.paste(cell, (column * step + 5 * _GAP // 2, y))
        y += height
    return result


def save_contact_sheet(
    examples: Sequence[Example],
    info: DatasetInfo,
    path: Path,
    named: Path | None = None,
) -> None:
    """Writes a contact sheet that `result_file.result_source` recognizes.

    Images in classes are above the names of these, see `class_panel`.

    Args:
        examples: At least one, with images in RGB.
        info: Their classes.
        path: PNG to write.
        named: Where it will be moved to; by default it stays.
    """
    if info.task == "classification":
        classes = [(e.image, int(e.labels), int(e.labels)) for e in examples]
        sheet = class_panel(classes, info.class_names)
    else:
        sheet = contact_sheet(examples, info.colors, info.class_names)
    with whole_file(path) as file:
        save_result(sheet, file, named or path)


def _cell(
    example: Example, colors: Sequence[Color], class_names: Sequence[str], width: int
) -> Image.Image:
    """Returns one example of a contact sheet, `2 * width + _GAP` wide."""
    height, length = example.labels.shape
    scale = width / max(height, length)
    size = max(1, round(length * scale)), max(1, round(height * scale))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    image = Image.fromarray(example.image).resize(size, smooth)
    labels = Image.fromarray(example.labels).resize(size, Image.Resampling.NEAREST)
    overlaid = overlay(
        np.asarray(image), np.asarray(labels), colors, class_names, legend=False
    )
    legend = flowing_legend(example.labels, colors, class_names, 2 * width + _GAP)
    top = 20
    cell = Image.new("RGB", (legend.width, top + size[1] + legend.height), "white")
    title = file_label(f"{example.name}   {length}x{height}")
    ImageDraw.Draw(cell).text((0, 2), title.text, "black", title.font(13))
    cell.paste(image, (0, top))
    cell.paste(overlaid, (size[0] + _GAP, top))
    cell.paste(legend, (0, top + size[1]))
    return cell


def _fit(image: Image.Image, width: int) -> Image.Image:
    """Scales an image to a width; tall ones to a height of three times that."""
    scale = min(width / image.width, 3 * width / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST)
