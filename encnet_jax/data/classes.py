"""What is known of each data set: classes, colours, splits, normalisation."""

import dataclasses
from collections.abc import Mapping

from encnet_jax.data import scenes

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
        label_map: Raw label -> class for raw labels that are not their class already;
            `IGNORE_LABEL` for void. Raw labels 0 to n - 1 that are not named stay.
        mean: Mean of the RGB channels on the scale 0 to 1.
        std: Deviation likewise.
        citation: Where the data come from.
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    splits: Mapping[str, int | None]
    label_map: Mapping[int, int] = dataclasses.field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    citation: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


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
    label_map={11: IGNORE_LABEL},
    citation="Brostow et al., ECCV 2008; split of Badrinarayanan et al., PAMI 2017.",
)

DATASETS = {info.name: info for info in (SCENES, CAMVID)}
