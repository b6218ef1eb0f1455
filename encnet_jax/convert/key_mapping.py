"""How the PyTorch code bases name what our models hold.

Our names are the paths of the parameters and statistics joined by dots, such as
`backbone.stages.0.2.layers.1.norm.scale`; theirs are those of a state dict.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from encnet_jax.errors import UserError

SOURCES = ("pytorch_encoding", "mmseg", "torchvision", "timm")

# Heads: our layer -> theirs. A batch norm stands beside its convolution.
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
    """How one state dict names its entries.

    Attributes:
        source: One of `SOURCES`.
        prefix: Before every name of the backbone.
        deep_stem: `"conv1"`, with the last batch norm `bn1`, or `"stem"`.
        pooled_shortcut: The shortcut begins with a pooling (the D variant), which
            moves its convolution and batch norm by one.
        head: Our layer -> theirs; empty where there is no head.
    """

    source: str
    prefix: str
    deep_stem: str
    pooled_shortcut: bool
    head: Mapping[str, str]

    def name(self, path: str, *, plain_stem: bool) -> str | None:
        """Returns the name of what our models have at a path; None: there is none.

        Args:
            path: Of a parameter or statistic, `backbone.stem.0.conv.kernel`.
            plain_stem: Whether the model's stem is one 7x7 convolution.
        """
        layer, _, leaf = path.rpartition(".")
        if layer.startswith("backbone."):
            name = self.prefix + self._backbone(layer.split(".")[1:], plain_stem)
        elif (name := self.head.get(layer, "")) == "":
            return None
        of_encoding = layer.endswith(".encoding")
        return f"{name}.{leaf if of_encoding else _LEAVES[leaf]}"

    def _backbone(self, parts: list[str], plain_stem: bool) -> str:
        *where, kind = parts
        norm = kind == "norm"
        if where[0] == "stem":
            if plain_stem:
                return "bn1" if norm else "conv1"
            if self.deep_stem == "conv1" and where[1] == "2" and norm:
                return "bn1"
            # Convolution, batch norm, ReLU, three times.
            return f"{self.deep_stem}.{3 * int(where[1]) + norm}"
        block = f"layer{int(where[1]) + 1}.{where[2]}"
        if where[3] == "shortcut":
            return f"{block}.downsample.{self.pooled_shortcut + norm}"
        return f"{block}.{'bn' if norm else 'conv'}{int(where[4]) + 1}"

    def belongs_to_backbone(self, name: str) -> bool:
        """Tells whether a name of theirs is under the backbone."""
        heads = ("head.", "auxlayer.", "decode_head.", "auxiliary_head.")
        if self.prefix:
            return name.startswith(self.prefix)
        return not name.startswith(heads)


def key_mapping_of(names: Iterable[str], source: str, where: str) -> KeyMapping:
    """Returns the mapping of a state dict.

    Args:
        names: Its names.
        source: One of `SOURCES`, or `"auto"` to tell it from the names. Plain ResNets
            of torchvision and timm are named alike and count as torchvision's.
        where: What error messages call the state dict.

    Raises:
        UserError: The source is none of these, or the names are of no known one.
    """
    names = set(names)
    if source == "auto":
        source = detect_source(names, where)
    elif source not in SOURCES:
        raise UserError(f"source={source!r}: allowed are auto, {', '.join(SOURCES)}")
    prefixes = {"pytorch_encoding": "pretrained.", "mmseg": "backbone."}
    prefix = prefixes.get(source, "")
    if not any(name.startswith(prefix) for name in names):
        prefix = ""
    head: dict[str, str] = {}
    if source == "mmseg" and _under(names, "decode_head."):
        head = _MMSEG_HEAD
    elif source == "pytorch_encoding" and _under(names, "head."):
        head = _ENCODING_HEAD
        if "head.conv5.4.weight" in names:
            head = {k: v for k, v in head.items() if "context" not in k}
            head |= _FCN_CLASSIFIER
    return KeyMapping(
        source=source,
        prefix=prefix,
        deep_stem="stem" if source == "mmseg" else "conv1",
        pooled_shortcut=any(name.endswith(".downsample.2.weight") for name in names),
        head=head,
    )


def detect_source(names: set[str], where: str) -> str:
    """Returns the source that names its entries so.

    Raises:
        UserError: None of the known ones.
    """
    if _under(names, "decode_head.") or _under(names, "stem."):
        return "mmseg"
    if _under(names, "pretrained."):
        return "pytorch_encoding"
    if "backbone.layer1.0.conv1.weight" in names and not _under(names, "classifier."):
        return "mmseg"
    if "layer1.0.conv1.weight" in names and "conv1.weight" in names:
        return "torchvision"
    if "layer1.0.conv1.weight" in names and "conv1.0.weight" in names:
        # PyTorch-Encoding's resnet50s has the shortcuts of the plain net, and so have
        # timm's nets of that name, which are the same.
        d_variant = "layer2.0.downsample.2.weight" in names
        return "timm" if d_variant else "pytorch_encoding"
    first = ", ".join(sorted(names)[:4]) or "no tensors"
    raise UserError(
        f"{where}: the names ({first}, ...) are of no known source; known are EncNet "
        "and FCN of PyTorch-Encoding, EncNet of mmsegmentation, ResNets of torchvision "
        "and timm"
    )


def _under(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
