"""The data set `folder`: pictures of the user's own, with their classes in a file.

    DIR/classes.json
    DIR/images/train/ANY/NAME.jpg   DIR/labels/train/ANY/NAME.png
    DIR/images/val/...              DIR/labels/val/...

Instead of a folder, a split may be a file: `DIR/train.txt` lists images below
`DIR/images`, one a line, with or without suffix. `classes.json` is a list of names, or

    {"classes": [{"name": "road", "color": "#804080", "label": 7}, ...],
     "ignore": [0, "#000000"]}

where `color` ([128, 64, 128] will do) and `label`, the value in label files, may be
left out: then a class is the value of its place, 0 the first. `ignore` holds further
values and colors; 255 always is ignored.
"""

import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo, voc_colormap
from encnet_jax.data.datasets import FileDataset, files_below, is_image, pair_files
from encnet_jax.errors import UserError

Color = tuple[int, int, int]


class _Class(NamedTuple):
    name: str
    label: int
    color: Color | None


def read_info(root: Path) -> DatasetInfo:
    """Reads what a folder tells of its classes and splits.

    Raises:
        UserError: `classes.json` is missing or not as it should be, or no split.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    classes, ignored = _read_classes(root / "classes.json")
    return DatasetInfo(
        name="folder",
        class_names=tuple(item.name for item in classes),
        colors=tuple(item.color for item in classes if item.color)
        or voc_colormap(len(classes)),
        splits=dict.fromkeys(_splits(root)),
        label_map={
            **{item.label: number for number, item in enumerate(classes)},
            **{entry: IGNORE_LABEL for entry in ignored if isinstance(entry, int)},
        },
        label_colors={
            **{item.color: item.label for item in classes if item.color},
            **{entry: IGNORE_LABEL for entry in ignored if isinstance(entry, tuple)},
        },
    )


def open_split(info: DatasetInfo, split: str, root: Path) -> FileDataset:
    """Opens the images that `SPLIT.txt` lists, or those of the folder `SPLIT`.

    Raises:
        UserError: A folder is missing, or there are no images.
    """
    images, labels, listing = root / "images", root / "labels", root / f"{split}.txt"
    if listing.is_file():
        pairs, problems = _pair_listed(listing, images, labels)
    else:
        pairs, problems = pair_files(images / split, labels / split)
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
            f"{root}: no splits; needed are folders as {images / 'train'}, or files as "
            f"{root / 'train.txt'} that list images"
        )
    return splits


def _pair_listed(
    listing: Path, images: Path, labels: Path
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Does for the lines of a file what `pair_files` does for folders."""
    known: dict[str, list[Path]] = {}
    for path in files_below(images):
        if is_image(path):
            relative = path.relative_to(images)
            for key in (relative, relative.with_suffix("")):
                known.setdefault(key.as_posix(), []).append(path)
    pairs: dict[Path, tuple[Path, Path]] = {}
    problems = []
    for number, line in enumerate(_read_text(listing).splitlines(), 1):
        if not line.strip():
            continue
        entry = str(PurePosixPath(line.strip()))
        found = known.get(entry, [])
        where = f"{listing} line {number}: {entry}"
        if len(found) != 1:
            what = f"{found[0].name} or {found[1].name}" if found else "no such image"
            problems.append(f"{where}: {what} in {images}")
            continue
        label = labels / found[0].relative_to(images).with_suffix(".png")
        if label in pairs:
            problems.append(f"{where}: listed before")
        elif not label.is_file():
            problems.append(f"{label}: missing, the label file of {found[0]}")
        else:
            pairs[label] = (found[0], label)
    if not pairs and not problems:
        raise UserError(f"{listing}: empty; it should list images, one a line")
    return list(pairs.values()), problems


def _read_text(path: Path) -> str:
    try:
        # Editors of Windows put a mark at the start, which `-sig` takes away.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8: {error}") from error


def _read_classes(path: Path) -> tuple[list[_Class], list[int | Color]]:
    """Returns the classes of `classes.json`, and the labels and colors to ignore."""
    if not path.is_file():
        raise UserError(f"{path}: missing; it gives the classes: docs/data.md says how")
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if isinstance(content, list):
        content = {"classes": content}
    _check_object(content, f"{path}", ("classes", "ignore"))
    for key, value in content.items():
        if not isinstance(value, list):
            raise UserError(f"{path}: {key}={value!r}: a list is needed")
    entries = content.get("classes", [])
    if not 2 <= len(entries) <= IGNORE_LABEL:
        raise UserError(f"{path}: {len(entries)} classes; allowed are 2 to 255")
    classes = [
        _read_class(entry, place, f"{path}: classes[{place}]")
        for place, entry in enumerate(entries)
    ]
    ignored = [
        entry if _is_byte(entry) else _read_color(entry, f"{path}: ignore[{place}]")
        for place, entry in enumerate(content.get("ignore", []))
    ]
    colors = [item.color for item in classes if item.color]
    if len(colors) not in (0, len(classes)):
        bare = next(item.name for item in classes if not item.color)
        raise UserError(f"{path}: {bare!r} has no color: give all classes one, or none")
    _check_distinct(f"{path}: the name", [item.name for item in classes])
    used = [*(item.label for item in classes), *colors, *ignored]
    _check_distinct(f"{path}: the label or color", used)
    return classes, ignored


def _read_class(entry: Any, place: int, where: str) -> _Class:
    if isinstance(entry, str):
        entry = {"name": entry}
    _check_object(entry, where, ("name", "color", "label"))
    name, label = entry.get("name"), entry.get("label", place)
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}.name={name!r}: a name is needed")
    if not _is_byte(label) or label == IGNORE_LABEL:
        raise UserError(f"{where}.label={label!r}: must be a number from 0 to 254")
    color = _read_color(entry["color"], f"{where}.color") if "color" in entry else None
    return _Class(name.strip(), label, color)


def _read_color(value: Any, where: str) -> Color:
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        red, green, blue = bytes.fromhex(value[1:])
        return red, green, blue
    if isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value)):
        return value[0], value[1], value[2]
    labels = "" if where.endswith("color") else "a number from 0 to 255, "
    raise UserError(f"{where}={value!r}: must be {labels}'#rrggbb' or [r, g, b]")


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255  # not True, which is an int too


def _check_object(entry: Any, where: str, keys: tuple[str, ...]) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {entry!r}: needs to be an object or a name")
    for key in entry:
        if key not in keys:
            raise UserError(f"{where}: key {key!r}: allowed are {', '.join(keys)}")


def _check_distinct(what: str, values: Sequence[Hashable]) -> None:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise UserError(f"{what} {value!r} is given twice")
