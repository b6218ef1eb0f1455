"""What network a PyTorch state dict belongs to, told from names and shapes alone."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from encnet_jax.convert.key_mapping import KeyMapping, key_mapping_of
from encnet_jax.convert.torch_reader.file import read_state_dict
from encnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from encnet_jax.errors import UserError
from encnet_jax.models.resnet import RESNETS

_HUB = "hf://"
Weights = str | os.PathLike[str] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """What a file of weights tells about its network.

    Attributes:
        source: One of `encnet_jax.convert.key_mapping.SOURCES`.
        settings: Arguments of `create_model`; for a backbone alone only those that
            concern the backbone, so `num_classes` is missing.
        mean: Of the RGB channels on the scale 0 to 1, as the source normalizes.
        std: Deviation likewise.
        resize_align_corners: Whether the source resizes images and logits with the
            corner pixels on each other. For mmsegmentation False, as in its published
            configs but those with crops of 769 pixels, which the file does not tell.
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
        stem = s["stem"]
        if stem == "deep":
            stem += f" ({s['stem_width']})"
        text = f"{self.source}: {s['backbone']}, stem {stem}, width {s['width']}"
        text += ", avg_down" if s["avg_down"] else ""
        if self.backbone_only:
            return f"{text}, backbone alone"
        text += f", {s['name']} of {s['num_classes']} classes"
        text += f", {s['num_codes']} codewords" if s["name"] == "encnet" else ""
        extras = [key for key in ("lateral", "se_loss", "aux_head") if s.get(key)]
        return ", ".join([text, *extras])


def describe_torch_weights(weights: Weights, source: str = "auto") -> ModelDescription:
    """Returns what network weights belong to.

    Args:
        weights: A file (`.pth`, `.pt`, `.safetensors`), or name -> array.
        source: Where they come from; see `load_torch_weights`.

    Raises:
        UserError: The file cannot be read, or is of no network that is known here.
    """
    names, where = open_weights(weights)
    mapping = key_mapping_of(names, source, where)
    shapes = {name: tuple(value.shape) for name, value in names.items()}
    settings = _backbone_settings(shapes, mapping, where)
    encoding = mapping.source == "pytorch_encoding"
    if mapping.head:
        settings |= _head_settings(shapes, mapping, where)
        settings |= dict(align_corners=encoding, output_stride=8)
        # What mmsegmentation trains with; the source's own since its v1.0 is biased.
        settings["unbiased_running_var"] = not encoding
    return ModelDescription(mapping.source, settings, resize_align_corners=encoding)


def open_weights(weights: Weights) -> tuple[Mapping[str, Any], str]:
    """Returns name -> array, and what error messages call it.

    A file `hf://OWNER/REPO/FILE` is downloaded by huggingface_hub, once, to its cache:
    only a path of this form ever reaches for the network.
    """
    if isinstance(weights, str) and weights.startswith(_HUB):
        return read_state_dict(_downloaded(weights)), weights
    if isinstance(weights, str | os.PathLike):
        return read_state_dict(weights), str(weights)
    return weights, "the weights"


def _downloaded(address: str) -> str:
    parts = address.removeprefix(_HUB).split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise UserError(f"{address}: hf://OWNER/REPO/FILE is needed")
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise UserError(
            f"{address}: huggingface_hub is missing: pip install 'encnet-jax[weights]'"
        ) from error
    try:
        return hf_hub_download(repo_id="/".join(parts[:2]), filename=parts[2])
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{address}: cannot be downloaded: {reason}") from error


def _shape(
    shapes: Mapping[str, tuple[int, ...]], name: str, dims: int, where: str
) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise UserError(f"{where}: {name} is missing; the network cannot be told")
    if len(shape) != dims:
        raise UserError(f"{where}: {name} has the shape {shape}, not {dims} dimensions")
    return shape


def _backbone_settings(
    shapes: Mapping[str, tuple[int, ...]], mapping: KeyMapping, where: str
) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        return _shape(shapes, mapping.prefix + name, 4, where)

    blocks = []
    for stage in range(1, 5):
        count = 0
        while f"{mapping.prefix}layer{stage}.{count}.conv1.weight" in shapes:
            count += 1
        blocks.append(count)
    bottleneck = f"{mapping.prefix}layer1.0.conv3.weight" in shapes
    wanted = (tuple(blocks), bottleneck)
    known = {name: (d.blocks, d.bottleneck) for name, d in RESNETS.items()}
    backbone = next((name for name in known if known[name] == wanted), None)
    if backbone is None:
        kind = "bottleneck" if bottleneck else "basic"
        raise UserError(
            f"{where}: stages of {blocks} {kind} blocks; known are {', '.join(RESNETS)}"
        )
    deep = f"{mapping.deep_stem}.0.weight"
    plain = mapping.prefix + deep not in shapes
    return dict(
        backbone=backbone,
        stem="plain" if plain else "deep",
        stem_width=64 if plain else shape(deep)[0],
        avg_down=mapping.pooled_shortcut,
        width=shape("layer1.0.conv1.weight")[0],
    )


def _head_settings(
    shapes: Mapping[str, tuple[int, ...]], mapping: KeyMapping, where: str
) -> dict[str, Any]:
    def shape(layer: str, dims: int = 4) -> tuple[int, ...]:
        return _shape(shapes, f"{mapping.head[layer]}.weight", dims, where)

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
    shape("head.context.gate", 2)  # names it where the head is of another kind
    codes = 0
    if has("head.context.encoding", "codewords"):
        name = f"{mapping.head['head.context.encoding']}.codewords"
        codes = _shape(shapes, name, 2, where)[0]
    return settings | dict(
        name="encnet",
        lateral=has("head.fuse.conv"),
        num_codes=codes,
        se_loss=has("head.context.se_head"),
    )
