"""Infers the network of a PyTorch state dict from its keys and shapes."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from encnet_jax.convert.dinov2_keys import dinov2_key, join_qkv
from encnet_jax.convert.key_mapping import KeyMapping, find_key_mapping
from encnet_jax.convert.torch_reader.file import read_state_dict, without_prefixes
from encnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from encnet_jax.errors import UserError
from encnet_jax.files import user_path
from encnet_jax.models.dinov2 import DINOV2, PATCH
from encnet_jax.models.resnet import RESNETS
from encnet_jax.run import hub

OpenedWeights = tuple[Mapping[str, Any], str]  # key -> array; name in messages
Weights = str | os.PathLike[str] | Mapping[str, Any] | OpenedWeights


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """The network that a state dict belongs to.

    Attributes:
        source: One of `encnet_jax.convert.key_mapping.SOURCES`.
        settings: Arguments of `create_model`; for a backbone only those of the
            backbone, without `num_classes`.
        mean: Mean of the RGB channels, scaled to 0-1, by which the source normalizes.
        std: Standard deviation of the RGB channels, scaled to 0-1.
        resize_align_corners: Whether the source resizes images and logits with aligned
            corners. False for mmsegmentation, whose published configs align corners
            only with crops of 769 pixels, which cannot be inferred.
    """

    source: str
    settings: dict[str, Any]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize_align_corners: bool = False

    @property
    def backbone_only(self) -> bool:
        """Whether there is no segmentation head."""
        return "num_classes" not in self.settings

    def __str__(self) -> str:
        s = self.settings
        if "stem" not in s:
            return f"{self.source}: {s['backbone']}, backbone only"
        stem = s["stem"]
        if stem == "deep":
            stem += f" ({s['stem_width']})"
        text = f"{self.source}: {s['backbone']}, stem {stem}, width {s['width']}"
        text += ", avg_down" if s["avg_down"] else ""
        if self.backbone_only:
            return f"{text}, backbone only"
        text += f", {s['name']} of {s['num_classes']} classes"
        text += f", {s['num_codes']} codewords" if s["name"] == "encnet" else ""
        extras = [key for key in ("lateral", "se_loss", "aux_head") if s.get(key)]
        return ", ".join([text, *extras])


def describe_torch_weights(
    weights: Weights, source: str = "auto", prefix: str = ""
) -> ModelDescription:
    """Infers the network that weights belong to.

    Args:
        weights: A file (`.pth`, `.pt`, `.safetensors`), or key -> array.
        source: The code base they come from; see `load_torch_weights`.
        prefix: See `load_torch_weights`.

    Raises:
        UserError: The file cannot be read, or the network is not supported.
    """
    entries, file = open_weights(weights, prefix)
    mapping = find_key_mapping(entries, source, file)
    shapes = {key: tuple(array.shape) for key, array in entries.items()}
    find = _dinov2_settings if mapping.dinov2 else _backbone_settings
    settings = find(shapes, mapping, file)
    pytorch_encoding = mapping.source == "pytorch_encoding"
    if mapping.head:
        settings |= _head_settings(shapes, mapping, file)
        settings |= dict(align_corners=pytorch_encoding, output_stride=8)
        # PyTorch-Encoding's own batch norm is biased since v1.0; mmsegmentation uses
        # PyTorch's.
        settings["unbiased_running_var"] = not pytorch_encoding
    return ModelDescription(
        mapping.source, settings, resize_align_corners=pytorch_encoding
    )


def open_weights(weights: Weights, prefix: str = "") -> OpenedWeights:
    """Returns key -> array, and the name of the weights in error messages.

    The keys are those of the network, see `without_prefixes`. A file
    `hf://OWNER/REPO[@REVISION]/FILE` is downloaded by huggingface_hub to its cache; no
    other form accesses the network.
    """
    if isinstance(weights, tuple):
        return weights
    if isinstance(weights, str) and weights.startswith(hub.PREFIX):
        entries, file = read_state_dict(hub.download_file(weights), prefix), weights
    elif isinstance(weights, str | os.PathLike):
        path = user_path(weights) if isinstance(weights, str) else weights
        entries, file = read_state_dict(path, prefix), str(path)
    else:
        file = "the weights"
        entries = without_prefixes(weights, file, prefix)
    return join_qkv(entries), file


def _shape(
    shapes: Mapping[str, tuple[int, ...]], key: str, ndim: int, file: str
) -> tuple[int, ...]:
    shape = shapes.get(key)
    if shape is None:
        raise UserError(f"{file}: {key} is missing; the network cannot be inferred")
    if len(shape) != ndim:
        raise UserError(f"{file}: {key} has shape {shape}, not {ndim} dimensions")
    return shape


def _backbone_settings(
    shapes: Mapping[str, tuple[int, ...]], mapping: KeyMapping, file: str
) -> dict[str, Any]:
    def shape(key: str) -> tuple[int, ...]:
        return _shape(shapes, mapping.prefix + key, 4, file)

    blocks = []
    for stage in range(1, 5):
        count = 0
        while f"{mapping.prefix}layer{stage}.{count}.conv1.weight" in shapes:
            count += 1
        blocks.append(count)
    bottleneck = f"{mapping.prefix}layer1.0.conv3.weight" in shapes
    matches = (
        name
        for name, spec in RESNETS.items()
        if (spec.blocks, spec.bottleneck) == (tuple(blocks), bottleneck)
    )
    backbone = next(matches, None)
    if backbone is None:
        kind = "bottleneck" if bottleneck else "basic"
        raise UserError(
            f"{file}: stages of {blocks} {kind} blocks; known are {', '.join(RESNETS)}"
        )
    deep = f"{mapping.deep_stem}.0.weight"
    plain = mapping.prefix + deep not in shapes
    return dict(
        backbone=backbone,
        stem="plain" if plain else "deep",
        stem_width=64 if plain else shape(deep)[0],
        avg_down=mapping.avg_down,
        width=shape("layer1.0.conv1.weight")[0],
    )


def _dinov2_settings(
    shapes: Mapping[str, tuple[int, ...]], mapping: KeyMapping, file: str
) -> dict[str, Any]:
    def key(path: str) -> str:
        return f"{mapping.prefix}{dinov2_key(path, mapping.source)}"

    features, _, *patch = _shape(shapes, key("patch_embed.kernel"), 4, file)
    blocks = 0
    while key(f"blocks.{blocks}.ls1.gamma") in shapes:
        blocks += 1
    for backbone, spec in DINOV2.items():
        if (spec.features, spec.blocks, [PATCH] * 2) == (features, blocks, patch):
            return dict(backbone=backbone)
    raise UserError(
        f"{file}: a vision transformer of {blocks} blocks, {features} channels, and "
        f"patches of {patch[0]} pixels; known are {', '.join(DINOV2)}"
    )


def _head_settings(
    shapes: Mapping[str, tuple[int, ...]], mapping: KeyMapping, file: str
) -> dict[str, Any]:
    def shape(layer: str, ndim: int = 4) -> tuple[int, ...]:
        return _shape(shapes, f"{mapping.head[layer]}.weight", ndim, file)

    def has(layer: str, leaf: str = "weight") -> bool:
        return f"{mapping.head.get(layer)}.{leaf}" in shapes

    settings: dict[str, Any] = dict(
        name="fcn",
        num_classes=shape("head.classifier.conv")[0],
        head_channels=shape("head.reduce.conv")[0],
        aux_head=has("aux_head.reduce.conv"),
    )
    if "head.context.gate" not in mapping.head:
        return settings
    shape("head.context.gate", 2)  # raises if it is another head
    num_codes = 0
    if has("head.context.encoding", "codewords"):
        key = f"{mapping.head['head.context.encoding']}.codewords"
        num_codes = _shape(shapes, key, 2, file)[0]
    return settings | dict(
        name="encnet",
        lateral=has("head.fuse.conv"),
        num_codes=num_codes,
        se_loss=has("head.context.se_head"),
    )
