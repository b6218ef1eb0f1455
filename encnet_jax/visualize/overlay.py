"""Label maps as images: palette images, overlays, legends."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.label_map import published_labels
from encnet_jax.visualize.fonts import Label, drawable_label

Color = tuple[int, int, int]


def palette_image(
    labels: Integer[np.ndarray, "h w"], colors: Sequence[Color]
) -> Image.Image:
    """Returns a palette image whose indices are the labels.

    Args:
        labels: Class indices, 0-255; `IGNORE_LABEL` is black.
        colors: One RGB triple per class.
    """
    image = Image.fromarray(labels.astype(np.uint8), "L")
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    image.putpalette(table.ravel().tolist())
    return image


def label_image(labels: UInt8[np.ndarray, "h w"], info: DatasetInfo) -> Image.Image:
    """Returns a palette image whose indices are the data set's own label values.

    At each label, the palette has the color of its class in label files, or else in
    overlays: a pixel has the same class whether it is read by index or by color.

    Args:
        labels: Class indices.
        info: The data set, with its label map.
    """
    return palette_image(published_labels(info)[labels], label_palette(info))


def label_palette(info: DatasetInfo) -> list[Color]:
    """Returns the 256 colors of `label_image`."""
    color_of = {label: color for color, label in [*info.label_colors.items()][::-1]}
    palette = [(0, 0, 0)] * 256
    for raw, color in zip(published_labels(info).tolist(), info.colors):
        palette[raw] = color_of.get(raw, color)
    return palette


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Integer[np.ndarray, "h w"],
    colors: Sequence[Color],
    class_names: Sequence[str],
    *,
    opacity: float = 0.55,
    legend: bool = True,
) -> Image.Image:
    """Returns the image tinted with the colors of its classes, with a legend.

    Args:
        image: RGB, 0-255.
        labels: Class indices; under `IGNORE_LABEL` the image is unchanged.
        colors: One RGB triple per class.
        class_names: One name per class.
        opacity: Opacity of the colors, 0 to 1.
        legend: Whether to add names and area shares on the right, largest first.

    Raises:
        ValueError: The opacity is outside of 0 to 1.
    """
    if not 0 <= opacity <= 1:  # beyond, values of 8 bits would wrap around
        raise ValueError(f"opacity={opacity}: must be at least 0, at most 1")
    colored = np.asarray(palette_image(labels, colors).convert("RGB"))
    mixed = image * (1 - opacity) + colored * opacity
    mixed = _with_borders(mixed.round().astype(np.uint8), labels)
    mixed = np.where((labels == IGNORE_LABEL)[..., None], image, mixed)
    result = Image.fromarray(mixed)
    return _with_legend(result, labels, colors, class_names) if legend else result


def flowing_legend(
    labels: UInt8[np.ndarray, "h w"],
    colors: Sequence[Color],
    class_names: Sequence[str],
    width: int,
) -> Image.Image:
    """Returns a legend of the classes in `labels`, wrapped to `width` pixels.

    Names with area shares, largest first; ignored pixels last, as `void`.
    """
    counts = np.bincount(labels.ravel(), minlength=256)
    entries = [
        (class_label(class_names, k), colors[k], counts[k])
        for k in _present_classes(counts[: len(class_names)])
    ]
    if counts[IGNORE_LABEL]:
        entries.append((Label("void"), (255, 255, 255), counts[IGNORE_LABEL]))
    line, box = 17, 10
    cells, x, y = [], 0, 4
    for label, color, count in entries:
        share = count / labels.size
        text = label.text + (f" {share:.0%}" if share >= 0.005 else " <1%")
        font = label.font(12)
        length = box + 4 + int(font.getlength(text)) + 12
        if x and x + length > width:
            x, y = 0, y + line
        cells.append((x, y, text, color, font))
        x += length
    legend = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(legend)
    for x, y, text, color, font in cells:
        draw.rectangle((x, y + 3, x + box, y + 3 + box), color, "black")
        draw.text((x + box + 4, y), text, "black", font)
    return legend


def class_label(
    class_names: Sequence[str], index: int, default_font: str | None = None
) -> Label:
    """Returns the name of a class, or its number if no font has the letters."""
    return drawable_label(class_names[index], f"class {index}", default_font)


def _present_classes(counts: np.ndarray) -> list[int]:
    """Returns the classes with a pixel, largest first."""
    return [k for k in np.argsort(-counts).tolist() if counts[k]]


def _with_borders(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Darkens the pixels at which two classes meet."""
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return np.where(edge[..., None], image // 2, image)


def _with_legend(
    image: Image.Image,
    labels: np.ndarray,
    colors: Sequence[Color],
    class_names: Sequence[str],
) -> Image.Image:
    counts = np.bincount(labels.ravel(), minlength=256)[: len(class_names)]
    present = _present_classes(counts)
    scale = max(1, round(image.height / 400))
    line = 20 * scale
    names = [class_label(class_names, k) for k in present]
    fonts = [name.font(13 * scale) for name in names]
    lines = [f"{n.text}  {counts[k] / labels.size:.0%}" for n, k in zip(names, present)]
    lengths = [font.getlength(text) for font, text in zip(fonts, lines)]
    width = int(max(lengths, default=0)) + 2 * line
    height = max(image.height, line * (len(present) + 1))
    result = Image.new("RGB", (image.width + width, height), "white")
    result.paste(image, (0, 0))
    draw = ImageDraw.Draw(result)
    for row, (k, text, font) in enumerate(zip(present, lines, fonts)):
        x, y = image.width + line // 2, line // 2 + row * line
        box = (x, y + line // 8, x + line // 2, y + 5 * line // 8)
        draw.rectangle(box, colors[k], "black")
        draw.text((x + 3 * line // 4, y), text, "black", font)
    return result
