"""Decodes label files to uint8 labels, as stored: gray values, indices or colors."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16, Int32, UInt8, UInt16
from PIL import Image, ImageOps

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.image_io import decoding, open_image
from encnet_jax.data.label_map import label_table
from encnet_jax.data.stored_form import (
    gray_step,
    is_deep_color,
    misread_kind,
    stored_form,
    stored_tiles,
)
from encnet_jax.data.tiff_pages import check_one_page
from encnet_jax.errors import UserError

Color = tuple[int, int, int]

_LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")


class LabelColors(NamedTuple):
    """The colors of a data set's label files.

    Attributes:
        table: From the color R + 256 G + 65536 B to raw label + 1; 0: unknown.
        classes: From the raw label to its class; -1: unknown.
    """

    table: UInt16[np.ndarray, "16777216"]
    classes: Int16[np.ndarray, "256"]

    @classmethod
    def of(cls, info: DatasetInfo) -> "LabelColors | None":
        """Returns the colors of a data set, or None if it gives none."""
        if not info.label_colors:
            return None
        return cls(color_table(info.label_colors), label_table(info))


def color_table(labels: Mapping[Color, int]) -> UInt16[np.ndarray, "16777216"]:
    """Returns a table from the color R + 256 G + 65536 B to label + 1; 0: unknown."""
    table = np.zeros(1 << 24, np.uint16)  # only pages that are written take memory
    for (red, green, blue), label in labels.items():
        table[red | green << 8 | blue << 16] = label + 1
    return table


def decode_labels(
    data: bytes, name: str, colors: LabelColors | None = None
) -> UInt8[np.ndarray, "h w"]:
    """Decodes a label file to its raw labels, upright by its EXIF orientation.

    Gray files of 1 to 16 bits, and TIFF of 32, hold the labels themselves. Palette
    files hold them as indices, unless the colors in use are those of other labels: then
    they are read by color, as RGB files are. Transparency is ignored.

    Args:
        data: Content of the file.
        name: Name of the file, for error messages.
        colors: The colors by which RGB files are decoded and palettes are judged; None
            if there are none: RGB files are refused and palettes play no part.

    Raises:
        UserError: Not decodable, an unsupported mode, values that Pillow scales, a TIFF
            of several pages of one size, a label below 0 or above 255, or a color that
            `colors` does not hold.
    """
    image = open_image(data, name)
    _check_unscaled(image, name)
    step = gray_step(stored_tiles(image))
    with decoding(name):
        image.load()
    if image.format in _LOSSY:
        raise UserError(
            f"{name}: a {image.format} image, which changes labels; save them as PNG"
        )
    check_one_page(image, data, name, " of labels")
    with decoding(name):
        image = ImageOps.exif_transpose(image)
    if image.mode == "LA":
        image = image.getchannel(0)
    if image.mode in ("RGB", "RGBA") and colors is not None:
        return _labels_by_color(image, name, colors)
    if image.mode in ("I;16", "I"):  # I: also the signed 32 bits of a TIFF
        return _labels_of_more_bits(np.asarray(image), name)
    if image.mode not in ("L", "P", "1"):
        allowed = "gray (L, I;16) and palette (P)"
        if colors is not None:
            allowed = "gray (L, I;16), palette (P) and colors (RGB, RGBA)"
        raise UserError(
            f"{name}: a label image of mode {image.mode}; allowed are {allowed}"
        )
    labels = np.asarray(image).astype(np.uint8)
    if image.mode == "P" and colors is not None:
        return _labels_by_palette(image, labels, name, colors)
    return labels // step


def _check_unscaled(image: Image.Image, name: str) -> None:
    """Raises `UserError` if Pillow scales the values of an opened file to 8 bits."""
    tiles = stored_tiles(image)
    codec, mode, declared = stored_form(tiles)
    kind = misread_kind(image, tiles)
    if is_deep_color(tiles):
        kind = "16 bits per color"
    elif "I" in mode.partition(";")[2]:
        kind = f"{image.format} with 0 as white"
    elif image.format == "TIFF" and mode.startswith(("L;2", "L;4")):
        kind = "TIFF of 2 or 4 bits"
    elif codec == "ppm" and declared != 255 and (mode, declared) != ("L", 65535):
        kind = f"{image.format} with a maximum of {declared}"
    if kind:
        raise UserError(
            f"{name}: a label image of {kind}, which is not read as stored; save it as "
            "PNG of 8 bits, or gray of 16"
        )


def _labels_of_more_bits(
    labels: UInt16[np.ndarray, "h w"] | Int32[np.ndarray, "h w"], name: str
) -> UInt8[np.ndarray, "h w"]:
    """Returns labels of more than 8 bits; raises `UserError` unless 8 hold them."""
    if labels.min() < 0 or labels.max() > IGNORE_LABEL:
        y, x = np.argwhere((labels < 0) | (labels > IGNORE_LABEL))[0]
        raise UserError(
            f"{name}: label {labels[y, x]} at x={x}, y={y}; allowed are 0 to 255, in "
            "files of 16 and 32 bits too"
        )
    return labels.astype(np.uint8)


def _labels_by_color(
    image: Image.Image, name: str, colors: LabelColors
) -> UInt8[np.ndarray, "h w"]:
    pixels = np.asarray(image.convert("RGBA"))
    found = colors.table[pixels.view("<u4")[..., 0] & 0xFFFFFF]
    if not found.all():
        y, x = np.argwhere(found == 0)[0]
        red, green, blue, _ = pixels[y, x]
        raise UserError(
            f"{name}: the color #{red:02x}{green:02x}{blue:02x} at x={x}, y={y} is "
            f"none of those given; {np.sum(found == 0)} pixels have such colors"
        )
    return (found - 1).astype(np.uint8)


def _labels_by_palette(
    image: Image.Image,
    indices: UInt8[np.ndarray, "h w"],
    name: str,
    colors: LabelColors,
) -> UInt8[np.ndarray, "h w"]:
    """Returns the indices, or the labels of their colors if these are others.

    Raises:
        UserError: Some entries have the colors of other labels, some unknown ones.
    """
    palette = np.asarray(image.getpalette("RGB"), np.uint32).reshape(-1, 3)
    if _is_identity(palette):
        return indices
    by_color = np.full(256, -1)
    found = colors.table[palette @ np.array([1, 1 << 8, 1 << 16], np.uint32)]
    by_color[: len(palette)] = found.astype(int) - 1
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    void = colors.classes[used] == IGNORE_LABEL
    # An ignored label may have any color of no class, or black that fills up palettes.
    padding = used[void & ~_colored(palette)[used]]
    by_color[padding] = padding
    of_color, of_index = by_color[used], colors.classes[used]
    agree = np.where(of_color >= 0, colors.classes[of_color] == of_index, void)
    if agree.all():
        return indices
    if (of_color >= 0).all():
        if len({*of_color}) < len(used):
            raise UserError(
                f"{name}: palette entries in use have one color: give every label its "
                "color, or give no colors in classes.json, to read palettes by index"
            )
        return by_color.astype(np.uint8)[indices]
    if _is_gray_ramp(palette, used):
        return indices
    entry = used[of_color < 0][0]
    raise UserError(
        f"{name}: palette entry {entry} {_describe(palette, entry)}; give the color of "
        "every entry in classes.json, or no colors, to read palettes by index"
    )


def _is_identity(palette: np.ndarray) -> bool:
    """Returns whether the colors are (0, 0, 0), (1, 1, 1), ...: gray values."""
    ramp = np.arange(len(palette))[:, None]
    return len(palette) > 1 and bool((palette == ramp).all())


def _colored(palette: np.ndarray) -> np.ndarray:
    """Returns which of 256 entries are colors; black is one only if it is unique."""
    colored = np.zeros(256, bool)
    colored[: len(palette)] = palette.any(1)
    if np.sum(~colored[: len(palette)]) < 2:
        colored[: len(palette)] = True
    return colored


def _is_gray_ramp(palette: np.ndarray, used: np.ndarray) -> bool:
    """Returns whether the entries, up to the last in use, are ever lighter gray."""
    if used[-1] >= len(palette):
        return False
    entries = palette[: max(used[-1] + 1, 2)].astype(int)
    gray = (entries == entries[:, :1]).all()
    return bool(gray and (np.diff(entries[:, 0]) > 0).all())


def _describe(palette: np.ndarray, entry: int) -> str:
    if entry >= len(palette):
        return f"is in use, beyond the {len(palette)} colors of the palette"
    red, green, blue = palette[entry]
    return (
        f"has the color #{red:02x}{green:02x}{blue:02x}, which is none of those given"
    )
