"""Training from arrays, for notebooks: `fit` takes images and returns a predictor."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from encnet_jax.config import default
from encnet_jax.data.augment_device import ArrayDataset
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo, voc_colormap
from encnet_jax.errors import UserError
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
    validation: Arrays | None = None,
    workdir: str | Path = "runs/fit",
) -> Segmenter | Classifier:
    """Trains on images in memory, augmented on the device; needs no TensorFlow.

    Call it again with the same arrays and workdir to resume.

    Args:
        images: uint8 (n, h, w, 3), RGB; NumPy or JAX.
        labels: Integers (n, h, w), classes from 0 or `IGNORE_LABEL` (255); or (n,), the
            class of each image.
        config: See `encnet_jax.config.default`; `small_config` of the images if None.
        class_names: One per class; default: `class 0`, `class 1`, …
        validation: Images and labels scored during training, to choose the best
            checkpoint; those of training if None.
        workdir: Folder of the run, as `train.py` writes it.

    Returns:
        A predictor with the weights of the best checkpoint.

    Raises:
        UserError: Arrays or settings do not fit together, or SIGTERM ended the run.
        FloatingPointError: The loss is not finite.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check(images, labels)
    info = _info(images, labels, class_names)
    _check_classes(labels, info)
    config = (config or small_config(images, labels)).copy_and_resolve_references()
    config.data.cache_on_device = True
    config.data.name = info.name
    check_config(config)
    dataset = scored = ArrayDataset(info, images, labels)
    if validation is not None:
        images, labels = map(np.asarray, validation)
        _check(images, labels)
        _check_classes(labels, info)
        scored = ArrayDataset(info, images, labels)
    if train(config, Path(workdir), datasets=(dataset, scored)) is None:
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
    return config


def _check(images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"images: {images.dtype} {images.shape}; must be uint8 (n, h, w, 3)"
        )
    if not images.size:
        raise UserError(f"images: {images.shape} is empty; at least one is needed")
    if labels.shape not in (images.shape[:3], images.shape[:1]):
        raise UserError(
            f"labels: {labels.shape}; allowed are {images.shape[:3]} and "
            f"{images.shape[:1]}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or not (
        0 <= labels.min() <= labels.max() <= IGNORE_LABEL
    ):
        raise UserError(
            f"labels: {labels.dtype}, {labels.min()} to {labels.max()}; must be "
            f"integers from 0 to {IGNORE_LABEL}"
        )


def _info(
    images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> DatasetInfo:
    """Returns the data set's facts; its name has a checksum of the arrays.

    So a workdir cannot resume with other arrays.
    """
    checksum = zlib.crc32(np.ascontiguousarray(images).data)
    checksum = zlib.crc32(np.ascontiguousarray(labels).data, checksum)
    classes = range(max(_highest(labels) + 1, 2))
    names = tuple(class_names or (f"class {index}" for index in classes))
    return DatasetInfo(
        name=f"arrays {checksum:08x}",
        class_names=names,
        colors=voc_colormap(len(names)),
        splits={},
        task="classification" if labels.ndim == 1 else "segmentation",
    )


def _check_classes(labels: np.ndarray, info: DatasetInfo) -> None:
    if (labels.ndim == 1) != (info.task == "classification"):
        raise UserError(f"labels: {labels.shape}; must be labels of {info.task}")
    if _highest(labels) >= info.num_classes:
        raise UserError(
            f"labels: class {_highest(labels)}; there are {info.num_classes} names"
        )


def _highest(labels: np.ndarray) -> int:
    classes = labels[labels != IGNORE_LABEL]
    return int(classes.max()) if classes.size else 0
