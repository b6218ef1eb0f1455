"""What an image file holds, where Pillow reads other values."""

import contextlib
from typing import IO, Any

from PIL import Image

from encnet_jax.errors import UserError

SAMPLE_FORMAT = 339  # TIFF tag; 1: unsigned, 2: signed
_KEPT = "_encnet_stored_tiles"  # attribute of an image
_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000: it starts with the marker SIZ
_SIGNED, _PRECISION = 0x80, 0x7F  # bits of Ssiz, one byte a component; less 1


def stored_tiles(image: Image.Image) -> list:
    """Returns the tiles of an opened image, for the functions below.

    They are those of Pillow, but name the mode and the greatest value in JPEG 2000,
    whose header is read for it. Pillow forgets them once the image is loaded: they are
    kept with the image, for whoever reads it again. None are known of an image that the
    caller has loaded.
    """
    tiles = getattr(image, "tile", [])
    if not tiles:
        return getattr(image, _KEPT, [])
    tiles = _named_tiles(image, list(tiles))
    setattr(image, _KEPT, tiles)
    return tiles


def _named_tiles(image: Image.Image, tiles: list) -> list:
    file = getattr(image, "fp", None)
    if tiles[0][0] != "jpeg2k" or file is None:
        return tiles
    components = b""
    position = file.tell()
    # Damaged, which reading the image will tell.
    with contextlib.suppress(OSError, ValueError, OverflowError):
        components = _jpeg2000_components(file)
    file.seek(position)
    if not components:
        return tiles
    bits = 1 + max(size & _PRECISION for size in components)
    mode = image.mode
    if bits > 8 and mode != "I;16":
        mode += ";16"
    if any(size & _SIGNED for size in components):
        mode += "S"
    return [("jpeg2k", (0, 0, *image.size), 0, (mode, (1 << bits) - 1))]


def _jpeg2000_components(file: IO[bytes]) -> bytes:
    """Returns `Ssiz` of each component, from the codestream or the box it is in."""
    file.seek(0)
    start = 0
    while (head := file.read(16))[:4] != _CODESTREAM:
        length, kind = int.from_bytes(head[:4]), head[4:8]
        skipped = 8
        if length == 1:
            length, skipped = int.from_bytes(head[8:]), 16
        if kind != b"jp2c" and length < skipped:  # the end, or no box
            return b""
        start += skipped if kind == b"jp2c" else length
        file.seek(start)
    file.seek(start + 40)
    count = int.from_bytes(file.read(2))
    return file.read(3 * count)[::3]


def stored_form(tiles: list) -> tuple[str, str, int]:
    """Returns the codec, the mode in the file, and the greatest value it declares.

    Args:
        tiles: See `stored_tiles`.
    """
    if not tiles:  # made or loaded by the caller
        return "", "", 65535
    codec, *_, arguments = tiles[0]
    mode, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
    if codec.startswith("ppm") and rest:
        return "ppm", str(mode), int(rest[-1])
    if codec == "jpeg2k" and len(rest) == 1:
        return codec, mode, rest[0]
    if codec == "SGI16":
        return codec, f"{mode};16B", 65535
    return codec, str(mode), 4095 if mode == "I;12" else 65535


def gray_step(tiles: list) -> int:
    """Returns what Pillow multiplies gray values by: those of 2 and 4 bits, to 0-255.

    In JPEG 2000, values of any number of bits, to 8 or 16, and those of colors too.

    Args:
        tiles: See `stored_tiles`.
    """
    codec, mode, declared = stored_form(tiles)
    if codec == "jpeg2k" and declared < 65535 and mode.startswith("I;16"):
        return 65536 // (declared + 1)
    if codec == "jpeg2k" and declared < 255 and not mode.startswith("P"):
        return 256 // (declared + 1)
    return {"L;2": 85, "L;4": 17}.get(mode[:3], 1)


def is_deep_color(tiles: list) -> bool:
    """Returns whether a file holds 16 bits per color, of which Pillow reads 8.

    Or, in JPEG 2000, 9 bits or more.
    """
    mode = stored_form(tiles)[1]
    return ";16" in mode and not mode.startswith("I")


def misread_kind(image: Image.Image, tiles: list) -> str:
    """Returns of what kind an image is if Pillow changes its values beyond repair.

    Args:
        image: The image, opened or loaded.
        tiles: See `stored_tiles`.

    Returns:
        The kind; "" for others, so also if the image is loaded.
    """
    codec, mode, _ = stored_form(tiles)
    if codec == "jpeg2k" and mode.endswith("S"):
        return "JPEG 2000 of signed integers"
    if codec == "jpeg2k" and is_deep_color(tiles):  # rounded, so that white is black
        return "JPEG 2000 of more than 8 bits per color"
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "L" and tags.get(SAMPLE_FORMAT) == (2,):
        return "TIFF of signed 8-bit integers"
    return ""


def check_kind(image: Image.Image, tiles: list, name: str) -> None:
    """Raises `UserError` for an image of a `misread_kind`."""
    if kind := misread_kind(image, tiles):
        raise UserError(f"{name}: a {kind}, which is not read as stored: convert it")
