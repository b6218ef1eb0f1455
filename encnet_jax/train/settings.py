"""Settings of a training run: checks beyond one key, and arguments made from them."""

import logging
from collections.abc import Sequence
from typing import Any

import optax
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.errors import UserError
from encnet_jax.models.registry import segments
from encnet_jax.optimizer import cosine_schedule, poly_schedule
from encnet_jax.train.geometry import warn_of_geometry

_log = logging.getLogger(__name__)

# Settings that only segmentation has -> what they must be otherwise.
_REFUSED_BY_CLASSIFIERS: dict[str, Any] = {
    "loss.class_balance": "",
    "loss.hard_pixel_fraction": 1.0,
    "loss.lovasz_weight": 0.0,
    "data.rotation": 0.0,
    "data.class_crop_rate": 0.0,
    "data.resize": "host",
}


def check_task(config: ConfigDict, info: DatasetInfo) -> None:
    """Raises `UserError` if the model or its loss does not fit the data set."""
    classifies = not segments(config.model.name)
    if classifies != (info.task == "classification"):
        kind = "whole images" if classifies else "pixels"
        raise UserError(
            f"model.name={config.model.name!r}: classifies {kind}; data.name="
            f"{config.data.name!r} is for {info.task}"
        )
    count = len(config.loss.class_weights)
    if count and (classifies or count != info.num_classes):
        allowed = 0 if classifies else f"0 or {info.num_classes}"
        raise UserError(
            f"loss.class_weights has {count} values; {info.name} allows {allowed}"
        )
    if config.data.pad and not classifies:
        raise UserError(
            f"data.pad={config.data.pad}: only for image classification; allowed is 0"
        )
    for key, only in _REFUSED_BY_CLASSIFIERS.items():
        group, name = key.split(".")
        value = config[group][name]
        if classifies and value != only:
            raise UserError(
                f"{key}={value!r}: only for segmentation; allowed is {only!r}"
            )


def check_resize(config: ConfigDict) -> None:
    """Raises `UserError` if nothing would read how crops are resized."""
    data = config.data
    if data.cache_on_device and data.resize != "host":
        raise UserError(
            f"data.resize={data.resize!r}: must be 'host' with "
            "data.cache_on_device=True, which makes crops from the arrays on the device"
        )
    if data.padded_size and data.resize != "device":
        raise UserError(
            f"data.padded_size={data.padded_size}: must be 0 without "
            "data.resize='device'"
        )


def log_warnings(config: ConfigDict, resumes: bool = False) -> None:
    """Warns about settings that are valid but probably a mistake.

    Args:
        config: See `encnet_jax.config`.
        resumes: Whether a run is resumed, whose network stays as it is.
    """
    if not resumes:
        warn_of_geometry(config)
        warn_of_scales(config)
    warn_of_random_backbone(config)
    warn_of_learning_rate(config)


def warn_of_learning_rate(config: ConfigDict) -> None:
    """Warns where no parameter learns at the rate that is set, and logged."""
    factor = config.optimizer.head_lr_mult
    if not segments(config.model.name) and factor != 1:
        _log.warning(
            "WARNING: optimizer.head_lr_mult=%g multiplies the learning rate of all "
            "parameters of %s, which has no backbone. Set 1, and learning_rate to what "
            "it shall be",
            *(factor, config.model.name),
        )


def warn_of_random_backbone(config: ConfigDict) -> None:
    """Warns where the backbone keeps the random weights that it starts with."""
    if config.model.freeze_backbone and not config.model.weights:
        _log.warning(
            "WARNING: model.freeze_backbone=True without model.weights: the backbone "
            "keeps its random initial weights, and only the head is trained. Set "
            "model.weights, or model.freeze_backbone=False"
        )


def warn_of_scales(config: ConfigDict) -> None:
    """Warns where codewords are learned from scratch with the scales of the original.

    Classification is left out: the recipe for CIFAR-10 repeats the paper's.
    """
    model = config.model
    encodes = model.name == "encnet" and model.num_codes > 0
    if encodes and not model.weights and model.scale_init == "original":
        _log.warning(
            "WARNING: model.scale_init=original from scratch: at first a few codewords "
            "take most pixels, and others get little gradient. Set "
            "model.scale_init=scaled"
        )


def warn_of_splits(config: ConfigDict) -> None:
    """Warns where the images that choose the best checkpoint are trained on."""
    trained, scored = config.data.train_split, config.evaluation.split
    if scored == trained or (trained == "trainval" and scored in ("train", "val")):
        _log.warning(
            "WARNING: evaluation.split=%s is trained on (data.train_split=%s): its "
            "scores, the best checkpoint, and early stopping say nothing about other "
            "images. Take the last checkpoint, with --step=latest",
            *(scored, trained),
        )


def check_batch_size(config: ConfigDict, devices: int) -> None:
    """Raises `UserError` if the devices cannot share a micro-batch equally."""
    if config.batch_size // config.grad_accum_steps % devices:
        raise UserError(
            f"batch_size={config.batch_size}: must be a multiple of {devices} devices "
            f"times grad_accum_steps={config.grad_accum_steps}"
        )


def create_schedule(config: ConfigDict) -> optax.Schedule:
    """Returns the learning-rate schedule set in `optimizer`."""
    base, steps, settings = config.learning_rate, config.total_steps, config.optimizer
    options = dict(
        warmup_steps=settings.warmup_steps, min_learning_rate=settings.min_learning_rate
    )
    if settings.schedule == "cosine":
        return cosine_schedule(base, steps, **options)
    return poly_schedule(base, steps, settings.power, **options)


def optimizer_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `create_optimizer` after the schedule."""
    keys = (
        *("name", "momentum", "nesterov", "beta2"),
        *("weight_decay", "head_lr_mult", "max_grad_norm"),
    )
    settings = {key: config.optimizer[key] for key in keys}
    return {**settings, "freeze_backbone": config.model.freeze_backbone}


def loss_settings(
    config: ConfigDict, class_weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """Returns the arguments of `segmentation_loss` set in `loss` and `model`.

    Args:
        config: See `encnet_jax.config`.
        class_weights: Those that `loss.class_balance` asks for; None: those of
            `loss.class_weights`.
    """
    return dict(
        se_weight=config.loss.se_weight,
        aux_weight=config.loss.aux_weight,
        class_weights=class_weights or tuple(config.loss.class_weights) or None,
        normalize_by=config.loss.normalize_by,
        label_smoothing=config.loss.label_smoothing,
        hard_pixel_fraction=config.loss.hard_pixel_fraction,
        lovasz_weight=config.loss.lovasz_weight,
        align_corners=config.model.align_corners,
    )
