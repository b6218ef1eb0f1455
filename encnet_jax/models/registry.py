"""Networks and backbones by name: from a name and settings to a model.

A new network or backbone is a class in a file of its own and a line here. See
`SegmentationModel`, `Backbone` and `settings`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from encnet_jax.data.class_table import IGNORE_LABEL
from encnet_jax.errors import UserError
from encnet_jax.models.cifar import EncNet14, ResNet14, SEResNet14
from encnet_jax.models.dinov2 import DINOV2, DINOv2
from encnet_jax.models.encnet import EncNet
from encnet_jax.models.heads import HEAD_INITS, init_heads_as_mmseg
from encnet_jax.models.layers import set_conv_impl, set_layer_options
from encnet_jax.models.resnet import RESNETS, ResNet
from encnet_jax.models.segmentation import FCN, DeepLabV3, PSPNet, SegmentationModel
from encnet_jax.models.settings import (
    Check,
    Setting,
    at_least,
    check_value,
    class_of,
    one_of,
    settings_of,
)
from encnet_jax.ops.conv import CONV_IMPLS

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "encnet": EncNet,
    "fcn": FCN,
    "pspnet": PSPNet,
    "deeplabv3": DeepLabV3,
    "resnet14": ResNet14,
    "se_resnet14": SEResNet14,
    "encnet14": EncNet14,
}
BACKBONES: dict[str, Callable[..., Any]] = {
    **{name: functools.partial(ResNet, name) for name in RESNETS},
    **{name: functools.partial(DINOv2, name) for name in DINOV2},
}
_DEFAULT_BACKBONE = "resnet50"


def segments(name: str) -> bool:
    """Returns whether a network of `MODELS` segments; the others classify images."""
    network = MODELS[name]
    return isinstance(network, type) and issubclass(network, SegmentationModel)


def has_setting(name: str, backbone: str, key: str) -> bool:
    """Returns whether a network, or the backbone that it is on, reads a setting.

    Args:
        name: A key of `MODELS`.
        backbone: A key of `BACKBONES`; plays no part if the network has none.
        key: Name of the setting.
    """
    entries = [MODELS[name]]
    if segments(name):
        if key == "backbone":
            return True
        if key == "output_stride" and _fixed_stride(backbone):
            entries = []  # heads take that of the backbone
        entries.append(BACKBONES[backbone])
    return any(key in settings_of(entry) for entry in entries)


def feature_stride(backbone: str, output_stride: int) -> int:
    """Returns the stride of a backbone's last stage, in input pixels per feature.

    Args:
        backbone: A key of `BACKBONES`.
        output_stride: The setting, for backbones that have it.
    """
    return _fixed_stride(backbone) or output_stride


def is_centered(backbone: str) -> bool:
    """Returns whether features lie at the centers of equal parts of the image.

    Args:
        backbone: A key of `BACKBONES`, whose class says so by `centered`.
    """
    return getattr(class_of(BACKBONES[backbone]), "centered", False)


def _fixed_stride(backbone: str) -> int | None:
    """Returns the stride that the class of a backbone has; None if it is a setting."""
    entry = BACKBONES[backbone]
    if "output_stride" in settings_of(entry):
        return None
    return getattr(class_of(entry), "stride", None)


class _Stream(nnx.RngStream):
    """The keys of `nnx.RngStream`, faster under `nnx.eval_shape`.

    Flax counts by `count[...] += 1`, which asks for the sharding of a traced array. To
    say that it has none, JAX goes through all operations traced so far: for ResNet-101
    that takes most of the time.
    """

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


SEGMENTATION_MODELS = tuple(filter(segments, MODELS))
CIFAR_MODELS = tuple(name for name in MODELS if not segments(name))


def create_model(
    name: str,
    *,
    num_classes: int,
    backbone: str = _DEFAULT_BACKBONE,
    conv_impl: str = "auto",
    head_init: str = "pytorch_encoding",
    unbiased_running_var: bool = False,
    in_channels: int = 3,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
    **settings: Any,
) -> nnx.Module:
    """Builds a model in training mode with fresh weights.

    Args:
        name: A key of `MODELS`: `"encnet"`, `"fcn"`, `"pspnet"`, `"deeplabv3"` segment,
            `"resnet14"`, `"se_resnet14"`, `"encnet14"` classify images.
        num_classes: Number of classes, 2 to 255: labels have 8 bits, and 255 is that of
            ignored pixels.
        backbone: A key of `BACKBONES`; only networks that segment have one.
        conv_impl: How 3x3 convolutions are computed; see `set_conv_impl`.
        head_init: How the convolutions of segmentation heads start: as in
            `"pytorch_encoding"`, where they keep PyTorch's default (uniform in
            +-1/sqrt(fan_in)); or as in `"mmseg"`, see `init_heads_as_mmseg`.
        unbiased_running_var: See `set_layer_options`.
        in_channels: Channels of the images. Backbones without such a setting take 3.
        dtype: Dtype of convolutions and features; parameters and statistics are
            float32.
        rngs: Source of the initial weights, by default `nnx.Rngs(0)`.
        **settings: Keyword arguments of the class of the network and of its backbone:
            see `EncNet`, `FCN`, `PSPNet`, `DeepLabV3`, `SegmentationModel`, `ResNet`,
            `DINOv2`; `ResNet14`, `SEResNet14`, `EncNet14`. Those of another network or
            backbone of the same task are ignored, so that changing `name` changes the
            network and nothing else. Those of the other task must have their defaults.

    Raises:
        UserError: A value is not allowed; names the setting and what is allowed.
        TypeError: A setting that no model has.
    """
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    check_model_settings(
        name=name,
        num_classes=num_classes,
        backbone=backbone,
        conv_impl=conv_impl,
        head_init=head_init,
        in_channels=in_channels,
        **settings,
    )
    settings["in_channels"] = in_channels
    if rngs is None:
        rngs = nnx.Rngs(0)
        rngs.default = _Stream(  # type: ignore[attr-defined]
            jax.random.key(0), tag="default"
        )

    def build(entry: Callable[..., Any], *args: Any) -> Any:
        keys = settings.keys() & settings_of(entry).keys()
        return entry(*args, **{key: settings[key] for key in keys}, rngs=rngs)

    parts = [build(BACKBONES[backbone])] if segments(name) else []
    model = build(MODELS[name], num_classes, *parts)
    if head_init == "mmseg":
        init_heads_as_mmseg(model, rngs)
    set_layer_options(model, dtype=dtype, unbiased_running_var=unbiased_running_var)
    set_conv_impl(model, conv_impl)
    return model


def check_model_settings(
    *,
    name: str,
    num_classes: Any,
    backbone: str = _DEFAULT_BACKBONE,
    conv_impl: str = "auto",
    head_init: str = "pytorch_encoding",
    unbiased_running_var: bool = False,
    in_channels: Any = 3,
    dtype: DTypeLike = jnp.float32,
    **settings: Any,
) -> None:
    """Raises `UserError` for the first setting of a model that is not allowed.

    Args: as `create_model`, with `num_classes` of any type.
    """
    del unbiased_running_var, dtype  # any value is allowed
    check_value("name", name, _registered(MODELS))
    check_value("num_classes", num_classes, _class_count)
    check_value("conv_impl", conv_impl, one_of(*CONV_IMPLS))
    head_inits = HEAD_INITS if segments(name) else HEAD_INITS[:1]
    check_value("head_init", head_init, one_of(*head_inits))
    entries = [MODELS[name]]
    if segments(name):
        check_value("backbone", backbone, _registered(BACKBONES))
        entries.append(BACKBONES[backbone])
    check_value("in_channels", in_channels, at_least(1))
    if in_channels != 3 and "in_channels" not in settings_of(entries[-1]):
        network = backbone if segments(name) else name
        raise UserError(
            f"in_channels={in_channels} (data.channels): {network} takes images of 3 "
            "channels"
        )
    # What a backbone demands of the settings of the network on it.
    demands = getattr(class_of(entries[-1]), "network_checks", {})
    same_task, other_task = map(_settings_of_task, (segments(name), not segments(name)))
    for key, value in {**settings, "backbone": backbone}.items():
        if key in same_task:
            own = [settings_of(e)[key] for e in entries if key in settings_of(e)]
            # An ignored setting passes if any model that reads it allows its value.
            others = [task[key] for task in (same_task, other_task) if key in task]
            if own or not any(_allows(setting, value) for setting in others):
                for setting in own or others:
                    check_value(key, value, setting.check)
            if key in settings_of(entries[0]):
                check_value(key, value, demands.get(key))
        elif key not in other_task:
            raise TypeError(f"{key}={value!r}: no such setting of any model")
        elif value != other_task[key].default:
            raise UserError(
                f"model.{key}={value!r}: {name} has no such setting; allowed is "
                f"{other_task[key].default!r}"
            )


def _class_count(value: Any) -> str:
    text = at_least(2, at_most=IGNORE_LABEL)(value)
    return text and f"{text}; label {IGNORE_LABEL} marks ignored pixels"


def _registered(entries: Mapping[str, Any]) -> Check:
    allowed = one_of(*entries)

    def check(value: Any) -> str:
        text = allowed(value)
        return text and (
            f"{text}, and what a module of yours adds, once it is imported (commands: "
            "ENCNET_PLUGINS=MODULE)"
        )

    return check


def _allows(setting: Setting, value: Any) -> bool:
    return setting.check is None or not setting.check(value)


def _settings_of_task(segment: bool) -> dict[str, Setting]:
    """Returns the settings of all networks that segment, or of all that do not."""
    entries = [network for name, network in MODELS.items() if segments(name) == segment]
    settings: dict[str, Setting] = {}
    if segment:
        entries += BACKBONES.values()
        settings["backbone"] = Setting(_DEFAULT_BACKBONE, one_of(*BACKBONES))
    for entry in entries:
        settings = settings_of(entry) | settings
    return settings
