"""Training in one call, for notebooks: `fit` takes images and returns a predictor."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int64, UInt8
from ml_collections import ConfigDict

from encnet_jax.config import default
from encnet_jax.data.array_dataset import ArrayDataset
from encnet_jax.data.bands import RGB_INFO, ImageFormat, declare_bands
from encnet_jax.data.class_table import given_names
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.label_check import check_label_counts
from encnet_jax.data.label_map import as_classes
from encnet_jax.data.object_dataset import Examples, as_datasets, named_classes
from encnet_jax.data.object_example import FILLED_LABELS, unmasked
from encnet_jax.data.statistics import Statistics, label_histogram
from encnet_jax.errors import UserError
from encnet_jax.files import user_path
from encnet_jax.predict.predictor import Classifier, Segmenter
from encnet_jax.run.model_config import check_config
from encnet_jax.train import train

Arrays = tuple[ArrayLike, ArrayLike]


def fit(
    images: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    config: ConfigDict | None = None,
    *,
    dataset: Examples | None = None,
    class_names: Sequence[str] = (),
    ignore_label: int | None = None,
    validation: Arrays | Examples | None = None,
    workdir: str | Path = "runs/fit",
) -> Segmenter | Classifier:
    """Trains on images in memory, or on a data set object; needs no TensorFlow.

    Arrays are augmented on the device. Examples of an object are read and augmented in
    threads, a batch ahead of the network; with `data.cache_on_device`, which requires
    images of one size, they are kept on the device as arrays are.

    Call it again with the same arguments and workdir to resume. A workdir whose run is
    complete trains nothing more: its model is loaded, and a warning names settings that
    it was not trained with. Other images than before are not noticed.

    Args:
        images: uint8 (n, h, w, 3), RGB; NumPy or JAX. Or (n, h, w, c) of any real
            dtype, with other channels or with `data.value_range` in the configuration.
        labels: Integers or Booleans (n, h, w), classes from 0 or `ignore_label`; or
            (n,), the class of each image.
        config: See `encnet_jax.config.default`. None: `small_config` of the images, or
            of the first example of the data set object.
        dataset: In place of images and labels: any object with `__len__` and
            `__getitem__` that returns image and label, such as a PyTorch `Dataset`, a
            split of Hugging Face `datasets`, a Grain source, or a list
            (docs/data.md). It is called in several threads, or by one at a time where
            a check before training finds that these disturb each other.
        class_names: One per class; default: `class 0`, `class 1`, … A data set object
            needs them, unless it is for classification and has its own.
        ignore_label: Label of the pixels that are not learned and not scored, such as
            255, 0 or -1; the others keep their values as classes. By default 255, but
            then labels that hold nothing but 0 and 255 are refused: they may be masks
            of two classes, to be passed as `labels == 255`.
        validation: Images and labels, or with `dataset` another object, scored during
            training, to choose the best checkpoint; those of training if None.
        workdir: Folder of the run, as `train.py` writes it.

    Returns:
        A predictor with the weights of the best checkpoint.

    Raises:
        UserError: Arrays, objects or settings do not fit together, or SIGTERM ended the
            run.
        FloatingPointError: The loss is not finite.
    """
    workdir = user_path(workdir)
    splits: tuple[Dataset, Dataset]
    if dataset is None:
        if images is None or labels is None:
            raise UserError("images, labels: both must be given, or dataset")
        images = _as_array("images", images)
        labels = _as_array("labels", labels)
        channels = 3 if config is None else config.data.channels
        _check_axes("images", images.shape, channels)
        image_format = _image_format(config, images.shape)
        splits = _array_datasets(
            images, labels, class_names, ignore_label, validation, image_format
        )
        config = config or small_config(images, splits[0].labels)
        config = config.copy_and_resolve_references()
        config.data.cache_on_device = True
    else:
        if images is not None or labels is not None:
            raise UserError(
                "dataset: takes the place of images and labels; pass either"
            )
        splits = as_datasets(
            dataset,
            cast(Examples, validation),
            class_names,
            ignore_label,
            **_image_format(config, ())._asdict(),
        )
        config = (config or _config_of(splits[0])).copy_and_resolve_references()
    info = splits[0].info
    config.data.name = info.name
    check_config(config)
    if train(config, workdir, datasets=splits) is None:
        raise UserError(f"{workdir}: stopped by SIGTERM; call fit again to resume")
    if info.task == "classification":
        return Classifier.from_workdir(workdir)
    return Segmenter.from_workdir(workdir)


def _image_format(config: ConfigDict | None, shape: tuple[int, ...]) -> ImageFormat:
    """Returns the format of the images; without a configuration by a shape."""
    if config is None:
        return ImageFormat(shape[-1] if len(shape) == 4 else 3)
    return ImageFormat(config.data.channels, config.data.value_range)


def _as_array(name: str, values: Any) -> np.ndarray:
    """Returns an array; raises `UserError` for what is none, as of several shapes."""
    try:
        return unmasked(values, name, FILLED_LABELS if "labels" in name else "")
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"{name}: {error}; for images of several sizes pass dataset="
        ) from error


def _check_axes(name: str, shape: tuple[int, ...], channels: int) -> None:
    """Raises `UserError` for the shape of images whose channels seem to come first."""
    if len(shape) == 4 and shape[3] != channels and shape[1] < min(shape[2:]):
        raise UserError(
            f"{name}: {shape}; channels must be the last axis, (n, h, w, c): "
            "np.moveaxis(images, 1, -1); if they are, give a config with "
            f"data.channels={shape[3]}"
        )


def small_config(images: np.ndarray, labels: np.ndarray) -> ConfigDict:
    """Returns a configuration for small data sets, as a start to edit.

    EncNet on a ResNet-18, or `encnet14` of width 32 for image classification, trained
    for 1,000 steps of 16 images at their own size. In segmentation, the crop size is a
    multiple of the output stride, or that plus 1.
    """
    _check_axes("images", images.shape, 3)
    height, width = images.shape[1:3]
    config = default()
    config.total_steps = config.eval_every = config.checkpoint_every = 1000
    config.optimizer.warmup_steps = 50
    config.optimizer.head_lr_mult = 1.0
    config.learning_rate = 0.02
    config.data.channels = images.shape[-1]
    config.data.base_size = max(height, width)
    config.data.crop_size = min(height, width)
    if labels.ndim == 1:
        config.model.name = "encnet14"
        config.model.width, config.model.num_codes = 32, 16
        config.model.scale_init = "scaled"
        config.data.pad = config.data.crop_size // 8
        config.learning_rate = 0.1
    else:
        config.model.backbone = "resnet18"
        config.model.width, config.model.head_channels = 32, 128
        # Either way places features where they lie, in its own sizes.
        rest = config.data.crop_size % config.model.output_stride
        config.model.align_corners = rest == 1
        if 1 < rest < config.data.crop_size:
            config.data.crop_size -= rest
        config.model.pad_to_stride = True
        config.model.scale_init = "scaled"
    return config


def _config_of(dataset: Dataset) -> ConfigDict:
    """Returns `small_config` of the first example; others may differ in size."""
    first = dataset[0]
    config = small_config(first.image[None], first.labels[None])
    if dataset.info.task == "segmentation":
        config.evaluation.mode = "slide"  # windows of one shape compile once
    return config


def _array_datasets(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    ignore_label: int | None,
    validation: Any,
    image_format: ImageFormat,
) -> tuple[ArrayDataset, ArrayDataset]:
    """Checks arrays; returns the splits to train on and to score."""
    _check_images("images", images, image_format)
    classes = _classes("labels", images, labels, ignore_label)
    counts = _count("labels", classes, ignore_label)
    # Without a mapping as they were given, to resume runs of earlier versions.
    mapped = ignore_label not in (None, IGNORE_LABEL)
    info = _info(images, classes if mapped else labels, _highest(counts), class_names)
    info = declare_bands(info, *image_format)
    _check_classes("labels", classes, counts, info)
    dataset = ArrayDataset(info, images, classes)
    dataset.statistics = _statistics(counts, classes, info)
    if validation is None:
        return dataset, dataset
    name = "validation labels"
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise UserError("validation: must be a pair of images and labels")
    images = _as_array("validation images", validation[0])
    labels = _as_array(name, validation[1])
    _check_axes("validation images", images.shape, image_format.channels)
    _check_images("validation images", images, image_format)
    classes = _classes(name, images, labels, ignore_label)
    counts = _count(name, classes, ignore_label)
    _check_classes(name, classes, counts, info)
    return dataset, ArrayDataset(info, images, classes)


def _classes(
    name: str, images: np.ndarray, labels: np.ndarray, ignore_label: int | None
) -> UInt8[np.ndarray, "n ..."]:
    """Checks arrays; returns the labels with `IGNORE_LABEL` for those to ignore."""
    if labels.shape not in (images.shape[:3], images.shape[:1]):
        raise UserError(
            f"{name}: {labels.shape}; allowed are {images.shape[:3]} and "
            f"{images.shape[:1]}"
        )
    return as_classes(labels, name, ignore_label)


def _check_images(name: str, images: np.ndarray, image_format: ImageFormat) -> None:
    """Raises `UserError` unless an array holds images of a format."""
    channels = image_format.channels
    banded = declare_bands(RGB_INFO, *image_format).banded
    kinds = "uif" if banded else "u"
    fits = images.ndim == 4 and images.shape[-1] == channels
    if (
        not fits
        or images.dtype.kind not in kinds
        or (not banded and images.dtype != np.uint8)
    ):
        dtype = "numbers" if banded else "uint8"
        raise UserError(
            f"{name}: {images.dtype} {images.shape}; must be {dtype} (n, h, w, "
            f"{channels})"
        )
    if not images.size:
        raise UserError(f"{name}: {images.shape} is empty; at least one is needed")


def _count(
    name: str, classes: UInt8[np.ndarray, "n ..."], ignore_label: int | None
) -> Int64[np.ndarray, "m 256"]:
    """Counts the labels of each image, or of all if each image has one.

    Raises:
        UserError: Nothing can be learned from the labels.
    """
    items = classes if classes.ndim == 3 else classes[None, None]
    counts = np.stack([label_histogram(item) for item in items])
    check_label_counts(name, counts.sum(0), ignore_label)
    return counts


def _info(
    images: np.ndarray, labels: np.ndarray, highest: int, class_names: Sequence[str]
) -> DatasetInfo:
    """Returns the data set's facts; its name has a checksum of the arrays.

    So a workdir cannot resume with other arrays.
    """
    checksum = zlib.crc32(np.ascontiguousarray(images).data)
    checksum = zlib.crc32(np.ascontiguousarray(labels).data, checksum)
    names = given_names(class_names)
    names = names or tuple(f"class {n}" for n in range(max(highest + 1, 2)))
    task = "classification" if labels.ndim == 1 else "segmentation"
    return named_classes(f"arrays {checksum:08x}", names, task)


def _check_classes(
    name: str, classes: np.ndarray, counts: np.ndarray, info: DatasetInfo
) -> None:
    classifies = info.task == "classification"
    if (classes.ndim == 1) != classifies:
        raise UserError(f"{name}: {classes.shape}; must be labels of {info.task}")
    if classifies and counts[:, IGNORE_LABEL].any():
        raise UserError(f"{name}: images without a class; leave them out")
    if _highest(counts) >= info.num_classes:
        raise UserError(
            f"{name}: class {_highest(counts)}; there are {info.num_classes} names"
        )


def _highest(counts: Int64[np.ndarray, "m 256"]) -> int:
    """Returns the highest class that occurs."""
    return int(np.flatnonzero(counts[:, :IGNORE_LABEL].any(0))[-1])


def _statistics(
    counts: Int64[np.ndarray, "m 256"], classes: np.ndarray, info: DatasetInfo
) -> Statistics:
    statistics = Statistics.empty(info.num_classes)
    height, width = (*classes.shape[1:], 1, 1)[:2]
    for index, row in enumerate(counts):
        statistics.add(index, row, (height, width))
    return statistics
