"""Class tables: names, labels and colors in `tables/NAME.csv`; colors for others."""

import csv
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageColor

from encnet_jax.data.input_files import read_text
from encnet_jax.errors import UserError
from encnet_jax.files import user_path

IGNORE_LABEL = 255  # class index of ignored pixels; so there are 255 classes at most


def read_rows(name: str) -> list[dict[str, str]]:
    """Returns the rows of `tables/NAME.csv`, each as column -> cell."""
    text = (Path(__file__).parent / "tables" / f"{name}.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def read_table(name: str, void: Iterable[int] = ()) -> dict[str, Any]:
    """Reads the class table `tables/NAME.csv`, one row per class, in order.

    Args:
        name: Name of the table; its columns are `label` (raw), `name` and `color`
            (#rrggbb).
        void: Raw labels to ignore, unless they belong to a class.

    Returns:
        The fields `class_names`, `colors` and `label_map` of a `DatasetInfo`.
    """
    rows = read_rows(name)
    return {
        "class_names": tuple(row["name"] for row in rows),
        "colors": tuple(ImageColor.getrgb(row["color"]) for row in rows),
        "label_map": {
            **{label: IGNORE_LABEL for label in void},
            **{int(row["label"]): index for index, row in enumerate(rows)},
        },
    }


def given_names(class_names: Iterable[Any]) -> tuple[str, ...]:
    """Returns the class names that a caller gave, `()` for none.

    Raises:
        UserError: They are one text, whose letters would each become a class.
    """
    if isinstance(class_names, str):
        raise UserError(
            f"class_names={class_names!r}: must be a list, one name per class"
        )
    return tuple(map(str, class_names))


def listed_names(value: str) -> list[str]:
    """Returns the names that a flag lists: comma-separated, or lines of a file.

    Blank lines of a file are left out; names are as written, spaces around included.

    Args:
        value: Value of the flag; without a comma the name of a file if there is one.

    Raises:
        UserError: The file cannot be read, or is not UTF-8.
    """
    if value and "," not in value and os.path.isfile(path := user_path(value)):
        return [line for line in read_text(path).splitlines() if line.strip()]
    return value.split(",")


def is_name(value: Any) -> bool:
    """Returns whether a value is a text that is not blank and that a file can hold."""
    # JSON may hold half of a surrogate pair, which UTF-8 cannot.
    is_text = isinstance(value, str) and not re.search("[\ud800-\udfff]", value)
    return is_text and bool(value.strip())


def check_class_names(names: Sequence[str], where: str) -> None:
    """Raises `UserError`, which starts with `where`, for a repeated name or none."""
    for index, name in enumerate(names):
        if not is_name(name) or name in names[:index]:
            raise UserError(f"{where}: {name!r}: must be a name, given once")


def voc_colormap(count: int) -> tuple[tuple[int, int, int], ...]:
    """Returns the first `count` colors of the VOC color map after black."""
    colors = []
    for index in range(count):
        channels, bits = [0, 0, 0], index + 1  # black marks ignored pixels
        for shift in range(7, -1, -1):
            for channel in range(3):
                channels[channel] |= ((bits >> channel) & 1) << shift
            bits >>= 3
        colors.append((channels[0], channels[1], channels[2]))
    return tuple(colors)


def as_tuples(value: Any) -> Any:
    """Returns nested lists, as JSON has them, as tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value
