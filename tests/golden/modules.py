"""Modules without initialization, and the names of their parts in the originals."""

import functools
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx


def _stem_layer(index: int) -> str:
    # Convolution, batch norm, ReLU, three times.
    return f"stem.{index // 3}.{('conv', 'bn')[index % 3]}."


# What replaces what, in this order, to come from a name of an original to one of ours.
# Written from the originals' state dicts, independently of `encnet_jax.convert`.
_COMMON = (
    (r"layer(\d)\.(\d+)\.(conv|bn)(\d)", r"stages.-\1.\2.layers.-\4.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.0", r"stages.-\1.\2.shortcut.projection.conv"),
    (r"layer(\d)\.(\d+)\.downsample\.1", r"stages.-\1.\2.shortcut.projection.bn"),
    # Numbers from 1 there, from 0 here.
    (r"-(\d)", lambda match: str(int(match[1]) - 1)),
)
PYTORCH_ENCODING = (
    (r"^pretrained\.", "backbone."),
    (r"conv1\.(\d)\.", lambda match: _stem_layer(int(match[1]))),
    (r"^backbone\.bn1\.", "backbone.stem.2.bn."),
    (r"conv5\.0\.", "reduce.conv."),
    (r"conv5\.1\.", "reduce.bn."),
    (r"connect\.(\d)\.0\.", r"lateral.\1.conv."),
    (r"connect\.(\d)\.1\.", r"lateral.\1.bn."),
    (r"fusion\.0\.", "fuse.conv."),
    (r"fusion\.1\.", "fuse.bn."),
    (r"encmodule\.", "context."),
    (r"encoding\.0\.", "reduce.conv."),
    (r"encoding\.1\.", "reduce.bn."),
    (r"encoding\.3\.", "encoding."),
    (r"encoding\.4\.", "bn."),
    (r"fc\.0\.", "gate."),
    (r"selayer\.", "se_head."),
    (r"^auxlayer\.", "aux_head."),
    (r"conv5\.4\.|conv6\.1\.", "classifier.conv."),
    *_COMMON,
)
MMSEG = (
    (r"stem\.(\d)\.", lambda match: _stem_layer(int(match[1]))),
    (r"^decode_head\.", "head."),
    (r"^auxiliary_head\.", "aux_head."),
    (r"bottleneck\.|convs\.0\.", "reduce."),
    (r"encoding\.0\.", "encoding."),
    (r"encoding\.1\.", "bn."),
    (r"enc_module\.encoding_project\.", "context.reduce."),
    (r"enc_module\.", "context."),
    (r"fc\.0\.", "gate."),
    (r"se_layer\.", "context.se_head."),
    (r"conv_seg\.", "classifier.conv."),
    *_COMMON,
)
_LEAVES = {"running_mean": "mean", "running_var": "var"}
Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


def our_name(name: str, rules: Rules) -> str:
    """Returns the path in our module, joined by dots, of an original's entry."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    module, _, leaf = name.rpartition(".")
    of_norm = re.search(r"(^|\.)bn$", module)
    if leaf == "weight":
        leaf = "scale" if of_norm else "kernel"
    module = re.sub(r"(^|\.)bn$", r"\1norm", module)
    return f"{module}.{_LEAVES.get(leaf, leaf)}".lstrip(".")


def to_ours(name: str, value: np.ndarray) -> np.ndarray:
    """Returns an original's array in our layout; `name` is ours."""
    if not name.endswith("kernel"):
        return value
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


def to_theirs(name: str, value: np.ndarray) -> np.ndarray:
    """Returns our array in the originals' layout; `name` is ours."""
    if not name.endswith("kernel"):
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)


def flat(tree: Mapping) -> dict[str, np.ndarray]:
    """Returns the arrays of a nested dict by their paths, joined by dots."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(k.key) for k in path): np.asarray(v) for path, v in leaves}


def empty(create: Callable[..., nnx.Module], *args, **settings) -> nnx.Module:
    """Returns a module of zeros.

    Initializing weights that a test replaces takes 15 times as long as compiling the
    network.
    """
    build = functools.partial(create, *args, **settings)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))

    def zeros(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jax.numpy.zeros(x.shape, x.dtype)

    return nnx.merge(graphdef, jax.tree.map(zeros, state))


def fill(module: nnx.Module, weights: Mapping[str, np.ndarray], rules: Rules) -> None:
    """Sets every parameter and statistic of a module from an original's state dict."""
    ours = {our_name(k, rules): v for k, v in weights.items() if v.dtype != np.int64}
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    variables = {
        ".".join(map(str, path)): variable
        for path, variable in nnx.to_flat_state(state)
    }
    assert sorted(ours) == sorted(variables)
    for name, variable in variables.items():
        variable[...] = jax.numpy.asarray(to_ours(name, ours[name]))
    nnx.update(module, state)
