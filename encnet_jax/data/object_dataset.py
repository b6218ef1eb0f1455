"""Data set objects: whatever has a length and returns image and label by index.

Such as a PyTorch `Dataset`, a split of Hugging Face `datasets`, a Grain source, or a
list. They are called in threads, if these do not disturb each other, and hold class
indices.
"""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard, cast

import numpy as np
from jaxtyping import Real, UInt8

from encnet_jax.data.bands import Pixels, RangeSetting, declare_bands, scale_bands
from encnet_jax.data.class_table import check_class_names, given_names
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo, voc_colormap
from encnet_jax.data.datasets import Dataset, Encoded, Example
from encnet_jax.data.fingerprint import fingerprint
from encnet_jax.data.image_io import MIN_BRIGHTEST
from encnet_jax.data.label_check import check_label_counts
from encnet_jax.data.label_map import as_classes
from encnet_jax.data.object_check import check_threads, checksum
from encnet_jax.data.object_example import (
    LABEL_KEYS,
    brightest_of_unknown,
    errors_named,
    image_and_label,
    kind_of,
    label_array,
    only_key,
    orientation_of,
    raw_bands,
    rgb_pixels,
)
from encnet_jax.data.pair_checks import OrientationCheck
from encnet_jax.data.statistics import evenly_spaced, label_histogram
from encnet_jax.errors import UserError, shortened

_SAMPLE = 16  # examples that are read, and checked, before training starts
_ONE_AT_A_TIME = threading.RLock()  # of all objects, as two may share a file
_log = logging.getLogger(__name__)


class Examples(Protocol):
    """What a data set object must have."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Returns image and label; see `ObjectDataset`."""
        ...


class ObjectDataset:
    """A data set object, checked and converted example by example.

    An example is a pair of image and label, or a mapping with one of `IMAGE_KEYS` and
    one of `LABEL_KEYS`. The image is a Pillow image of 8 bits, or integers 0 to 255 of
    shape (h, w, 3), (h, w), (h, w, 1), or channels first; the label one integer, the
    class of the image, or a Pillow image or integers (h, w). Pillow images are turned
    upright by their EXIF orientation, as files are. Where `info` says that images are
    bands, an image has any real dtype and the shape (h, w, c) or (c, h, w).

    Args:
        info: Metadata of the data set; its label map plays no part.
        examples: The object.
        name: What error messages call it.
        ignore_label: As in `encnet_jax.fit`.

    Attributes:
        one_at_a_time: Whether threads wait for each other, see `check`.
    """

    def __init__(
        self,
        info: DatasetInfo,
        examples: Examples,
        name: str = "dataset",
        ignore_label: int | None = None,
    ):
        self.info = dataclasses.replace(info, label_map={}, label_colors={})
        self.examples = examples
        self.name = name
        self.ignore_label = ignore_label
        self.one_at_a_time = False
        self._orientations = OrientationCheck()

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        """Returns one example, called `dataset[7]`."""
        return Example(*self._read(index), f"{self.name}[{index}]")

    def encoded(self, index: int, *, raw_labels: bool = False) -> Encoded:
        """Returns the pixels of the image, and its labels, which are classes."""
        return self._read(index)

    def bands(self, index: int) -> Real[np.ndarray, "h w c"]:
        """Returns the values of an image as the object has them."""
        name = f"{self.name}[{index}]"
        with self._turn(), errors_named(name):
            image, _ = image_and_label(self.examples[index], name)
            return self._raw_bands(image, name)

    def fingerprint(self) -> str:
        """Returns a digest of the metadata and the length: objects have no other."""
        return fingerprint(self.info, len(self))

    def check(self) -> None:
        """Reads examples spread over the data set, alone and in threads.

        Warns if the first is not the same when read again; and if threads disturb each
        other, as with one open file: then one reads at a time from now on.

        Raises:
            UserError: One is invalid, or nothing can be learned from their labels, or
                images seem to have lost the lower 8 of 16 bits.
        """
        total, alone, brightest = np.zeros(256, np.int64), [], []
        indices = evenly_spaced(range(len(self)), _SAMPLE)
        for index in indices:
            name = f"{self.name}[{index}]"
            with errors_named(name):
                image, label = image_and_label(self.examples[index], name)
                brightest.append(brightest_of_unknown(image))
                pixels, labels = self._converted(image, label, name)
            total += label_histogram(np.atleast_2d(labels))
            alone.append(checksum(pixels, labels))
        where = f"{self.name}: labels of {len(indices)} examples"
        check_label_counts(where, total, self.ignore_label)
        if 0 < max(brightest) < MIN_BRIGHTEST >> 8:
            raise UserError(
                f"{self.name}: {len(indices)} images loaded from files have no value "
                f"above {max(brightest)}: Pillow keeps 8 bits of 16 per color; pass "
                "arrays of all bits and data.value_range, or, if the files have 8, "
                "np.asarray(image)"
            )
        check_threads(self, indices, alone)

    def _turn(self) -> contextlib.AbstractContextManager[Any]:
        return _ONE_AT_A_TIME if self.one_at_a_time else contextlib.nullcontext()

    def _read(self, index: int) -> tuple[Pixels, UInt8[np.ndarray, "..."]]:
        name = f"{self.name}[{index}]"
        with self._turn(), errors_named(name):
            image, label = image_and_label(self.examples[index], name)
            return self._converted(image, label, name)

    def _converted(
        self, image: Any, label: Any, name: str
    ) -> tuple[Pixels, UInt8[np.ndarray, "..."]]:
        pixels = self._pixels(image, name)
        labels = self._labels(label, name)
        if labels.ndim:
            # Last, as Pillow loads a PNG for it, and forgets how many bits it had.
            turned = [orientation_of(each, name) for each in (image, label)]
            self._orientations.compare(
                *(turned[0], f"{name}: image", turned[1], "its label"),
                size=pixels.shape[:2],
                label_size=labels.shape,
            )
        return pixels, labels

    def _pixels(self, image: Any, name: str) -> Pixels:
        if not self.info.banded:
            return rgb_pixels(image, f"{name}: image")
        raw = self._raw_bands(image, name)
        return scale_bands(raw, self.info.value_range, f"{name}: image")

    def _raw_bands(self, image: Any, name: str) -> Real[np.ndarray, "h w c"]:
        info = self.info
        return raw_bands(image, info.channels, f"{name}: image", info.value_range)

    def _labels(self, label: Any, name: str) -> UInt8[np.ndarray, "..."]:
        """Returns the classes, with `IGNORE_LABEL` for those to ignore."""
        labels = label_array(label, f"{name}: label")
        classifies = self.info.task == "classification"
        if labels.ndim != (0 if classifies else 2):
            allowed = "one class" if classifies else "(h, w)"
            raise UserError(f"{name}: label is {kind_of(label)}; must be {allowed}")
        classes = as_classes(labels, f"{name}: label", self.ignore_label)
        if classifies and classes == IGNORE_LABEL:
            raise UserError(f"{name}: an image without a class; leave it out")
        highest = classes.max(where=classes != IGNORE_LABEL, initial=0)
        if highest >= self.info.num_classes:
            raise UserError(
                f"{name}: class {highest}; there are {self.info.num_classes} names"
            )
        return classes


def as_datasets(
    dataset: Dataset | Examples,
    validation: Dataset | Examples | None = None,
    class_names: Sequence[str] = (),
    ignore_label: int | None = None,
    *,
    channels: int = 3,
    value_range: RangeSetting = (),
) -> tuple[Dataset, Dataset]:
    """Returns the splits of a training; each object as a checked `ObjectDataset`.

    Args:
        dataset: A data set or data set object, to train on.
        validation: One to be scored during training; that of training if None.
        class_names: One per class. Of image classification by default those of the
            object: of its feature (`datasets`), or its `classes` (torchvision). A
            `Dataset` has its own.
        ignore_label: As in `encnet_jax.fit`; of objects only.
        channels: Channels of the images of objects, as `data.channels`.
        value_range: Their range of values, as `data.value_range`.

    Raises:
        UserError: An object or one of its examples is invalid, or the class names are
            missing, or differ between the splits or from those of a `Dataset`; or
            `ignore_label` is given and no split is an object.
    """
    splits = {"dataset": dataset, "validation": validation}
    if validation is None:
        del splits["validation"]
    given = given_names(class_names)
    infos = [split.info for split in splits.values() if is_dataset(split)]
    info = infos[0] if infos else None
    for key in ("task", "class_names"):
        if len({getattr(each, key) for each in infos}) > 1:
            raise UserError(
                f"validation: {key} {_text(getattr(infos[1], key))}; the other split "
                f"has {_text(getattr(infos[0], key))}"
            )
    if info and given not in ((), info.class_names):
        raise UserError(
            f"class_names: {_text(given)}; the Dataset has {_text(info.class_names)}"
        )
    if ignore_label is not None and len(infos) == len(splits):
        raise UserError(
            f"ignore_label={ignore_label!r}: has no effect on a Dataset, which maps "
            "its labels itself; leave it out"
        )
    opened: list[Dataset] = []
    for name, split in splits.items():
        if is_dataset(split):
            opened.append(split)
            continue
        objects = cast(Examples, split)
        own, task = _names_and_task(objects, name)
        names = given or own
        info = info or named_classes(f"objects {len(objects)}", names, task)
        if names and names != info.class_names:
            raise UserError(
                f"{name}: class_names {_text(names)}; the other split has "
                f"{_text(info.class_names)}"
            )
        declared = declare_bands(info, channels, value_range)
        wrapped = ObjectDataset(declared, objects, name, ignore_label)
        wrapped.check()
        opened.append(wrapped)
    wrappers = [split for split in opened if isinstance(split, ObjectDataset)]
    one_at_a_time = any(wrapper.one_at_a_time for wrapper in wrappers)
    for wrapper in wrappers:
        wrapper.one_at_a_time = one_at_a_time
    return opened[0], opened[-1]


def _text(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else shortened([*value])


def named_classes(name: str, class_names: tuple[str, ...], task: str) -> DatasetInfo:
    """Returns the metadata of a data set of which only the classes are known.

    Raises:
        UserError: No class names, too many, or one that is empty or given twice.
    """
    if not class_names:
        raise UserError(
            "class_names: missing; fit and as_datasets need them, as not all labels of "
            "a data set object are read before training"
        )
    check_class_names(class_names, "class_names")
    if len(class_names) > IGNORE_LABEL:
        raise UserError(
            f"class_names: {len(class_names)} names; allowed are {IGNORE_LABEL}"
        )
    colors = voc_colormap(len(class_names))
    return DatasetInfo(name, class_names, colors, splits={}, task=task)


def is_dataset(split: Any) -> TypeGuard[Dataset]:
    """Returns whether it is a `Dataset`; Hugging Face's have another `info`."""
    return isinstance(getattr(split, "info", None), DatasetInfo)


def _names_and_task(examples: Any, name: str) -> tuple[tuple[str, ...], str]:
    """Returns the class names that an object itself has, if any, and its task.

    Raises:
        UserError: It is no data set object, or its first example is invalid.
    """
    kind = type(examples)
    if isinstance(examples, Mapping):
        keys = shortened([*map(str, examples)])
        raise UserError(f"{name}: a {kind.__name__} of {keys}; pass one of them")
    if not (hasattr(kind, "__len__") and hasattr(kind, "__getitem__")):
        raise UserError(
            f"{name}: {kind.__name__} lacks __len__ or __getitem__; examples are read "
            "by index, so that runs can be resumed"
        )
    if not len(examples):
        raise UserError(f"{name}: is empty; at least one example is needed")
    with errors_named(f"{name}[0]"):
        example = examples[0]
        label = image_and_label(example, f"{name}[0]")[1]
        if label_array(label, f"{name}[0]: label").ndim:
            return (), "segmentation"  # torchvision's `classes` are not of its masks
    names = getattr(examples, "classes", None)
    features = getattr(examples, "features", None)
    if isinstance(example, Mapping) and isinstance(features, Mapping):
        key = only_key(example, LABEL_KEYS, f"{name}[0]")
        names = getattr(features.get(key), "names", None)
    own = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
    return own, "classification"
