"""Training from arrays, for notebooks: three lines from pictures to predictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from encnet_jax.classifier import Classifier
from encnet_jax.config import default, validate
from encnet_jax.data.arrays import ArraySource
from encnet_jax.data.classes import IGNORE_LABEL, DatasetInfo, distinct_colors
from encnet_jax.errors import UserError
from encnet_jax.segmenter import Segmenter
from encnet_jax.training import train

Arrays = tuple[np.ndarray, np.ndarray]


def fit(
    images: np.ndarray,
    labels: np.ndarray,
    config: ConfigDict | None = None,
    *,
    class_names: Sequence[str] = (),
    validation: Arrays | None = None,
    workdir: str | Path = "runs/fit",
) -> Segmenter | Classifier:
    """Trains on images in memory, augmented on the device; needs no TensorFlow.

    Called again with the same workdir it goes on where that stands.

    Args:
        images: uint8 (n, h, w, 3), RGB.
        labels: Integers (n, h, w), classes from 0 or `IGNORE_LABEL` (255); or (n,), the
            class of each image.
        config: See `encnet_jax.config.default`; `small_config` of the images if None.
        class_names: One a class; their numbers if none.
        validation: Images and labels that are scored while training, and choose the
            best checkpoint; those of training if None.
        workdir: Folder of the run, as `train.py` writes it.

    Returns:
        The best model, as a function of a picture.

    Raises:
        UserError: Arrays or settings do not fit each other; or SIGTERM ended the run.
        FloatingPointError: The loss is not finite.
    """
    _check(images, labels)
    info = _info(labels, class_names)
    config = (config or small_config(images, labels)).copy_and_resolve_references()
    config.data.in_memory = True
    config.data.name = info.name
    validate(config)
    if validation is not None:
        _check(*validation)
    sources = [
        ArraySource(info, *(np.asarray(array) for array in pair))
        for pair in ((images, labels), validation or (images, labels))
    ]
    if train(config, Path(workdir), sources=(sources[0], sources[1])) is None:
        raise UserError(f"{workdir}: told to stop; call again to go on")
    if info.task == "classification":
        return Classifier.from_workdir(workdir)
    return Segmenter.from_workdir(workdir)


def small_config(images: np.ndarray, labels: np.ndarray) -> ConfigDict:
    """Returns a configuration for small sets: a ResNet-18, or `encnet14` of width 32.

    It takes 1,000 steps of 16 images at the size of the images; change what you like.
    """
    height, width = images.shape[1:3]
    config = default()
    config.total_steps = config.eval_every = config.checkpoint_every = 1000
    config.optimizer.warmup_steps = 50
    config.optimizer.head_factor = 1.0
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
            f"images: {images.dtype} {images.shape}; uint8 (n, h, w, 3) is needed"
        )
    if labels.shape not in (images.shape[:3], images.shape[:1]) or not len(images):
        raise UserError(
            f"labels: {labels.shape}; allowed are {images.shape[:3]} and "
            f"{images.shape[:1]}, at least one image"
        )
    if not np.issubdtype(labels.dtype, np.integer) or not (
        0 <= labels.min() <= labels.max() <= IGNORE_LABEL
    ):
        raise UserError(
            f"labels: {labels.dtype}, {labels.min()} to {labels.max()}; integers from "
            f"0 to {IGNORE_LABEL} are needed"
        )


def _info(labels: np.ndarray, class_names: Sequence[str]) -> DatasetInfo:
    classes = labels[labels != IGNORE_LABEL]
    highest = int(classes.max()) if classes.size else 0
    names = tuple(class_names or (f"class {n}" for n in range(max(highest + 1, 2))))
    if highest >= len(names):
        raise UserError(f"labels: class {highest}; {len(names)} names were given")
    return DatasetInfo(
        name="arrays",
        class_names=names,
        colors=distinct_colors(len(names)),
        splits={},
        task="classification" if labels.ndim == 1 else "segmentation",
    )
