"""Mapping from parameter paths of this package to the keys of PyTorch state dicts.

Paths are the names of parameters and statistics joined by dots, such as
`backbone.stages.0.2.layers.1.norm.scale`; keys depend on the PyTorch code base.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from encnet_jax.convert.dinov2_keys import dinov2_key, is_dinov2
from encnet_jax.errors import UserError

SOURCES = ("pytorch_encoding", "mmseg", "torchvision", "timm", "transformers")

# Layers of the heads: path -> key.
_ENCODING_HEAD = {
    "head.reduce.conv": "head.conv5.0",
    "head.reduce.norm": "head.conv5.1",
    "head.lateral.0.conv": "head.connect.0.0",
    "head.lateral.0.norm": "head.connect.0.1",
    "head.lateral.1.conv": "head.connect.1.0",
    "head.lateral.1.norm": "head.connect.1.1",
    "head.fuse.conv": "head.fusion.0",
    "head.fuse.norm": "head.fusion.1",
    "head.context.reduce.conv": "head.encmodule.encoding.0",
    "head.context.reduce.norm": "head.encmodule.encoding.1",
    "head.context.encoding": "head.encmodule.encoding.3",
    "head.context.norm": "head.encmodule.encoding.4",
    "head.context.gate": "head.encmodule.fc.0",
    "head.context.se_head": "head.encmodule.selayer",
    "head.classifier.conv": "head.conv6.1",
    "aux_head.reduce.conv": "auxlayer.conv5.0",
    "aux_head.reduce.norm": "auxlayer.conv5.1",
    "aux_head.classifier.conv": "auxlayer.conv5.4",
}
_FCN_CLASSIFIER = {"head.classifier.conv": "head.conv5.4"}
_MMSEG_HEAD = {
    "head.reduce.conv": "decode_head.bottleneck.conv",
    "head.reduce.norm": "decode_head.bottleneck.bn",
    "head.lateral.0.conv": "decode_head.lateral_convs.0.conv",
    "head.lateral.0.norm": "decode_head.lateral_convs.0.bn",
    "head.lateral.1.conv": "decode_head.lateral_convs.1.conv",
    "head.lateral.1.norm": "decode_head.lateral_convs.1.bn",
    "head.fuse.conv": "decode_head.fusion.conv",
    "head.fuse.norm": "decode_head.fusion.bn",
    "head.context.reduce.conv": "decode_head.enc_module.encoding_project.conv",
    "head.context.reduce.norm": "decode_head.enc_module.encoding_project.bn",
    "head.context.encoding": "decode_head.enc_module.encoding.0",
    "head.context.norm": "decode_head.enc_module.encoding.1",
    "head.context.gate": "decode_head.enc_module.fc.0",
    "head.context.se_head": "decode_head.se_layer",
    "head.classifier.conv": "decode_head.conv_seg",
    "aux_head.reduce.conv": "auxiliary_head.convs.0.conv",
    "aux_head.reduce.norm": "auxiliary_head.convs.0.bn",
    "aux_head.classifier.conv": "auxiliary_head.conv_seg",
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class KeyMapping:
    """Key names of one state dict.

    Attributes:
        source: One of `SOURCES`.
        prefix: Prefix of all keys of the backbone.
        deep_stem: Name of the deep stem: `"conv1"`, whose last batch norm is `bn1`, or
            `"stem"`.
        avg_down: Whether shortcuts start with average pooling (ResNet-D), which shifts
            the index of their convolution and batch norm by one.
        head: Path -> key of the layers of the heads; empty if there is no head.
        dinov2: Whether the backbone is a DINOv2; else it is a ResNet.
    """

    source: str
    prefix: str
    deep_stem: str
    avg_down: bool
    head: Mapping[str, str]
    dinov2: bool = False

    def key(self, path: str, *, plain_stem: bool) -> str | None:
        """Returns the key of a parameter or statistic, or None if there is none.

        Args:
            path: Path such as `backbone.stem.0.conv.kernel`.
            plain_stem: Whether the model's stem is one 7x7 convolution.
        """
        layer, _, leaf = path.rpartition(".")
        if self.dinov2 and path.startswith("backbone."):
            found = dinov2_key(path.removeprefix("backbone."), self.source)
            return found and self.prefix + found
        if layer.startswith(("backbone.stem.", "backbone.stages.")):
            key = self.prefix + self._backbone_key(layer.split(".")[1:], plain_stem)
        elif layer in self.head:
            key = self.head[layer]
        else:
            return None
        return f"{key}.{leaf if layer.endswith('.encoding') else _LEAVES[leaf]}"

    def _backbone_key(self, parts: list[str], plain_stem: bool) -> str:
        *block_path, kind = parts
        norm = kind == "norm"
        if block_path[0] == "stem":
            if plain_stem:
                return "bn1" if norm else "conv1"
            if self.deep_stem == "conv1" and block_path[1] == "2" and norm:
                return "bn1"
            # Three times convolution, batch norm, ReLU.
            return f"{self.deep_stem}.{3 * int(block_path[1]) + norm}"
        block = f"layer{int(block_path[1]) + 1}.{block_path[2]}"
        if block_path[3] == "shortcut":
            return f"{block}.downsample.{self.avg_down + norm}"
        return f"{block}.{'bn' if norm else 'conv'}{int(block_path[4]) + 1}"

    def in_backbone(self, key: str) -> bool:
        """Returns whether a key belongs to the backbone."""
        heads = ("head.", "auxlayer.", "decode_head.", "auxiliary_head.")
        if self.prefix:
            return key.startswith(self.prefix)
        return not key.startswith(heads)


def find_key_mapping(keys: Iterable[str], source: str, file: str) -> KeyMapping:
    """Returns the key mapping of a state dict.

    Args:
        keys: Keys of the state dict.
        source: One of `SOURCES`, or `"auto"` to detect it. Plain ResNets of torchvision
            and timm have the same keys and count as torchvision's; DINOv2's own files
            have timm's keys and count as timm's.
        file: Name of the weights in error messages.

    Raises:
        UserError: The source is unknown, or cannot be detected.
    """
    keys = set(keys)
    if source == "auto":
        source = detect_source(keys, file)
    elif source not in SOURCES:
        raise UserError(f"source={source!r}: allowed are auto, {', '.join(SOURCES)}")
    prefixes = {"pytorch_encoding": "pretrained.", "mmseg": "backbone."}
    prefix = prefixes.get(source, "")
    if not _has_prefix(keys, prefix):  # a backbone without the rest
        prefix = ""
    if source == "transformers" and _has_prefix(keys, "dinov2."):
        prefix = "dinov2."
    head: dict[str, str] = {}
    if source == "mmseg" and _has_prefix(keys, "decode_head."):
        head = _MMSEG_HEAD
    elif source == "pytorch_encoding" and _has_prefix(keys, "head."):
        head = _ENCODING_HEAD
        if "head.conv5.4.weight" in keys:  # FCN
            head = {k: v for k, v in head.items() if "context" not in k}
            head |= _FCN_CLASSIFIER
    return KeyMapping(
        source=source,
        prefix=prefix,
        deep_stem="stem" if source == "mmseg" else "conv1",
        avg_down=any(key.endswith(".downsample.2.weight") for key in keys),
        head=head,
        dinov2=is_dinov2(keys, prefix),
    )


def detect_source(keys: set[str], file: str) -> str:
    """Returns the code base that a state dict comes from, by its keys.

    Raises:
        UserError: No known code base has such keys.
    """
    if _has_prefix(keys, "decode_head.") or _has_prefix(keys, "stem."):
        return "mmseg"
    if _has_prefix(keys, "pretrained."):
        return "pytorch_encoding"
    if "backbone.layer1.0.conv1.weight" in keys and not _has_prefix(
        keys, "classifier."
    ):
        return "mmseg"
    if "layer1.0.conv1.weight" in keys and "conv1.weight" in keys:
        return "torchvision"
    if "layer1.0.conv1.weight" in keys and "conv1.0.weight" in keys:
        # PyTorch-Encoding's resnet50s has plain shortcuts. timm's networks of that name
        # do too, and are the same.
        d_variant = "layer2.0.downsample.2.weight" in keys
        return "timm" if d_variant else "pytorch_encoding"
    if is_dinov2(keys) or is_dinov2(keys, "dinov2."):
        return "timm" if "blocks.0.ls1.gamma" in keys else "transformers"
    first = ", ".join(sorted(keys)[:4]) or "no tensors"
    raise UserError(
        f"{file}: keys of no known source ({first}, ...); known are EncNet and FCN of "
        "PyTorch-Encoding, EncNet of mmsegmentation, ResNets of torchvision and timm, "
        "DINOv2 ViT-S/14 and ViT-B/14; "
        "prefix= (encnet convert --prefix) names what stands before their keys"
    )


def _has_prefix(keys: Iterable[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in keys)
