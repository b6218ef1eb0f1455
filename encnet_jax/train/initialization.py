"""Where training starts: the file or the earlier run that `model.weights` names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from encnet_jax.convert.load import load_torch_weights
from encnet_jax.convert.load_plan import HEAD_PREFIXES, shortened
from encnet_jax.errors import UserError
from encnet_jax.run.state import PureDict, split_model
from encnet_jax.run.workdir import load_workdir


def load_initial_weights(
    model: nnx.Module, weights: str, class_names: Sequence[str]
) -> str:
    """Fills a new model from `model.weights`, in place.

    Args:
        model: As of `create_model`.
        weights: A workdir of an earlier training, whose best checkpoint is taken; or a
            file of PyTorch weights, of which the backbone is.
        class_names: Of the data set to be trained on. Classifiers of an earlier run
            are taken only if its classes are the same ones.

    Returns:
        What was loaded, in words.

    Raises:
        UserError: It cannot be read, or does not fit the model.
    """
    if Path(weights).is_dir():
        return _load_workdir(model, Path(weights), class_names)
    return str(load_torch_weights(model, weights, head="skip"))


def _load_workdir(model: nnx.Module, workdir: Path, class_names: Sequence[str]) -> str:
    trained = load_workdir(workdir)
    same_classes = trained.info.class_names == tuple(class_names)
    there = _leaves(trained.params) | _leaves(trained.batch_stats)
    _, params, batch_stats = split_model(model)
    wanted = _leaves(params) | _leaves(batch_stats)
    fresh = [
        path for path in wanted if path.startswith(HEAD_PREFIXES) and not same_classes
    ]
    faults = [
        path
        for path, leaf in wanted.items()
        if path not in fresh and (path not in there or there[path].shape != leaf.shape)
    ]
    if faults:
        raise UserError(
            f"model.weights={workdir}: its model lacks or has in another shape "
            f"{len(faults)} of this model's arrays: {shortened(faults)}"
        )
    for path, node in nnx.iter_graph(model):
        name = ".".join(map(str, path))
        if name in wanted and name not in fresh and isinstance(node, nnx.Variable):
            node.set_value(there[name])
    unused = [path for path in there if path not in wanted]
    parts = [f"{len(wanted) - len(fresh)} arrays of step {trained.step}"]
    if fresh:
        parts.append(f"other classes, so left as they were: {shortened(fresh)}")
    if unused:
        parts.append(f"without a place here: {shortened(unused)}")
    return "; ".join(parts)


def _leaves(tree: PureDict) -> dict[str, Any]:
    return {
        ".".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
