"""Keys of DINOv2's weights by the names of timm and of transformers."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_LEAVES = {"kernel": "weight", "scale": "weight"}
# Part of a key of timm -> that of transformers; `.qkv` is made by `join_qkv`.
_TRANSFORMERS = (
    (r"^(cls_token)", r"embeddings.\1"),
    (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.qkv", ".attention.attention.(query|key|value)"),
    (r"\.attn\.proj", ".attention.output.dense"),
    (r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1"),
    (r"^norm\.", "layernorm."),
)
_QUERY = re.compile(r"(.*\.attention\.attention\.)query(\.\w+)")


def dinov2_key(path: str, source: str) -> str | None:
    """Returns the key of a parameter, or None of one that no DINOv2 has.

    Args:
        path: Path in the backbone, such as `blocks.0.attn.qkv.kernel`.
        source: `transformers`, or any other for the names of the original and timm.
    """
    if not path.startswith(("cls_token", "pos_embed", "patch_embed", "blocks", "norm")):
        return None
    layer, dot, leaf = path.rpartition(".")
    if layer == "patch_embed":
        layer = "patch_embed.proj"
    key = f"{layer}{dot}{_LEAVES.get(leaf, leaf)}"
    if source == "transformers":
        for pattern, replacement in _TRANSFORMERS:
            key = re.sub(pattern, replacement, key)
    return key


def is_dinov2(keys: set[str], prefix: str = "") -> bool:
    """Returns whether keys are those of a vision transformer like DINOv2."""
    wanted = ("blocks.0.ls1.gamma", "encoder.layer.0.layer_scale1.lambda1")
    return any(prefix + key in keys for key in wanted)


def join_qkv(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """Joins queries, keys and values of transformers as the original has them.

    The name of a joint entry, `...attention.(query|key|value).weight`, lists the three.
    """
    joined = dict(entries)
    for key in entries:
        if match := _QUERY.fullmatch(key):
            names = [
                f"{match[1]}{part}{match[2]}" for part in ("query", "key", "value")
            ]
            if len({tuple(entries[n].shape) for n in names if n in entries}) != 1:
                continue  # reported as unexpected keys
            if all(name in entries for name in names):
                arrays = [np.asarray(joined.pop(name)) for name in names]
                name = f"{match[1]}(query|key|value){match[2]}"
                joined[name] = np.concatenate(arrays)
    return joined if len(joined) < len(entries) else entries
