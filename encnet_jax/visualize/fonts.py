"""Fonts for names in any script: the default one, or one that the system has.

Pillow's and Matplotlib's default fonts draw a box for a letter they lack.
"""

import functools
import importlib.util
import logging
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pixels at which glyphs are compared: large enough to tell them apart.
_PROBE_SIZE = 24
# Enough for the regular styles of every script; a machine may have thousands.
_MAX_FONTS = 400
# In file names. The regular style is tried before these.
_STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "medium", "mono")
# Fonts that draw a placeholder, or nothing, for every letter.
_PLACEHOLDERS = ("lastresort", "adobeblank", "adobenotdef")
_MISSING = "\U0010ffff"  # never assigned
_log = logging.getLogger(__name__)


class Label(NamedTuple):
    """A text that can be drawn.

    Attributes:
        text: The name, or what stands for it.
        path: The font file to draw it with; None for the default font.
    """

    text: str
    path: str | None = None

    def font(self, size: int) -> Font:
        """Returns the font in a size in pixels, for Pillow."""
        return _sized(self.path, size)


def drawable_label(name: str, substitute: str, default: str | None = None) -> Label:
    """Returns a name with a font that has its letters.

    Args:
        name: The text to draw.
        substitute: Drawn if no font has them, with a log line once.
        default: The font file that is preferred; Pillow's default font if None.
    """
    label = _label(name, default)
    if label is None:
        _log_missing("classes: figures number them, in the order of classes.json")
        return Label(substitute, default)
    return label


def file_label(name: str, default: str | None = None) -> Label:
    """Returns the name of a file with a font; letters of no font become `?`."""
    label = _label(name, default)
    if label is None:
        _log_missing("files: figures show ? in their place")
        return Label(name.encode("ascii", "replace").decode(), default)
    return label


def _label(name: str, default: str | None) -> Label | None:
    name = unicodedata.normalize("NFC", name)  # one glyph for a letter and its accent
    if name.isascii() or _has_glyphs(_load(default), name):
        return Label(name, default)
    path = _find_font("".join(sorted(set(name))))
    return None if path is None else Label(name, path)


@functools.cache
def _log_missing(what: str) -> None:
    _log.warning(
        "WARNING: no font on this machine has the letters of all names of %s; a Noto "
        "font of the script helps",
        what,
    )


@functools.lru_cache(32)
def _sized(path: str | None, size: int) -> Font:
    if path is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(path, size)


@functools.lru_cache(1024)
def _find_font(letters: str) -> str | None:
    """Returns the first font file of the system with these letters, or None."""
    for path in _font_files():
        font = _load(path)
        if font is not None and _has_glyphs(font, letters):
            return path
    return None


@functools.cache
def _font_files() -> tuple[str, ...]:
    """Returns the system's font files, regular styles first."""
    found = set()
    for folder in _font_folders():
        for parent, _, names in os.walk(folder):
            for name in names:
                if name.lower().endswith((".ttf", ".otf", ".ttc")):
                    found.add(os.path.join(parent, name))

    def rank(path: str) -> tuple[bool, bool, str]:
        name = os.path.basename(path).lower()
        return any(style in name for style in _STYLES), "sans" not in name, path

    usable = (
        path
        for path in found
        if not os.path.basename(path).lower().startswith(_PLACEHOLDERS)
    )
    return tuple(sorted(usable, key=rank)[:_MAX_FONTS])


def _font_folders() -> Iterator[Path]:
    home, environment = Path.home(), os.environ
    if sys.platform == "win32":
        yield Path(environment.get("WINDIR", "C:/Windows"), "Fonts")
        yield Path(environment.get("LOCALAPPDATA", home), "Microsoft/Windows/Fonts")
    elif sys.platform == "darwin":
        for folder in ("/System/Library/Fonts", "/Library/Fonts"):
            yield Path(folder)
        yield home / "Library/Fonts"
    else:
        data = environment.get("XDG_DATA_HOME") or home / ".local/share"
        shared = environment.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        for folder in (data, *shared.split(":")):
            yield Path(folder, "fonts")
        yield home / ".fonts"
    if (default := matplotlib_font()) is not None:
        yield Path(default).parent


@functools.cache
def matplotlib_font() -> str | None:
    """Returns the file of Matplotlib's default font, without importing Matplotlib."""
    try:
        spec = importlib.util.find_spec("matplotlib")
    except ValueError:  # imports of it are blocked
        return None
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return str(path) if path.is_file() else None


@functools.lru_cache(_MAX_FONTS + 2)
def _load(path: str | None) -> Font | None:
    """Returns a font to compare glyphs; None for a file that cannot be used."""
    if path is None:
        return ImageFont.load_default(_PROBE_SIZE)
    try:
        # Letters one by one: no shaping.
        return ImageFont.truetype(
            path, _PROBE_SIZE, layout_engine=ImageFont.Layout.BASIC
        )
    except OSError:  # damaged, or bitmaps of other sizes
        return None


def _has_glyphs(font: Font | None, text: str) -> bool:
    """Returns whether a font has a glyph of its own for every letter."""
    if font is None:
        return False
    visible = {c for c in text if not (c.isspace() or unicodedata.category(c) == "Cf")}
    glyphs = [_glyph(font, character) for character in visible]
    return _glyph(font, _MISSING) not in glyphs


def _glyph(font: Font, character: str) -> tuple[tuple[int, ...], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
