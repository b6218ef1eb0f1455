"""Config keys, config values and parameters renamed since version 0.1.0.

Stored configurations and checkpoints are migrated as they are read. An old name in a
flag or a config file raises an error with the new one.
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

# Old key, with its group -> new key.
CONFIG_KEYS = {
    "accumulate_steps": "grad_accum_steps",
    "model.convolution": "model.conv_impl",
    "data.canvas_size": "data.padded_size",
    "data.in_memory": "data.cache_on_device",
    "loss.average": "loss.normalize_by",
    "optimizer.minimum": "optimizer.min_learning_rate",
    "optimizer.head_factor": "optimizer.head_lr_mult",
    "evaluation.absent": "evaluation.absent_classes",
}
# New key -> old value -> new value.
CONFIG_VALUES = {
    "model.conv_impl": {"direct": "lax", "phases": "space_to_batch"},
    "loss.normalize_by": {"labelled": "valid"},
    "evaluation.protocol": {"encoding": "pytorch_encoding"},
}
# Pattern in a parameter path, its replacement in old checkpoints, and a prefix: unless
# empty, only networks with a parameter under it have the old name.
_PARAMETER_PATHS = (
    (r"^head\.fuse\.", "head.join.", "head.views."),
    (r"^aux_head\.", "auxiliary.", ""),
    (r"(^|\.)stage3_reduce\.", r"\1stage3_project.", ""),
    (r"(^|\.)reduce\.", r"\1project.", ""),
    (r"\.se_head\.", ".presence.", ""),
)


def migrate_config(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored configuration with the current keys and values.

    Args:
        stored: As returned by `json.loads`; not modified.
    """
    config = {k: dict(v) if isinstance(v, dict) else v for k, v in stored.items()}
    for old, new in CONFIG_KEYS.items():
        group, key = _group(config, old)
        if key in group:
            group[new.rpartition(".")[2]] = group.pop(key)
    for name, values in CONFIG_VALUES.items():
        group, key = _group(config, name)
        if isinstance(group.get(key), str):
            group[key] = values.get(group[key], group[key])
    return config


def old_parameter_path(path: str, paths: Collection[str]) -> str:
    """Returns the path that a parameter or statistic had in version 0.1.0.

    Args:
        path: Its current path, joined by dots.
        paths: All current paths of the model: some names changed in one network only.
    """
    for pattern, old, only_beside in _PARAMETER_PATHS:
        if not only_beside or any(p.startswith(only_beside) for p in paths):
            path = re.sub(pattern, old, path)
    return path


def rename_leaves(tree: Any, rename: Callable[[str], str]) -> Any:
    """Returns a tree with the leaves of its nested dicts moved to other paths.

    Args:
        tree: Nested dicts of arrays, or tuples of them, as the state of an optimizer.
        rename: Maps the path of a leaf in its dict, joined by dots, to the new one.
    """
    if isinstance(tree, dict):
        renamed: dict[Any, Any] = {}
        for path, leaf in _leaves(tree):
            *parents, last = (
                int(part) if part.isdigit() else part
                for part in rename(path).split(".")
            )
            node = renamed
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = rename_leaves(leaf, rename)
        return renamed
    if isinstance(tree, tuple):
        parts = [rename_leaves(part, rename) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def _leaves(tree: dict[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _group(config: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    group, _, key = name.rpartition(".")
    return (config.get(group, {}) if group else config), key
