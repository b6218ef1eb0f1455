"""Training from arrays, for notebooks: `fit` takes images and returns a predictor."""

import zlib
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int64, UInt8
from ml_collections import ConfigDict

from encnet_jax.config import default
from encnet_jax.data.augment_device import ArrayDataset
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo, voc_colormap
from encnet_jax.data.statistics import Statistics, label_histogram
from encnet_jax.errors import UserError
from encnet_jax.files import user_path
from encnet_jax.predict.predictor import Classifier, Segmenter
from encnet_jax.run.model_config import check_config
from encnet_jax.train import train

Arrays = tuple[ArrayLike, ArrayLike]


def fit(
    images: ArrayLike,
    labels: ArrayLike,
    config: ConfigDict | None = None,
    *,
    class_names: Sequence[str] = (),
    ignore_label: int | None = None,
    validation: Arrays | None = None,
    workdir: str | Path = "runs/fit",
) -> Segmenter | Classifier:
    """Trains on images in memory, augmented on the device; needs no TensorFlow.

    Call it again with the same arrays and workdir to resume.

    Args:
        images: uint8 (n, h, w, 3), RGB; NumPy or JAX.
        labels: Integers or Booleans (n, h, w), classes from 0 or `ignore_label`; or
            (n,), the class of each image.
        config: See `encnet_jax.config.default`; `small_config` of the images if None.
        class_names: One per class; default: `class 0`, `class 1`, …
        ignore_label: Label of the pixels that are not learned and not scored, such as
            255, 0 or -1; the others keep their values as classes. By default 255, but
            then labels that hold nothing but 0 and 255 are refused: they may be masks
            of two classes, to be passed as `labels == 255`.
        validation: Images and labels scored during training, to choose the best
            checkpoint; those of training if None.
        workdir: Folder of the run, as `train.py` writes it.

    Returns:
        A predictor with the weights of the best checkpoint.

    Raises:
        UserError: Arrays or settings do not fit together, or SIGTERM ended the run.
        FloatingPointError: The loss is not finite.
    """
    workdir = user_path(workdir)
    images, labels = np.asarray(images), np.asarray(labels)
    classes = _classes("labels", images, labels, ignore_label)
    counts = _count("labels", classes, ignore_label)
    # Without a mapping as they were given, to resume runs of earlier versions.
    mapped = ignore_label not in (None, IGNORE_LABEL)
    info = _info(images, classes if mapped else labels, _highest(counts), class_names)
    _check_classes("labels", classes, counts, info)
    config = (config or small_config(images, classes)).copy_and_resolve_references()
    config.data.cache_on_device = True
    config.data.name = info.name
    check_config(config)
    dataset = scored = ArrayDataset(info, images, classes)
    dataset.statistics = _statistics(counts, classes, info)
    if validation is not None:
        name = "validation labels"
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise UserError("validation: must be a pair of images and labels")
        images, labels = map(np.asarray, validation)
        classes = _classes(name, images, labels, ignore_label)
        counts = _count(name, classes, ignore_label)
        _check_classes(name, classes, counts, info)
        scored = ArrayDataset(info, images, classes)
    if train(config, workdir, datasets=(dataset, scored)) is None:
        raise UserError(f"{workdir}: stopped by SIGTERM; call fit again to resume")
    if info.task == "classification":
        return Classifier.from_workdir(workdir)
    return Segmenter.from_workdir(workdir)


def small_config(images: np.ndarray, labels: np.ndarray) -> ConfigDict:
    """Returns a configuration for small data sets, as a start to edit.

    EncNet on a ResNet-18, or `encnet14` of width 32 for image classification; 1,000
    steps of 16 images at their own size.
    """
    height, width = images.shape[1:3]
    config = default()
    config.total_steps = config.eval_every = config.checkpoint_every = 1000
    config.optimizer.warmup_steps = 50
    config.optimizer.head_lr_mult = 1.0
    config.learning_rate = 0.02
    config.data.base_size = max(height, width)
    config.data.crop_size = min(height, width)
    if labels.ndim == 1:
        config.model.name = "encnet14"
        config.model.width, config.model.num_codes = 32, 16
        config.data.pad = config.data.crop_size // 8
        config.learning_rate = 0.1
    else:
        config.model.backbone = "resnet18"
        config.model.width, config.model.head_channels = 32, 128
        # Either way places features where they lie, in its own sizes.
        stride = config.model.output_stride
        config.model.align_corners = config.data.crop_size % stride == 1
        config.model.scale_init = "scaled"
    return config


def _classes(
    name: str, images: np.ndarray, labels: np.ndarray, ignore_label: int | None
) -> UInt8[np.ndarray, "n ..."]:
    """Checks arrays; returns the labels with `IGNORE_LABEL` for those to ignore."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"images: {images.dtype} {images.shape}; must be uint8 (n, h, w, 3)"
        )
    if not images.size:
        raise UserError(f"images: {images.shape} is empty; at least one is needed")
    if labels.shape not in (images.shape[:3], images.shape[:1]):
        raise UserError(
            f"{name}: {labels.shape}; allowed are {images.shape[:3]} and "
            f"{images.shape[:1]}"
        )
    ignored = IGNORE_LABEL if ignore_label is None else ignore_label
    if not isinstance(ignored, Integral) or isinstance(ignored, bool):
        raise UserError(f"ignore_label={ignore_label!r}: must be an integer")
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    void, highest = None, IGNORE_LABEL
    if ignored != IGNORE_LABEL:
        void, highest = labels == ignored, IGNORE_LABEL - 1
        labels = np.where(void, 0, labels)
    if not np.issubdtype(labels.dtype, np.integer) or not (
        0 <= labels.min() <= labels.max() <= highest
    ):
        raise UserError(
            f"{name}: {labels.dtype}, {labels.min()} to {labels.max()}; must be "
            f"integers from 0 to {IGNORE_LABEL - 1}, or ignore_label={ignored}"
        )
    classes = labels.astype(np.uint8)
    if void is not None:
        classes[void] = IGNORE_LABEL
    return classes


def _count(
    name: str, classes: UInt8[np.ndarray, "n ..."], ignore_label: int | None
) -> Int64[np.ndarray, "m 256"]:
    """Counts the labels of each image, or of all if each image has one.

    Raises:
        UserError: Nothing can be learned from the labels.
    """
    items = classes if classes.ndim == 3 else classes[None, None]
    counts = np.stack([label_histogram(item) for item in items])
    total = counts.sum(0)
    if ignore_label is None and total[IGNORE_LABEL] and not total[1:IGNORE_LABEL].any():
        raise UserError(
            f"{name}: nothing but 0 and 255; if 255 is a class, pass labels == 255, "
            "which is 0 and 1; if it marks ignored pixels, pass ignore_label=255"
        )
    if not total[:IGNORE_LABEL].any():
        raise UserError(f"{name}: no pixel has a class; all are ignored")
    return counts


def _info(
    images: np.ndarray, labels: np.ndarray, highest: int, class_names: Sequence[str]
) -> DatasetInfo:
    """Returns the data set's facts; its name has a checksum of the arrays.

    So a workdir cannot resume with other arrays.
    """
    checksum = zlib.crc32(np.ascontiguousarray(images).data)
    checksum = zlib.crc32(np.ascontiguousarray(labels).data, checksum)
    names = tuple(map(str, class_names))
    names = names or tuple(f"class {n}" for n in range(max(highest + 1, 2)))
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"class_names: {twice!r} is given twice")
    if len(names) > IGNORE_LABEL:
        raise UserError(f"class_names: {len(names)} names; allowed are {IGNORE_LABEL}")
    return DatasetInfo(
        name=f"arrays {checksum:08x}",
        class_names=names,
        colors=voc_colormap(len(names)),
        splits={},
        task="classification" if labels.ndim == 1 else "segmentation",
    )


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
