"""Initial weights from `model.weights`: PyTorch files, workdirs, model folders."""

from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from encnet_jax.convert.first_conv import fit_first_kernel
from encnet_jax.convert.load import load_torch_weights
from encnet_jax.convert.load_plan import HEAD_PREFIXES
from encnet_jax.errors import UserError, shortened
from encnet_jax.files import user_path
from encnet_jax.run import hub
from encnet_jax.run.model_folder import find_model_folder
from encnet_jax.run.state import flatten_paths, split_model
from encnet_jax.run.workdir import load_workdir

# Prefixes of the arrays that depend on the classes; `linear` is that of classifiers.
_CLASSIFIERS = (*HEAD_PREFIXES, "stage3_context.se_head.", "linear.")
# Head -> prefixes of its arrays.
_HEADS = {
    "head": ("head.",),
    "aux_head": ("aux_head.",),
    "stage3_context": ("stage3_context.", "stage3_reduce."),
}


def load_initial_weights(
    model: nnx.Module,
    weights: str,
    class_names: Sequence[str],
    rgb_channels: Sequence[int] = (),
) -> str:
    """Loads `model.weights` into a new model, in place.

    Args:
        model: From `create_model`.
        weights: The workdir of an earlier run, to load its best checkpoint; a model
            folder, also as `hf://OWNER/REPO[@REVISION]`; or a file of PyTorch weights,
            also as `hf://OWNER/REPO[@REVISION]/FILE`, to load its backbone.
        class_names: Classes of the data set to train on. Classifier heads of an earlier
            run are loaded only if it has the same classes, and a head with its
            classifier only if it has the same arrays.
        rgb_channels: See `first_conv.extend_kernel`; empty for RGB images.

    Returns:
        A summary of what was loaded, for the log.

    Raises:
        UserError: The weights cannot be read, or do not fit the model.
    """
    if weights.startswith(hub.PREFIX) and hub.parse_repository(weights):
        folder = find_model_folder(weights)
        return _load_workdir(model, folder, class_names, rgb_channels)
    if not weights.startswith(hub.PREFIX):
        folder = user_path(weights)
        if folder.is_dir():
            return _load_workdir(model, folder, class_names, rgb_channels)
        if not folder.exists():
            raise UserError(
                f"model.weights={weights}: no such file or folder; allowed are a file "
                "of PyTorch weights, the workdir of a run, a model folder, and hf://..."
            )
    return str(
        load_torch_weights(model, weights, head="skip", rgb_channels=rgb_channels)
    )


def _load_workdir(
    model: nnx.Module,
    workdir: Path,
    class_names: Sequence[str],
    rgb_channels: Sequence[int],
) -> str:
    trained = load_workdir(workdir)
    same_classes = trained.info.class_names == tuple(class_names)
    stored = flatten_paths(trained.params) | flatten_paths(trained.batch_stats)
    _, params, batch_stats = split_model(model)
    wanted = flatten_paths(params) | flatten_paths(batch_stats)
    banded = trained.info.banded
    try:
        extension = fit_first_kernel(stored, wanted, rgb_channels, banded=banded)
    except UserError as error:
        raise UserError(f"model.weights={workdir}: {error}") from error
    fresh = [
        path for path in wanted if path.startswith(_CLASSIFIERS) and not same_classes
    ]
    reasons = ["other classes"] if fresh else []
    problems = [
        path
        for path, leaf in wanted.items()
        if path not in fresh
        and (path not in stored or stored[path].shape != leaf.shape)
    ]
    heads = {_head_of(path) for path in problems}
    if problems and "" not in heads:
        # Nothing is taken of another head: parts of it would not fit each other.
        fresh += [p for p in wanted if _head_of(p) in heads and p not in fresh]
        problems = []
        reasons.append(f"another {' and '.join(h for h in _HEADS if h in heads)}")
    if problems:
        raise UserError(
            f"model.weights={workdir}: {len(problems)} arrays of the model are missing "
            f"there or have another shape: {shortened(problems)}"
        )
    for path, node in nnx.iter_graph(model):
        name = ".".join(map(str, path))
        if name in wanted and name not in fresh and isinstance(node, nnx.Variable):
            node.set_value(stored[name])
    unused = [path for path in stored if path not in wanted]
    parts = [f"{len(wanted) - len(fresh)} arrays of step {trained.step}"]
    if fresh:
        reason = " and ".join(reasons)
        parts.append(f"{reason}, so initial values kept: {shortened(fresh)}")
    if extension:
        parts.append(extension)
    if unused:
        parts.append(f"not used by this model: {shortened(unused)}")
    return "; ".join(parts)


def _head_of(path: str) -> str:
    """Returns the head to which an array belongs; "" if to none."""
    found = (head for head, parts in _HEADS.items() if path.startswith(parts))
    return next(found, "")
