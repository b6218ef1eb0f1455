"""The figure of an `Explanation`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from encnet_jax.explain.explanation import ChannelDifference, Explanation
from encnet_jax.visualize.fonts import Label, drawable_label
from encnet_jax.visualize.overlay import class_label, flowing_legend, overlay

_WIDTH = 1000  # of the figure
_GAP = 12
_COLUMNS = 3
_MAPS = 6  # codewords shown
_BARS = 10  # classes shown
_LINE, _TEXT = 20, 14
_INK, _GRAY, _MARK = "#202020", "#8a8a8a", (255, 0, 160)
_RAISED, _LOWERED = "#d0582c", "#3a6ea8"
_MAX_ASPECT = 1.5  # of height to width of a panel
# Viridis at five places.
_SCALE = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
)


def draw_explanation(explanation: Explanation) -> Image.Image:
    """Returns the figure that `Explanation.figure` describes, 1000 pixels wide."""
    parts = [_predictions(explanation), _effect(explanation)]
    if explanation.assignment is not None:
        parts.append(_codewords(explanation))
    parts.append(_bars(explanation))
    height = sum(part.height + _GAP for part in parts) + _GAP
    result = Image.new("RGB", (_WIDTH, height), "white")
    y = _GAP
    for part in parts:
        result.paste(part, (_GAP, y))
        y += part.height + _GAP
    return result


def color_map(values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns values from 0 to 1 as colors from dark violet to yellow."""
    places = np.linspace(0, 1, len(_SCALE))
    channels = [np.interp(values, places, channel) for channel in _SCALE.T]
    return np.stack(channels, -1).round().astype(np.uint8)


def relative_map(
    assignment: Float[np.ndarray, "h w"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the map of a codeword, its largest assignment in yellow.

    One that takes nothing of any pixel, as float32 has it, is all violet.
    """
    return color_map(assignment / max(assignment.max(), np.finfo(np.float32).tiny))


def most_used(
    assignment: Float[np.ndarray, "h w k"], count: int
) -> list[tuple[int, float]]:
    """Returns the codewords that take most of an image, with their shares of it."""
    shares = assignment.mean((0, 1))
    order = np.argsort(-shares, kind="stable")[:count].tolist()
    return [(k, float(shares[k])) for k in order]


def mark(
    image: UInt8[np.ndarray, "h w 3"], changed: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image with stripes over the changed pixels, and an outline."""
    height, width = changed.shape
    step = max(height, width) // 40 + 3
    rows, columns = np.indices((height, width), sparse=True)
    stripes = (rows + columns) % step < max(1, step // 4)
    inner = np.pad(changed, 1)
    inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    marked = changed & (stripes | ~inner)
    return np.where(marked[..., None], np.array(_MARK, np.uint8), image)


def _predictions(explanation: Explanation) -> Image.Image:
    """Returns image, prediction and prediction without context, with legends."""
    segmentation = explanation.segmentation
    settings = segmentation.colors, segmentation.class_names
    labels, others = segmentation.labels, explanation.labels_without_context

    def drawn(labels: np.ndarray) -> Image.Image:
        size = _panel_size(labels.shape)
        image = Image.fromarray(segmentation.image).resize(size)
        labels = np.asarray(Image.fromarray(labels).resize(size, 0))
        return overlay(np.asarray(image), labels, *settings, legend=False)

    without = drawn(others)
    changed = Image.fromarray(explanation.changed).resize(without.size, 0)
    without = Image.fromarray(mark(np.asarray(without), np.asarray(changed)))
    image = Image.fromarray(segmentation.image).resize(without.size)
    width = _panel_size((1, 1))[0]
    legends = [flowing_legend(k, *settings, width) for k in (labels, others)]
    share = f"{explanation.changed.mean():.1%} of pixels change"
    return _row(
        [image, _stack([drawn(labels), legends[0]]), _stack([without, legends[1]])],
        ["image", "prediction", f"without its context: {share}"],
    )


def _effect(explanation: Explanation) -> Image.Image:
    """Returns what the gate was replaced by, and the largest changes, as text."""
    lines = [Label(f"Without its context: the gate is {explanation.replaced_by}.")]
    names, count = explanation.class_names, explanation.changed.size
    for transition in explanation.transitions[:3]:
        before, after = (class_label(names, k).text for k in transition[:2])
        share = f"{transition.pixels / count:.1%}"
        numbers = "class {} to class {}".format(*transition[:2])
        # Together they may need another font than each alone.
        lines.append(
            drawable_label(f"{before} to {after}  {share}", f"{numbers}  {share}")
        )
    if len(explanation.transitions) > 3:
        lines.append(Label("..."))
    width = _WIDTH - 2 * _GAP
    places, x, y = [(0.0, 0)], float(width), 0
    for line in lines[1:]:
        length = line.font(_TEXT).getlength(line.text)
        if x + length > width:  # the next line of text
            x, y = 0.0, y + _LINE
        places.append((x, y))
        x += length + 2 * _GAP
    result = Image.new("RGB", (width, max(y, _LINE) + _LINE), "white")
    draw = ImageDraw.Draw(result)
    for line, place in zip(lines, places):
        draw.text(place, line.text, _INK, line.font(_TEXT))
    return result


def _codewords(explanation: Explanation) -> Image.Image:
    """Returns the maps of the codewords that take most of the image."""
    assignment = explanation.assignment
    assert assignment is not None
    used = most_used(assignment, _MAPS)
    size = _panel_size(explanation.changed.shape, len(used))
    largest = assignment.max((0, 1))
    maps = [
        Image.fromarray(relative_map(assignment[..., k])).resize(size, 0)
        for k, _ in used
    ]
    titles = [f"{k}: {share:.1%}, max. {largest[k]:.2f}" for k, share in used]
    return _titled(
        f"Assignment: the {len(used)} most used of {len(largest)} codewords. Share of "
        "the image; largest assignment of a pixel, in yellow (0 in violet).",
        _row(maps, titles, 13),
    )


def _bars(explanation: Explanation) -> Image.Image:
    """Returns presence, and the channels raised and lowered, as bars."""
    half = (_WIDTH - 3 * _GAP) // 2
    left = _presence(explanation, half)
    right = _channels(explanation.raised, explanation.lowered, half)
    size = (_WIDTH - 2 * _GAP, max(left.height, right.height))
    result = Image.new("RGB", size, "white")
    result.paste(left, (0, 0))
    result.paste(right, (half + _GAP, 0))
    return result


def _presence(explanation: Explanation, width: int) -> Image.Image:
    presence, segmentation = explanation.presence, explanation.segmentation
    if presence is None:
        return _titled("Presence: the network does not predict it.", None, width)
    chart = Image.new("RGB", (width, _LINE * min(len(presence), _BARS)), "white")
    draw = ImageDraw.Draw(chart)
    left, right = int(0.38 * width), width - 50
    order = np.argsort(-presence, kind="stable")[:_BARS].tolist()
    for row, k in enumerate(order):
        y, name = row * _LINE, class_label(segmentation.class_names, k)
        text, font = _elided(name, left - 6), name.font(_TEXT)
        draw.text((left - 6, y), text, _INK, font, anchor="ra")
        end = left + (right - left) * float(presence[k])
        draw.rectangle((left, y + 2, right, y + _LINE - 4), "#f0f0f0")
        if end >= left + 1:
            box = (left, y + 2, end, y + _LINE - 4)
            draw.rectangle(box, segmentation.colors[k], _GRAY)
        value = Label(f"{presence[k]:.2f}")
        draw.text((right + 6, y), value.text, _INK, value.font(_TEXT))
    return _titled("Presence: is the class in the image?", chart)


def _channels(
    raised: Sequence[ChannelDifference],
    lowered: Sequence[ChannelDifference],
    width: int,
) -> Image.Image:
    """Returns bars of the differences, to the right and left of a middle line."""
    rows = max(len(raised), len(lowered), 1)
    chart = Image.new("RGB", (width, _LINE * rows), "white")
    draw = ImageDraw.Draw(chart)
    middle, font = width // 2, Label("").font(_TEXT)
    reach = width // 2 - 60
    for channels, color, sign in ((raised, _RAISED, 1), (lowered, _LOWERED, -1)):
        for row, (channel, difference) in enumerate(channels):
            y, end = row * _LINE, middle + round(reach * difference)
            left, right = sorted((middle, end))
            draw.rectangle((left, y + 2, right, y + _LINE - 4), color)
            anchor = "la" if sign > 0 else "ra"
            draw.text((end + 6 * sign, y), f"{channel}", _INK, font, anchor=anchor)
    draw.line((middle, 0, middle, chart.height), _GRAY)
    return _titled("Gate minus replacement: channels lowered and raised most", chart)


def _elided(label: Label, width: int) -> str:
    """Returns a text that is at most `width` pixels long."""
    font, text = label.font(_TEXT), label.text
    while len(text) > 1 and font.getlength(text) > width:
        text = text.removesuffix("...")[:-1] + "..."
    return text


def _panel_size(shape: Sequence[int], columns: int = _COLUMNS) -> tuple[int, int]:
    """Returns width and height of a panel for an image of (height, width)."""
    width = (_WIDTH - 2 * _GAP - (columns - 1) * _GAP) // columns
    height = max(1, min(round(width * shape[0] / shape[1]), round(width * _MAX_ASPECT)))
    return max(1, min(width, round(height * shape[1] / shape[0]))), height


def _row(
    images: Sequence[Image.Image], titles: Sequence[str], size: int = _TEXT
) -> Image.Image:
    """Returns images side by side below their titles."""
    step = (_WIDTH - _GAP) // len(images)
    height = _LINE + max(image.height for image in images)
    result = Image.new("RGB", (_WIDTH - 2 * _GAP, height), "white")
    draw = ImageDraw.Draw(result)
    for column, (image, title) in enumerate(zip(images, titles)):
        draw.text((column * step, 0), title, _INK, Label(title).font(size))
        result.paste(image, (column * step, _LINE))
    return result


def _titled(title: str, part: Image.Image | None, width: int = 0) -> Image.Image:
    width = part.width if part else width
    heading = Image.new("RGB", (width, _LINE + 4), "white")
    ImageDraw.Draw(heading).text((0, 0), title, _INK, Label(title).font(_TEXT))
    return _stack([heading, part] if part else [heading])


def _stack(parts: Sequence[Image.Image]) -> Image.Image:
    size = max(part.width for part in parts), sum(part.height for part in parts)
    result = Image.new("RGB", size, "white")
    y = 0
    for part in parts:
        result.paste(part, (0, y))
        y += part.height
    return result
