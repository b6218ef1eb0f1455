"""The data set `folder`: the user's own images, with the classes in a file.

    DIR/classes.json
    DIR/images/train/ANY/NAME.jpg   DIR/labels/train/ANY/NAME.png
    DIR/images/val/...              DIR/labels/val/...

Instead of a folder, a split may be a file: `DIR/train.txt` lists images in
`DIR/images`, one per line, with or without suffix, and optionally the label file of
each. `classes.json` is a list of names, or

    {"classes": [{"name": "road", "color": "#804080", "label": 7}, ...],
     "ignore": [0, "#000000"],
     "label_suffix": "_mask", "value_range": [0, 4095],
     "display_channels": [3, 2, 1]}

where `color` (also [128, 64, 128]) and `label`, the value in label files, are optional;
`label` defaults to the position in the list, from 0. `ignore` lists further values and
colors; 255 is ignored too, unless it is the label of a class. With `label_suffix`, the
label file is `NAME_mask.png`. `value_range` is that of images of more than 8 bits, or
a list of such pairs, one per channel (see `bands`). `display_channels` are the indices,
from 0, of the channels that are red, green and blue, or of the one to be shown.
"""

import re
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from encnet_jax.data.class_table import is_name
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo, voc_colormap
from encnet_jax.data.datasets import FileDataset
from encnet_jax.data.file_pairs import pair_files, pair_listed
from encnet_jax.data.input_files import read_json, read_text
from encnet_jax.errors import UserError

Color = tuple[int, int, int]


class _Class(NamedTuple):
    name: str
    label: int
    color: Color | None


def read_info(root: Path) -> DatasetInfo:
    """Reads the classes and finds the splits of a folder.

    Raises:
        UserError: `classes.json` is missing or invalid, or there is no split.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    content = _read_content(root / "classes.json")
    classes, ignored = _read_classes(root / "classes.json", content)
    ignored_labels = [entry for entry in ignored if isinstance(entry, int)]
    ignored_colors = [entry for entry in ignored if isinstance(entry, tuple)]
    # Ignored colors become a label that no class has: 255, which is ignored anyway, or
    # one that then is ignored in gray files too.
    used = {item.label for item in classes}
    void = next(label for label in range(255, -1, -1) if label not in used)
    if ignored_colors and void != IGNORE_LABEL:
        ignored_labels.append(void)
    return DatasetInfo(
        name="folder",
        class_names=tuple(item.name for item in classes),
        colors=tuple(item.color for item in classes if item.color)
        or voc_colormap(len(classes)),
        splits=dict.fromkeys(_splits(root)),
        label_map={
            **{item.label: index for index, item in enumerate(classes)},
            **dict.fromkeys(ignored_labels, IGNORE_LABEL),
        },
        label_colors={
            **{item.color: item.label for item in classes if item.color},
            **dict.fromkeys(ignored_colors, void),
        },
        value_range=_read_range(content.get("value_range"), root / "classes.json"),
        label_suffix=content.get("label_suffix", ""),
        display_channels=_read_display_channels(
            content.get("display_channels", []), root / "classes.json"
        ),
    )


def open_split(info: DatasetInfo, split: str, root: Path) -> FileDataset:
    """Opens the images listed in `SPLIT.txt`, or else those in the folder `SPLIT`.

    Raises:
        UserError: A folder is missing, or there are no images.
    """
    images, labels, listing = root / "images", root / "labels", root / f"{split}.txt"
    if listing.is_file():
        lines = read_text(listing).splitlines()
        pairs, problems = pair_listed(listing, lines, images, labels, info.label_suffix)
    else:
        folders = images / split, labels / split
        pairs, problems = pair_files(*folders, info.label_suffix)
    return FileDataset(info, pairs, problems)


def _splits(root: Path) -> list[str]:
    images = root / "images"
    if not images.is_dir():
        raise UserError(f"{images}: no such folder")
    found = {path.stem for path in root.glob("*.txt")}
    found |= {path.name for path in images.iterdir() if path.is_dir()}
    splits = sorted(name for name in found if not name.startswith("."))
    if not splits:
        raise UserError(
            f"{root}: no splits; add folders such as {images / 'train'}, or files such "
            f"as {root / 'train.txt'} that list images"
        )
    return splits


def _read_content(path: Path) -> dict[str, Any]:
    """Returns the object in `classes.json`, whose keys are known and of their types."""
    if not path.is_file():
        raise UserError(f"{path}: missing; it lists the classes, see docs/data.md")
    content = read_json(path)
    if isinstance(content, list):
        content = {"classes": content}
    lists = ("classes", "ignore", "value_range", "display_channels")
    keys = (*lists, "label_suffix")
    _check_object(content, f"{path}", keys)
    for key in lists:
        if not isinstance(content.get(key, []), list):
            raise UserError(f"{path}: {key}={content[key]!r}: must be a list")
    suffix = content.get("label_suffix", "")
    if not isinstance(suffix, str) or re.search(r"[/\\]|\.png$", suffix, re.I):
        raise UserError(
            f"{path}: label_suffix={suffix!r}: must be the end of the names of label "
            "files without .png, such as '_mask'"
        )
    return content


def _read_range(value: list | None, path: Path) -> Any:
    """Returns the value of `value_range`, a pair or a pair per channel."""
    if value is None:
        return None
    if value and all(isinstance(pair, list) for pair in value):
        return tuple(_read_range(pair, path) for pair in value)
    longest = sys.float_info.max  # JSON may hold integers beyond it
    numbers = [v for v in value if type(v) in (int, float) and abs(v) <= longest]
    if len(value) != 2 or numbers != value or not value[0] < value[1]:
        raise UserError(
            f"{path}: value_range={value!r}: must be [low, high], two numbers, "
            "low < high, or such a pair for each channel"
        )
    return value[0], value[1]


def _read_display_channels(value: list, path: Path) -> tuple[int, ...]:
    if len(value) not in (0, 1, 3) or not all(map(_is_byte, value)):
        raise UserError(
            f"{path}: display_channels={value!r}: must be the indices of three "
            "channels, or of one, from 0"
        )
    return tuple(value)


def _read_classes(
    path: Path, content: dict[str, Any]
) -> tuple[list[_Class], list[int | Color]]:
    """Returns the classes of `classes.json`, and the labels and colors to ignore."""
    entries = content.get("classes", [])
    if not 2 <= len(entries) <= IGNORE_LABEL:
        raise UserError(f"{path}: {len(entries)} classes; allowed are 2 to 255")
    classes = [
        _read_class(entry, index, f"{path}: classes[{index}]")
        for index, entry in enumerate(entries)
    ]
    ignored = [
        entry if _is_byte(entry) else _read_color(entry, f"{path}: ignore[{index}]")
        for index, entry in enumerate(content.get("ignore", []))
    ]
    colors = [item.color for item in classes if item.color]
    if len(colors) not in (0, len(classes)):
        uncolored = next(item.name for item in classes if not item.color)
        raise UserError(
            f"{path}: {uncolored!r} has no color: give all classes a color, or none"
        )
    _check_distinct(f"{path}: the name", [item.name for item in classes])
    used = [*(item.label for item in classes), *colors, *ignored]
    _check_distinct(f"{path}: the label or color", used)
    return classes, ignored


def _read_class(entry: Any, index: int, where: str) -> _Class:
    if isinstance(entry, str):
        entry = {"name": entry}
    _check_object(entry, where, ("name", "color", "label"))
    name, label = entry.get("name"), entry.get("label", index)
    if not is_name(name):
        raise UserError(f"{where}.name={name!r}: must be a name")
    if not _is_byte(label):
        raise UserError(f"{where}.label={label!r}: must be an integer from 0 to 255")
    color = _read_color(entry["color"], f"{where}.color") if "color" in entry else None
    return _Class(name.strip(), label, color)


def _read_color(value: Any, where: str) -> Color:
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        red, green, blue = bytes.fromhex(value[1:])
        return red, green, blue
    if isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value)):
        return value[0], value[1], value[2]
    labels = "" if where.endswith("color") else "an integer from 0 to 255, "
    raise UserError(f"{where}={value!r}: must be {labels}'#rrggbb' or [r, g, b]")


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255  # `isinstance` would accept True


def _check_object(entry: Any, where: str, keys: tuple[str, ...]) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {entry!r}: must be an object or a name")
    for key in entry:
        if key not in keys:
            raise UserError(f"{where}: key {key!r}: allowed are {', '.join(keys)}")


def _check_distinct(what: str, values: Sequence[Hashable]) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise UserError(f"{what} {value!r} is given twice")
