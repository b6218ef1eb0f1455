"""Names that changed since version 0.1.0: of config keys and values, of parameters.

Stored configurations and checkpoints are brought to the new names as they are read.
Flags and config files that use an old name get an error that tells the new one.
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

# Old key -> new key, with its group.
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
# Patterns of a parameter's path today -> its path in old checkpoints.
_PARAMETER_PATHS = (
    (r"^head\.fuse\.", "head.join.", "head.views."),
    (r"^aux_head\.", "auxiliary.", ""),
    (r"(^|\.)stage3_reduce\.", r"\1stage3_project.", ""),
    (r"(^|\.)reduce\.", r"\1project.", ""),
    (r"\.se_head\.", ".presence.", ""),
)


def migrate_config(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored configuration under the names of today.

    Args:
        stored: As `json.loads` returns it; is left as it is.
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
    """Returns what a parameter or statistic was called in version 0.1.0.

    Args:
        path: Its path today, joined by dots.
        paths: Those of the whole model: some names changed in one network only.
    """
    for pattern, old, only_beside in _PARAMETER_PATHS:
        if not only_beside or any(p.startswith(only_beside) for p in paths):
            path = re.sub(pattern, old, path)
    return path


def rename_leaves(tree: Any, rename: Callable[[str], str]) -> Any:
    """Returns a tree whose nested dicts have their leaves at other paths.

    Args:
        tree: Nested dicts of parameters, or tuples of such, as an optimizer's state.
        rename: Path of a leaf in its dict, joined by dots -> new path.
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
