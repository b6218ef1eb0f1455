"""Weights of PyTorch code bases in our models, every entry accounted for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from encnet_jax.convert.infer_config import (
    ModelDescription,
    Weights,
    describe_torch_weights,
    open_weights,
)
from encnet_jax.convert.key_mapping import key_mapping_of
from encnet_jax.convert.load_plan import LoadPlan, shortened
from encnet_jax.errors import UserError
from encnet_jax.models import create_model

HEADS = ("strict", "reinitialize", "skip")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Where every entry of a source went, and every parameter came from.

    Attributes:
        source: One of `encnet_jax.convert.key_mapping.SOURCES`.
        loaded: Name in the source -> path of the parameter or statistic.
        dropped: Name in the source -> why it was left out.
        fresh: Paths of the model that were left as they were.
    """

    source: str
    loaded: dict[str, str]
    dropped: dict[str, str]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} entries loaded"]
        for reason in dict.fromkeys(self.dropped.values()):
            names = [name for name, why in self.dropped.items() if why == reason]
            lines.append(f"  {len(names)} left out: {reason} ({shortened(names)})")
        if self.fresh:
            layers = list(dict.fromkeys(p.rpartition(".")[0] for p in self.fresh))
            lines.append(f"  {len(self.fresh)} left as they were: {shortened(layers)}")
        return "\n".join(lines)


def load_torch_weights(
    model: nnx.Module, weights: Weights, source: str = "auto", head: str = "strict"
) -> LoadReport:
    """Fills a segmentation model, or a `ResNet` alone, with PyTorch weights, in place.

    Weights of a backbone alone fill the backbone, and the head stays as it is. An
    auxiliary head or an SE branch that the model has not is left out. Nothing is
    changed where an error is raised.

    Args:
        model: As of `encnet_jax.models.create_model`.
        weights: A file (`.pth`, `.pt`, `.safetensors`; see `torch_file`), or name ->
            array in PyTorch's layout, of any floating dtype.
        source: `pytorch_encoding`, `mmseg`, `torchvision`, `timm`; `auto` tells it from
            the names.
        head: `"strict"`: all of it must fit. `"reinitialize"`: classifiers (main,
            auxiliary, SE branch) of another number of classes are left out. `"skip"`:
            only the backbone is loaded.

    Returns:
        What was loaded, what was left out and why.

    Raises:
        UserError: Entries that match nothing, parameters that are not filled, wrong
            shapes: one error that lists them all. Or the source cannot be told.
    """
    if head not in HEADS:
        raise UserError(f"head={head!r}: allowed are {', '.join(HEADS)}")
    entries, where = open_weights(weights)
    mapping = key_mapping_of(entries, source, where)
    plan = LoadPlan(model, entries, mapping, head)
    if plan.faults():
        raise UserError(
            f"{where}: does not fit the model: {'; '.join(plan.faults())}"
            f"{_hint(entries, mapping.source)}"
        )
    # One after the other: beside the file and the model no third copy is held.
    for name, path in plan.loaded.items():
        variable = plan.variables[path]
        variable.set_value(_to_ours(path, entries[name]))
    return LoadReport(mapping.source, plan.loaded, plan.dropped, tuple(plan.fresh))


def load_torch_model(
    weights: Weights, source: str = "auto", **settings: Any
) -> tuple[nnx.Module, ModelDescription]:
    """Builds the network that a file holds, with its weights.

    Args:
        weights: As `load_torch_weights`; of a whole network.
        source: As there.
        **settings: Arguments of `create_model` in place of what the file tells, such as
            `dtype`, or `align_corners=True` for mmsegmentation's nets of 769 pixels.

    Returns:
        The model, in training mode as `create_model` returns it, and its description.

    Raises:
        UserError: The file cannot be read, holds a backbone alone or no known network.
    """
    entries, where = open_weights(weights)
    description = describe_torch_weights(entries, source)
    if description.backbone_only:
        raise UserError(
            f"{where}: a backbone alone ({description}); a whole network is needed"
        )
    changed = dataclasses.replace(description, settings=description.settings | settings)
    # Without values: to draw those that are replaced would take longer than to load.
    model = nnx.eval_shape(lambda: create_model(**changed.settings))
    load_torch_weights(model, entries, source)
    _seed_dropout(model)
    return model, changed


def _to_ours(path: str, array: Any) -> jax.Array:
    """Returns a float32 copy in our layout: OIHW to HWIO, (out, in) to (in, out)."""
    array = np.asarray(array)
    if path.endswith(".kernel"):
        array = np.moveaxis(array.swapaxes(0, 1), (0, 1), (-2, -1))
    # `jnp.array` copies in any case: the file that the array maps can be rewritten.
    return jnp.array(np.ascontiguousarray(array, np.float32))


def _seed_dropout(model: nnx.Module) -> None:
    """Gives the random number streams of a model without values their state."""
    for number, (_, node) in enumerate(nnx.iter_graph(model)):
        if isinstance(node, nnx.RngKey):
            node.set_value(jax.random.key(number))
        elif isinstance(node, nnx.RngCount):
            node.set_value(jnp.zeros((), jnp.uint32))


def _hint(entries: Mapping[str, Any], source: str) -> str:
    try:
        return f". It is of {describe_torch_weights(entries, source)}"
    except UserError:
        return ""
