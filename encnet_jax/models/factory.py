"""From a model's name and settings to the model."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.errors import UserError
from encnet_jax.models.baselines import FCN
from encnet_jax.models.encnet import EncNet
from encnet_jax.models.resnet import BACKBONES, ResNet

SEGMENTATION_MODELS = ("encnet", "fcn")


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
    head_channels: int = 512,
    dropout: float = 0.1,
    unbiased_running_var: bool = False,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
) -> nnx.Module:
    """Builds a model in training mode with fresh weights.

    Args:
        name: `"encnet"` or `"fcn"`.
        num_classes: Number of classes, at least 2.
        backbone: See `ResNet`.
        stem: See `ResNet`.
        stem_width: See `ResNet`.
        avg_down: See `ResNet`.
        lateral: See `EncNet`. The FCN has no lateral links, codewords or presence, and
            ignores their settings, so that one word changes the model.
        align_corners: See `EncNet`.
        num_codes: See `EncNet`.
        se_loss: See `EncNet`.
        se_stages: See `EncNet`.
        aux_head: See `EncNet`.
        output_stride: See `ResNet`.
        width: See `ResNet`.
        head_channels: See `EncNet`.
        dropout: See `EncNet`.
        unbiased_running_var: See `BatchNorm`.
        dtype: Dtype of convolutions and features; weights and statistics are float32.
        rngs: Source of the initial weights, by default `nnx.Rngs(0)`.

    Raises:
        UserError: A setting has a value that is not allowed; names it and the allowed.
    """
    settings: dict[str, Any] = dict(
        name=name,
        num_classes=num_classes,
        backbone=backbone,
        stem=stem,
        stem_width=stem_width,
        output_stride=output_stride,
        width=width,
        head_channels=head_channels,
        num_codes=num_codes,
        se_stages=tuple(se_stages),
        dropout=dropout,
    )
    check_model_settings(**settings)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    common: dict[str, Any] = dict(
        unbiased_running_var=unbiased_running_var, dtype=dtype, rngs=rngs
    )
    trunk = ResNet(
        backbone,
        stem=stem,
        stem_width=stem_width,
        avg_down=avg_down,
        output_stride=output_stride,
        width=width,
        **common,
    )
    common.update(
        align_corners=align_corners,
        aux_head=aux_head,
        head_channels=head_channels,
        dropout=dropout,
    )
    if name == "fcn":
        return FCN(num_classes, trunk, **common)
    return EncNet(
        num_classes,
        trunk,
        lateral=lateral,
        num_codes=num_codes,
        se_loss=se_loss,
        se_stages=tuple(se_stages),
        **common,
    )


def check_model_settings(
    *,
    name: str,
    num_classes: int,
    backbone: str,
    stem: str,
    stem_width: int,
    output_stride: int,
    width: int,
    head_channels: int,
    num_codes: int,
    se_stages: tuple[int, ...],
    dropout: float,
) -> None:
    """Raises `UserError` for the first setting of a model that is not allowed."""
    choices = {
        "name": (name, SEGMENTATION_MODELS),
        "backbone": (backbone, tuple(BACKBONES)),
        "stem": (stem, ("plain", "deep")),
        "stem_width": (stem_width, (32, 64)),
        "output_stride": (output_stride, (8, 16, 32)),
        "se_stages": (se_stages, ((4,), (3, 4), (3,))),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            names = ", ".join(map(str, allowed))
            raise UserError(f"model.{key}={value!r}: allowed are {names}")
    least = {
        "num_classes": (num_classes, 2),
        "width": (width, 1),
        "head_channels": (head_channels, 1),
        "num_codes": (num_codes, 0),
    }
    for key, (value, bound) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise UserError(f"model.{key}={value!r}: an integer of at least {bound}")
    if not 0 <= dropout < 1:
        raise UserError(
            f"model.dropout={dropout!r}: allowed is 0 up to, not including, 1"
        )
