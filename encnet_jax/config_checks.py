"""Checks of a configuration that need neither data nor models."""

import sys
from numbers import Real
from typing import Any

from ml_collections import ConfigDict

from encnet_jax.config import default, leaves
from encnet_jax.errors import UserError
from encnet_jax.migrations import CONFIG_KEYS, CONFIG_VALUES

_LARGEST: Any = sys.float_info.max  # an integer beyond it is no number of any use
# Keys of several numbers.
_NUMBERS = ("data.scale_range", "evaluation.scales")


def validate(config: ConfigDict) -> None:
    """Raises `UserError` for the first key or value that is not allowed.

    Reads no data. `run.model_config.check_config` checks model and loss as well.
    """
    values = dict(leaves(config))
    _check_names(values)
    _check_types(values)
    _check_numbers(values)
    _check_choices(values)
    if config.batch_size % config.grad_accum_steps:
        raise UserError(
            f"batch_size={config.batch_size}: must be a multiple of "
            f"grad_accum_steps={config.grad_accum_steps}"
        )
    low, high = (*config.data.scale_range, 0.0, 0.0)[:2]
    if len(config.data.scale_range) != 2 or not 0 < low <= high:
        raise UserError(
            f"data.scale_range={tuple(config.data.scale_range)}: must be two numbers, "
            "0 < low <= high"
        )
    _check_value_range(config.data.value_range, config.data.channels)
    _check_evaluation(config)
    if config.optimizer.warmup_steps >= config.total_steps:
        raise UserError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps}: must be below "
            f"total_steps={config.total_steps}"
        )


def _check_names(values: dict[str, Any]) -> None:
    """Raises for unknown and renamed keys, and for renamed values."""
    known = dict(leaves(default()))
    for key, value in values.items():
        if key not in known:
            if key in CONFIG_KEYS:
                raise UserError(f"{key}: is now called {CONFIG_KEYS[key]}")
            raise UserError(f"{key}: no such key of the configuration")
        renamed = CONFIG_VALUES.get(key, {})
        if isinstance(value, str) and value in renamed:
            raise UserError(f"{key}={value!r}: is now {renamed[value]!r}")


def _check_types(values: dict[str, Any]) -> None:
    """Raises where a value is missing, or a number infinite or text.

    ConfigDict sees to other types, but takes None for all. NaN is out of any range.
    """

    def is_finite(value: Any) -> bool:
        return isinstance(value, Real) and not abs(value) > _LARGEST

    for key, usual in leaves(default()):
        value = values[key]
        if isinstance(usual, int | float) and not isinstance(usual, bool):
            if not is_finite(value):
                raise UserError(f"{key}={value!r}: must be a finite number")
        elif key in _NUMBERS:
            if not isinstance(value, tuple | list) or not all(map(is_finite, value)):
                raise UserError(f"{key}={value!r}: must be finite numbers")
        elif value is None and usual is not None:
            raise UserError(f"{key}=None: must be a value such as {usual!r}")


def _check_value_range(value: Any, channels: int) -> None:
    """Raises for what is neither empty, nor a pair, nor a pair for each channel."""

    def is_pair(pair: Any) -> bool:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            return False
        finite = all(isinstance(v, Real) and abs(v) <= _LARGEST for v in pair)
        return finite and pair[0] < pair[1]

    pairs = isinstance(value, tuple | list) and all(map(is_pair, value))
    if not (is_pair(value) or (pairs and len(value) in (0, channels))):
        raise UserError(
            f"data.value_range={value!r}: must be (low, high), low < high, or such a "
            f"pair for each of data.channels={channels}"
        )


def _check_evaluation(config: ConfigDict) -> None:
    settings = config.evaluation
    if not all(scale > 0 for scale in settings.scales):
        raise UserError(f"evaluation.scales={tuple(settings.scales)}: must be above 0")
    encoding = settings.protocol == "pytorch_encoding"
    if encoding and settings.mode == "whole" and settings.flip and not settings.scales:
        raise UserError(
            "evaluation.flip=True: needs evaluation.scales, such as (1.0,), or "
            "evaluation.mode=slide"
        )
    crop = settings.crop_size or config.data.crop_size
    if settings.stride > crop:
        raise UserError(
            f"evaluation.stride={settings.stride}: windows of {crop} pixels would "
            "leave gaps"
        )
    if encoding and settings.short_size:
        raise UserError(
            f"evaluation.short_size={settings.short_size}: must be 0 without "
            "evaluation.protocol=mmseg"
        )


def _check_numbers(values: dict[str, Any]) -> None:
    at_least = {
        1: "total_steps batch_size grad_accum_steps log_every eval_every data.channels "
        "checkpoint_every data.base_size data.crop_size evaluation.batch_size",
        0: "seed early_stopping data.padded_size data.max_image_pixels "
        "data.pad loss.se_weight loss.aux_weight loss.lovasz_weight "
        "optimizer.power optimizer.warmup_steps optimizer.min_learning_rate "
        "optimizer.weight_decay optimizer.head_lr_mult optimizer.max_grad_norm "
        "evaluation.base_size "
        "evaluation.short_size evaluation.crop_size evaluation.stride",
    }
    for least, keys in at_least.items():
        for key in keys.split():
            if not values[key] >= least:
                raise UserError(f"{key}={values[key]}: must be at least {least}")
    if values["seed"] >= 2**32:
        raise UserError(f"seed={values['seed']}: must be below 2^32")
    if not values["learning_rate"] > 0:
        raise UserError(f"learning_rate={values['learning_rate']}: must be above 0")
    least, base = values["optimizer.min_learning_rate"], values["learning_rate"]
    if least > base:
        raise UserError(
            f"optimizer.min_learning_rate={least}: must be at most learning_rate={base}"
        )
    below_1 = (
        "optimizer.momentum optimizer.beta2 optimizer.ema_decay data.color_jitter "
        "loss.label_smoothing"
    )
    for key in below_1.split():
        if not 0 <= values[key] < 1:
            raise UserError(f"{key}={values[key]}: must be at least 0 and below 1")
    fraction = values["loss.hard_pixel_fraction"]
    if not 0 < fraction <= 1:
        raise UserError(
            f"loss.hard_pixel_fraction={fraction}: must be above 0, at most 1"
        )
    rotation = values["data.rotation"]
    if not 0 <= rotation < 180:
        raise UserError(f"data.rotation={rotation}: must be at least 0 and below 180")
    rate = values["data.class_crop_rate"]
    if not 0 <= rate <= 1:
        raise UserError(f"data.class_crop_rate={rate}: must be at least 0, at most 1")
    devices = values["mesh.data"]
    if devices != -1 and devices < 1:
        raise UserError(f"mesh.data={devices}: must be -1 (all) or at least 1")


def _check_choices(values: dict[str, Any]) -> None:
    choices = {
        "tracker": ("", "wandb", "trackio"),
        "data.resize": ("host", "device"),
        "model.dtype": ("auto", "float32", "bfloat16"),
        "loss.normalize_by": ("valid", "all"),
        "loss.class_balance": ("", "median_frequency", "log"),
        "optimizer.name": ("sgd", "adamw"),
        "optimizer.schedule": ("poly", "cosine"),
        "evaluation.protocol": ("pytorch_encoding", "mmseg"),
        "evaluation.mode": ("whole", "slide"),
        "evaluation.absent_classes": ("skip", "zero"),
    }
    for key, allowed in choices.items():
        if values[key] not in allowed:
            names = ", ".join(name or "''" for name in allowed)
            raise UserError(f"{key}={values[key]!r}: allowed are {names}")
