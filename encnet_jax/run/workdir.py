"""Reads workdirs and model folders: configuration, classes, weights."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from encnet_jax.config import load_config
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo, load_info
from encnet_jax.data.label_map import label_table
from encnet_jax.errors import UserError
from encnet_jax.files import user_path
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.checkpoint_folder import best_metric_name, read_scores
from encnet_jax.run.model_config import abstract_model, resolve_dtype
from encnet_jax.run.model_folder import (
    is_model_folder,
    read_folder_config,
    read_model_folder,
)
from encnet_jax.run.state import ModelDef, PureDict
from encnet_jax.run.training_record import training_record

# What a run writes to its workdir, in place of anything of these names.
_RUN_FILES = (
    *("config.json", "classes.json", "class_weights.json", "metrics.jsonl"),
    *("predictions.png", "checkpoints"),
)


class LoadedRun(NamedTuple):
    """A trained model with its configuration and classes.

    Attributes:
        config: Configuration of the training.
        info: The data set, as far as prediction needs it.
        model_def: The model without its arrays.
        params: Parameters.
        batch_stats: Running statistics.
        step: Step of the checkpoint; 0 if it is not known.
        training: Origin of the weights and their scores; see `training_record`.
    """

    config: ConfigDict
    info: DatasetInfo
    model_def: ModelDef
    params: PureDict
    batch_stats: PureDict
    step: int
    training: dict[str, Any]

    @property
    def dtype(self) -> str:
        """Name of the dtype that the model computes in here, where `auto` is one."""
        return str(resolve_dtype(self.config.model.dtype).name)

    @property
    def model(self) -> Any:
        """A new module with the weights."""
        return self.model_def.merge(self.params, self.batch_stats)


def check_same_classes(workdir: Path, trained: DatasetInfo, info: DatasetInfo) -> None:
    """Raises `UserError` unless a data set has the classes of a run, in its order.

    Args:
        workdir: Folder of the run.
        trained: Classes of the run.
        info: The data set.
    """
    if trained.class_names == info.class_names:
        return
    text = (
        f"{workdir} was trained on the {trained.num_classes} classes of "
        f"{trained.name}; {info.name} has other {info.num_classes}"
    )
    pairs = enumerate(zip(trained.class_names, info.class_names))
    for index, (there, here) in pairs:
        if there != here:
            text += f": class {index} is {there!r} there and {here!r} here"
            break
    raise UserError(text)


def check_resumed_classes(workdir: Path, info: DatasetInfo) -> None:
    """Raises `UserError` if the classes of a run, or what its files mean, changed.

    A label that only one of both knows is no change: a value may be added to those that
    are ignored. Runs of 0.2.0 and older did not store what labels mean.

    Args:
        workdir: Folder of the run.
        info: The data set to continue with.
    """
    path = workdir / "classes.json"
    if not path.exists():
        return
    trained = load_info(path)
    check_same_classes(workdir, trained, info)
    if "label_map" not in json.loads(path.read_text()):
        return
    if trained.value_range != info.value_range:
        raise UserError(
            f"{workdir} was trained with value_range={trained.value_range}; "
            f"{info.name} has {info.value_range}: use another workdir"
        )
    there, here = label_table(trained), label_table(info)
    changed = np.flatnonzero((there != here) & (there >= 0) & (here >= 0))
    if changed.size:
        raw = int(changed[0])
        raise UserError(
            f"{workdir} was trained with label {raw} as {_class_of(there[raw], info)}; "
            f"{info.name} has it as {_class_of(here[raw], info)}: use another workdir"
        )
    for color in trained.label_colors.keys() & info.label_colors.keys():
        old, new = there[trained.label_colors[color]], here[info.label_colors[color]]
        if old != new and min(old, new) >= 0:
            raise UserError(
                f"{workdir} was trained with color {color} as {_class_of(old, info)}; "
                f"{info.name} has it as {_class_of(new, info)}: use another workdir"
            )


def _class_of(index: int, info: DatasetInfo) -> str:
    return "ignored" if index == IGNORE_LABEL else repr(info.class_names[index])


def check_no_run_files(folder: Path, setting: str) -> None:
    """Raises `UserError` if a new run in a folder would replace files that are there.

    Args:
        folder: The future workdir.
        setting: What names it, for the error: `--output` or `workdir`.
    """
    for name in _RUN_FILES:
        path = folder / name
        # An empty folder is what a run leaves that is stopped before anything else.
        if any(path.iterdir()) if path.is_dir() else path.exists():
            raise UserError(f"{folder / name}: exists; choose another {setting}")


def load_run_config(workdir: str | Path) -> ConfigDict:
    """Reads the configuration of a workdir, or of a model folder as if it were one.

    Raises:
        UserError: The file is missing or malformed.
    """
    workdir = user_path(workdir)
    if is_model_folder(workdir):
        return read_folder_config(workdir).config
    return load_config(workdir / "config.json")


def load_run_info(workdir: str | Path) -> DatasetInfo:
    """Reads the classes of a workdir or of a model folder.

    Raises:
        UserError: The file is missing or malformed.
    """
    workdir = user_path(workdir)
    if is_model_folder(workdir):
        return read_folder_config(workdir).info
    return load_info(workdir / "classes.json")


def load_workdir(
    workdir: str | Path,
    step: str | int = "best",
    *,
    dataset: DatasetInfo | None = None,
    **settings: Any,
) -> LoadedRun:
    """Reads a workdir that `train.py` wrote, or a model folder.

    Args:
        workdir: Folder of the run.
        step: Checkpoint: `"best"`, `"latest"` or its step; a model folder holds one.
        dataset: Must have the same classes; checked before weights are read.
        **settings: Overrides of the model's settings.

    Raises:
        UserError: No workdir, other classes, or a checkpoint missing or damaged.
    """
    workdir = user_path(workdir)
    config, info = load_run_config(workdir), load_run_info(workdir)
    if dataset is not None:
        check_same_classes(workdir, info, dataset)
    if is_model_folder(workdir):
        return load_model_folder(workdir, step, **settings)
    config.model.update(settings)
    model_def, params, batch_stats = abstract_model(config, info.num_classes)
    metric = best_metric_name(info)
    checkpoints = Checkpoints(workdir, metric)
    params, batch_stats, step = checkpoints.restore_model(params, batch_stats, step)
    scores = read_scores(checkpoints.folder, metric)
    training = training_record(workdir, config, info, step, scores.get(step))
    return LoadedRun(config, info, model_def, params, batch_stats, step, training)


def load_model_folder(
    folder: str | Path, step: str | int = "best", **settings: Any
) -> LoadedRun:
    """Reads a model folder as if it were a workdir; arguments as `load_workdir`.

    Raises:
        UserError: See `read_model_folder`; or another step is asked for.
    """
    stored = read_model_folder(user_path(folder), **settings)
    kept = stored.training.get("step", 0)
    if str(step) not in ("best", "latest", str(kept)):
        raise UserError(f"step={step}: {folder} is a model folder, of step {kept}")
    return LoadedRun(
        stored.config,
        stored.info,
        stored.model_def,
        stored.params,
        stored.batch_stats,
        kept,
        stored.training,
    )
