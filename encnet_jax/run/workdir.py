"""Reads the workdir of a training: configuration, classes, weights."""

from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from ml_collections import ConfigDict

from encnet_jax.config import load_config
from encnet_jax.data.dataset_info import DatasetInfo, load_info
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.model_config import model_settings
from encnet_jax.run.state import ModelDef, PureDict, split_model

# Files that a run writes to its workdir, in place of any of these names.
_RUN_FILES = ("config.json", "classes.json", "metrics.jsonl", "predictions.png")


class LoadedRun(NamedTuple):
    """A trained model with its configuration and classes.

    Attributes:
        config: Configuration of the training.
        info: The data set, as far as prediction needs it.
        model_def: The model without its arrays.
        params: Parameters.
        batch_stats: Running statistics.
        step: Step of the checkpoint.
    """

    config: ConfigDict
    info: DatasetInfo
    model_def: ModelDef
    params: PureDict
    batch_stats: PureDict
    step: int

    @property
    def model(self) -> Any:
        """A new module with the weights."""
        return self.model_def.merge(self.params, self.batch_stats)


def best_metric_name(info: DatasetInfo) -> str:
    """Returns the name of the score that ranks checkpoints, greater is better."""
    return "accuracy" if info.task == "classification" else "mean_iou"


def check_no_run_files(folder: Path, setting: str) -> None:
    """Raises `UserError` if a new run in a folder would replace files that are there.

    Args:
        folder: The future workdir.
        setting: What names it, for the error: `--output` or `workdir`.
    """
    for name in _RUN_FILES:
        if (folder / name).exists():
            raise UserError(f"{folder / name}: exists; choose another {setting}")


def load_workdir(
    workdir: Path,
    step: str | int = "best",
    *,
    dataset: DatasetInfo | None = None,
    **settings: Any,
) -> LoadedRun:
    """Reads a workdir that `train.py` wrote.

    Args:
        workdir: Folder of the run.
        step: Checkpoint: `"best"`, `"latest"` or its step.
        dataset: Must have the same classes; checked before weights are read.
        **settings: Overrides of the model's settings.

    Raises:
        UserError: No workdir, other classes, or a checkpoint missing or damaged.
    """
    config = load_config(workdir / "config.json")
    config.model.update(settings)
    info = load_info(workdir / "classes.json")
    if dataset is not None and info.class_names != dataset.class_names:
        raise UserError(
            f"{workdir} was trained on the {info.num_classes} classes of {info.name}; "
            f"{dataset.name} has other {dataset.num_classes}"
        )
    # Abstract: initializing weights only to replace them would take seconds.
    model = nnx.eval_shape(
        lambda: create_model(num_classes=info.num_classes, **model_settings(config))
    )
    model_def, params, batch_stats = split_model(model)
    checkpoints = Checkpoints(workdir, best_metric_name(info))
    params, batch_stats, step = checkpoints.restore_model(params, batch_stats, step)
    return LoadedRun(config, info, model_def, params, batch_stats, step)
