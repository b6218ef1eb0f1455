"""From a model's name and settings to the model."""

import inspect
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.errors import UserError
from encnet_jax.models.cifar import (
    CIFAR_MODELS,
    ENCODING_REDUCTION,
    SE_REDUCTION,
    CifarResNet14,
)
from encnet_jax.models.encnet import EncNet
from encnet_jax.models.heads import BASELINES, Baseline
from encnet_jax.models.layers import set_conv_impl
from encnet_jax.models.resnet import BACKBONES, ResNet
from encnet_jax.ops.conv import CONV_IMPLS

SEGMENTATION_MODELS = ("encnet", *BASELINES)
_SEGMENTATION_SETTINGS = (
    "backbone",
    "stem",
    "stem_width",
    "avg_down",
    "lateral",
    "align_corners",
    "se_loss",
    "se_stages",
    "aux_head",
    "output_stride",
    "remat",
    "head_channels",
    "dropout",
)
_CLASSIFIER_SETTINGS = ("scale_drop",)


def create_model(
    name: str,
    *,
    num_classes: int,
    backbone: str = "resnet50",
    stem: str = "deep",
    stem_width: int = 64,
    avg_down: bool = False,
    lateral: bool = False,
    align_corners: bool = True,
    num_codes: int = 32,
    se_loss: bool = True,
    se_stages: tuple[int, ...] = (4,),
    aux_head: bool = True,
    output_stride: int = 8,
    width: int = 64,
    remat: tuple[int, ...] = (),
    head_channels: int = 512,
    dropout: float = 0.1,
    scale_drop: bool = False,
    conv_impl: str = "auto",
    unbiased_running_var: bool = False,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
) -> nnx.Module:
    """Builds a model in training mode with fresh weights.

    Args:
        name: `"encnet"`, `"fcn"`, `"pspnet"` or `"deeplabv3"`, which segment;
            `"resnet14"`, `"se_resnet14"` or `"encnet14"`, which classify.
        num_classes: Number of classes, at least 2.
        backbone: See `ResNet`. The classifiers have none of the settings from here to
            `dropout` but `num_codes` and `width`, and refuse other than the defaults.
        stem: See `ResNet`.
        stem_width: See `ResNet`.
        avg_down: See `ResNet`.
        lateral: See `EncNet`. The baselines have no lateral links, codewords or
            presence, and ignore their settings, so that one word changes the model.
        align_corners: See `EncNet`.
        num_codes: See `EncNet`; for `"encnet14"` at least 1.
        se_loss: See `EncNet`.
        se_stages: See `EncNet`.
        aux_head: See `EncNet`.
        output_stride: See `ResNet`.
        width: See `ResNet` and `CifarResNet14`.
        remat: See `ResNet`.
        head_channels: See `EncNet` and `Baseline`.
        dropout: See `EncNet` and `DeepLabV3Head`.
        scale_drop: See `CifarResNet14`; of `"encnet14"`, and ignored by the other two.
        conv_impl: How 3x3 convolutions are computed; see `set_conv_impl`.
        unbiased_running_var: See `BatchNorm`.
        dtype: Dtype of convolutions and features; weights and statistics are float32.
        rngs: Source of the initial weights, by default `nnx.Rngs(0)`.

    Raises:
        UserError: A setting has a value that is not allowed; names it and the allowed.
    """
    se_stages = tuple(se_stages)
    trunk: dict[str, Any] = dict(
        backbone=backbone,
        stem=stem,
        stem_width=stem_width,
        avg_down=avg_down,
        remat=tuple(remat),
    )
    heads: dict[str, Any] = dict(
        align_corners=align_corners,
        aux_head=aux_head,
        head_channels=head_channels,
        dropout=dropout,
    )
    module: dict[str, Any] = dict(lateral=lateral, se_loss=se_loss, se_stages=se_stages)
    check_model_settings(
        name=name,
        num_classes=num_classes,
        output_stride=output_stride,
        width=width,
        num_codes=num_codes,
        scale_drop=scale_drop,
        conv_impl=conv_impl,
        **(trunk | heads | module),
    )
    common: dict[str, Any] = dict(
        unbiased_running_var=unbiased_running_var,
        dtype=dtype,
        rngs=nnx.Rngs(0) if rngs is None else rngs,
    )
    model: nnx.Module
    if name in CIFAR_MODELS:
        sizes: dict[str, Any] = dict(width=width, num_codes=num_codes)
        sizes["scale_drop"] = scale_drop
        model = CifarResNet14(name, num_classes, **sizes, **common)
    else:
        network = ResNet(output_stride=output_stride, width=width, **trunk, **common)
        if name in BASELINES:
            heads["output_stride"] = output_stride
            model = Baseline(name, num_classes, network, **heads, **common)
        else:
            module["num_codes"] = num_codes
            model = EncNet(num_classes, network, **module, **heads, **common)
    set_conv_impl(model, conv_impl)
    return model


def check_model_settings(*, name: str, num_classes: int, **others: Any) -> None:
    """Raises `UserError` for the first setting of a model that is not allowed.

    Args:
        name: See `create_model`.
        num_classes: See `create_model`.
        **others: Likewise; its defaults stand for those that are not given.
    """
    parameters = inspect.signature(create_model).parameters.items()
    defaults = {key: parameter.default for key, parameter in parameters}
    settings = defaults | others
    choices: dict[str, tuple[Any, tuple]] = {
        "name": (name, SEGMENTATION_MODELS + CIFAR_MODELS),
        "backbone": (settings["backbone"], tuple(BACKBONES)),
        "stem": (settings["stem"], ("plain", "deep")),
        "stem_width": (settings["stem_width"], (32, 64)),
        "output_stride": (settings["output_stride"], (8, 16, 32)),
        "se_stages": (settings["se_stages"], ((4,), (3, 4), (3,))),
        "conv_impl": (settings["conv_impl"], CONV_IMPLS),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            names = ", ".join(map(str, allowed))
            raise UserError(f"model.{key}={value!r}: allowed are {names}")
    narrowest = {"se_resnet14": SE_REDUCTION, "encnet14": ENCODING_REDUCTION}
    least = {
        "num_classes": (num_classes, 2),
        "width": (settings["width"], narrowest.get(name, 1)),
        "head_channels": (settings["head_channels"], 2 if name == "deeplabv3" else 1),
        "num_codes": (settings["num_codes"], 1 if name == "encnet14" else 0),
    }
    for key, (value, bound) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise UserError(f"model.{key}={value!r}: an integer of at least {bound}")
    dropout = settings["dropout"]
    if not 0 <= dropout < 1:
        raise UserError(
            f"model.dropout={dropout!r}: allowed is 0 up to, not including, 1"
        )
    if not set(settings["remat"]) <= {1, 2, 3, 4}:
        raise UserError(f"model.remat={settings['remat']!r}: stages are 1, 2, 3, 4")
    _check_unused(name, settings, defaults)


def _check_unused(
    name: str, settings: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """Refuses what only models of the other kind have: it would do nothing."""
    unused = _SEGMENTATION_SETTINGS if name in CIFAR_MODELS else _CLASSIFIER_SETTINGS
    for key in unused:
        if settings[key] != defaults[key]:
            raise UserError(
                f"model.{key}={settings[key]!r}: {name} has no such setting; allowed "
                f"is {defaults[key]!r}"
            )
