"""Weights of PyTorch code bases in our models, every entry accounted for.

    python -m encnet_jax.convert.load FILE --output DIR

writes a workdir that `evaluate.py` and `predict.py` take.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from encnet_jax import cli as command
from encnet_jax import config, optimizer
from encnet_jax.convert.infer_config import (
    ModelDescription,
    Weights,
    describe_torch_weights,
    open_weights,
)
from encnet_jax.convert.key_mapping import naming_of
from encnet_jax.convert.load_plan import Plan, shortened
from encnet_jax.data.dataset_info import (
    DATASETS,
    DatasetInfo,
    distinct_colors,
    save_info,
)
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.state import create_train_state, split_model

HEADS = ("strict", "reinitialise", "fresh")


@dataclasses.dataclass(frozen=True)
class Account:
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
) -> Account:
    """Fills a segmentation model, or a `ResNet` alone, with PyTorch weights, in place.

    Weights of a backbone alone fill the backbone, and the head stays as it is. An
    auxiliary head or a presence branch that the model has not is left out. Nothing is
    changed where an error is raised.

    Args:
        model: As of `encnet_jax.models.create_model`.
        weights: A file (`.pth`, `.pt`, `.safetensors`; see `torch_file`), or name ->
            array in PyTorch's layout, of any floating dtype.
        source: `pytorch-encoding`, `mmseg`, `torchvision`, `timm`; `auto` tells it from
            the names.
        head: `"strict"`: all of it must fit. `"reinitialise"`: classifiers (main,
            auxiliary, presence) of another number of classes are left out. `"fresh"`:
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
    naming = naming_of(entries, source, where)
    plan = Plan(model, entries, naming, head)
    if plan.faults():
        raise UserError(
            f"{where}: does not fit the model: {'; '.join(plan.faults())}"
            f"{_hint(entries, naming.source)}"
        )
    # One after the other: beside the file and the model no third copy is held.
    for name, path in plan.loaded.items():
        variable = plan.variables[path]
        variable.set_value(_to_ours(path, entries[name]))
    return Account(naming.source, plan.loaded, plan.dropped, tuple(plan.fresh))


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


def write_workdir(
    weights: Weights, workdir: Path, *, classes: str = "", dataset: str = ""
) -> str:
    """Writes a workdir as training does, around the network that a file holds.

    Args:
        weights: As `load_torch_model`.
        workdir: A folder that holds no run yet; made if it is missing.
        classes: Names of the classes: a JSON file with a list, or joined by commas.
        dataset: A key of `data.dataset_info.DATASETS`, for its names and colours.
            With neither, classes are called by their numbers.

    Returns:
        What was written, in words.

    Raises:
        UserError: As `load_torch_model`; the number of names is not that of the
            network's classes; the folder holds a run.
    """
    for name in ("config.json", "checkpoints"):
        if (workdir / name).exists():
            raise UserError(f"{workdir / name}: exists; give a folder without a run")
    model, description = load_torch_model(weights)
    info = _class_info(description, classes, dataset)
    settings = config.default()
    settings.total_steps = 1  # of a training that starts from here; 0 is not valid
    settings.data.name = dataset
    network = {k: v for k, v in description.settings.items() if k != "num_classes"}
    settings.model.update(network)
    settings.evaluation.align_corners = description.resize_align_corners
    workdir.mkdir(parents=True, exist_ok=True)
    _, params, stats = split_model(model)
    tx = optimizer.create_optimizer(lambda step: 0.0)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(create_train_state(params, stats, tx), 0)
    checkpoints.close()
    save_info(info, workdir / "classes.json")
    config.save_config(settings, workdir / "config.json")
    return f"{description} -> {workdir}"


def _class_info(
    description: ModelDescription, classes: str, dataset: str
) -> DatasetInfo:
    """Returns names, colours and normalisation for the classes of a network."""
    count = description.settings["num_classes"]
    colors = distinct_colors(count)
    if classes:
        names, origin = _class_names(classes), f"--classes={classes}"
    elif dataset:
        if dataset not in DATASETS:
            raise UserError(f"--dataset={dataset}: allowed are {', '.join(DATASETS)}")
        names, origin = DATASETS[dataset].class_names, f"--dataset={dataset}"
        colors = DATASETS[dataset].colors
    else:
        names, origin = tuple(f"class {i}" for i in range(count)), ""
    if len(names) != count:
        raise UserError(f"{origin}: {len(names)} classes; the network has {count}")
    return DatasetInfo(
        name=dataset,
        class_names=names,
        colors=colors,
        splits={},
        mean=description.mean,
        std=description.std,
    )


def _class_names(classes: str) -> tuple[str, ...]:
    if not classes.endswith(".json"):
        return tuple(name.strip() for name in classes.split(","))
    try:
        names = json.loads(Path(classes).read_text())
    except OSError as error:
        raise UserError(f"--classes={classes}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--classes={classes}: not JSON: {error}") from error
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f"--classes={classes}: a list of names is needed")
    return tuple(names)


def _main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UserError(f"{len(arguments)} files: give one file of weights")
    values = flags.FLAGS
    print(
        write_workdir(
            arguments[0],
            Path(values.output),
            classes=values.classes,
            dataset=values.dataset,
        )
    )


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "Folder for the workdir.", required=True)
    flags.DEFINE_string("classes", "", "Names: FILE.json with a list, or a,b,c.")
    flags.DEFINE_string("dataset", "", "Data set whose classes these are.")
    flags.FLAGS.set_gnu_getopt(True)  # flags after the file
    command.run(_main)
