"""Loads PyTorch weights into models, with every entry accounted for."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from encnet_jax.convert.first_conv import (
    FIRST_KERNELS,
    describe_extension,
    extend_kernel,
    fits,
)
from encnet_jax.convert.infer_config import (
    ModelDescription,
    Weights,
    describe_torch_weights,
    open_weights,
)
from encnet_jax.convert.key_mapping import find_key_mapping
from encnet_jax.convert.load_plan import LoadPlan
from encnet_jax.errors import UserError, one_line, shortened
from encnet_jax.models import create_model

HEADS = ("strict", "reinitialize", "skip")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every entry and every parameter.

    Attributes:
        source: One of `encnet_jax.convert.key_mapping.SOURCES`.
        loaded: Key -> path of the parameter or statistic.
        dropped: Key -> reason why the entry was left out.
        left_initialized: Paths of the model that keep their initial values.
        extension: How the first convolution was fitted to images of other channels, in
            words; "": it was not.
    """

    source: str
    loaded: dict[str, str]
    dropped: dict[str, str]
    left_initialized: tuple[str, ...]
    extension: str = ""

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} entries loaded"]
        for reason in dict.fromkeys(self.dropped.values()):
            keys = [one_line(k) for k, why in self.dropped.items() if why == reason]
            lines.append(f"  {len(keys)} dropped: {reason} ({shortened(keys)})")
        if kept := self.left_initialized:
            layers = list(dict.fromkeys(path.rpartition(".")[0] for path in kept))
            lines.append(f"  {len(kept)} left initialized: {shortened(layers)}")
        if self.extension:
            lines.append(f"  {self.extension}")
        return "\n".join(lines)


def load_torch_weights(
    model: nnx.Module,
    weights: Weights,
    source: str = "auto",
    head: str = "strict",
    prefix: str = "",
    rgb_channels: Sequence[int] = (),
) -> LoadReport:
    """Loads PyTorch weights into a segmentation model or a bare backbone, in place.

    Weights of a backbone fill only the backbone. The auxiliary head and the SE branch
    are dropped if the model has none. The model is unchanged if an error is raised.

    Args:
        model: A model from `encnet_jax.models.create_model`, or a backbone.
        weights: A file (`.pth`, `.pt`, `.safetensors`, or on the hub
            `hf://OWNER/REPO[@REVISION]/FILE`), or key -> array in PyTorch's layout, of
            any floating dtype.
        source: `pytorch_encoding`, `mmseg`, `torchvision`, `timm` or `transformers`;
            `auto` detects it.
        head: `"strict"`: everything must fit. `"reinitialize"`: classifiers (main,
            auxiliary, SE branch) of another number of classes are left out. `"skip"`:
            only the backbone is loaded.
        prefix: What stands before the keys of the network, such as `student.`, where
            the weights hold more than one; other keys are left out. Prefixes of
            DataParallel, torch.compile and Lightning are removed without it.
        rgb_channels: Which channels of the images are red, green and blue, where the
            model takes three or more and the weights three; by default the first.

    Returns:
        What was loaded, and what was dropped and why.

    Raises:
        UserError: Unexpected, missing or mismatched keys, or values that are not
            finite, all listed in one error; or the source cannot be detected.
    """
    if head not in HEADS:
        raise UserError(f"head={head!r}: allowed are {', '.join(HEADS)}")
    entries, file = open_weights(weights, prefix)
    mapping = find_key_mapping(entries, source, file)
    plan = LoadPlan(model, entries, mapping, head)
    not_finite = [key for key in plan.loaded if not _is_finite(entries[key])]
    if errors := plan.errors(not_finite):
        raise UserError(
            f"{file}: does not fit the model: {'; '.join(errors)}"
            f"{_hint(entries, mapping.source)}"
        )
    extension, first = "", {}
    for key, path in plan.loaded.items():
        if path in FIRST_KERNELS:
            kernel = np.asarray(_from_torch_layout(path, entries[key]))
            channels = plan.variables[path].shape[2]
            if not fits(kernel.shape[2], channels, rgb_channels):
                first[key] = jnp.array(extend_kernel(kernel, channels, rgb_channels))
                extension = describe_extension(channels, rgb_channels)
    # One by one, so that no third copy exists besides the file and the model.
    for key, path in plan.loaded.items():
        array = first[key] if key in first else _from_torch_layout(path, entries[key])
        plan.variables[path].set_value(array)
    return LoadReport(
        mapping.source,
        plan.loaded,
        plan.dropped,
        tuple(plan.left_initialized),
        extension,
    )


def load_torch_model(
    weights: Weights, source: str = "auto", prefix: str = "", **settings: Any
) -> tuple[nnx.Module, ModelDescription]:
    """Builds the network of a weight file and loads the weights.

    Args:
        weights: As in `load_torch_weights`, of a whole network.
        source: As in `load_torch_weights`.
        prefix: As in `load_torch_weights`.
        **settings: Arguments of `create_model` that override the inferred ones, such as
            `dtype`, or `align_corners=True` for mmsegmentation's networks with crops of
            769 pixels.

    Returns:
        The model, in training mode as `create_model` returns it, and its description.

    Raises:
        UserError: The file cannot be read, or holds only a backbone or an unsupported
            network.
    """
    opened = open_weights(weights, prefix)
    description = describe_torch_weights(opened, source)
    if description.backbone_only:
        raise UserError(
            f"{opened[1]}: holds only a backbone ({description}); a whole network is "
            "needed"
        )
    description = dataclasses.replace(
        description, settings=description.settings | settings
    )
    # Abstract, as initializing the parameters would take longer than loading them.
    model = nnx.eval_shape(lambda: create_model(**description.settings))
    load_torch_weights(model, opened, source)
    _seed_dropout(model)
    return model, description


def _is_finite(array: Any) -> bool:
    """Returns whether all values are finite in float32, in which they are loaded."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(array, np.float32)).all())


def _from_torch_layout(path: str, array: Any) -> jax.Array:
    """Returns a float32 copy; kernels become HWIO and (in, out)."""
    array = np.asarray(array)
    if path.endswith(".kernel"):
        array = np.moveaxis(array.swapaxes(0, 1), (0, 1), (-2, -1))
    # `jnp.array` always copies: the file that the array maps may be rewritten.
    return jnp.array(np.ascontiguousarray(array, np.float32))


def _seed_dropout(model: nnx.Module) -> None:
    """Sets the RNG streams of an abstract model."""
    for index, (_, node) in enumerate(nnx.iter_graph(model)):
        if isinstance(node, nnx.RngKey):
            node.set_value(jax.random.key(index))
        elif isinstance(node, nnx.RngCount):
            node.set_value(jnp.zeros((), jnp.uint32))


def _hint(entries: Mapping[str, Any], source: str) -> str:
    try:
        return f". The weights are {describe_torch_weights(entries, source)}"
    except UserError:
        return ""
