"""What a training leaves behind, read back: settings, classes, weights."""

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


class LoadedRun(NamedTuple):
    """A trained model and what belongs to it.

    Attributes:
        config: Of its training.
        info: Of its data set, as far as a prediction needs it.
        model_def: The model without its arrays.
        params: Weights.
        batch_stats: Running statistics.
        step: Of the checkpoint.
    """

    config: ConfigDict
    info: DatasetInfo
    model_def: ModelDef
    params: PureDict
    batch_stats: PureDict
    step: int

    @property
    def model(self) -> Any:
        """A module of its own with the weights."""
        return self.model_def.merge(self.params, self.batch_stats)


def best_metric_name(info: DatasetInfo) -> str:
    """Returns the name of the score that tells the best checkpoint."""
    return "accuracy" if info.task == "classification" else "mean_iou"


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
        step: `"best"`, `"latest"` or the number of a checkpoint.
        dataset: Must have the classes of the training; checked before weights are read.
        **settings: Of the model, in place of those of the training.

    Raises:
        UserError: No workdir, other classes, no such checkpoint, or a damaged one.
    """
    config = load_config(workdir / "config.json")
    config.model.update(settings)
    info = load_info(workdir / "classes.json")
    if dataset is not None and info.class_names != dataset.class_names:
        raise UserError(
            f"{workdir} was trained on the {info.num_classes} classes of {info.name}; "
            f"{dataset.name} has other {dataset.num_classes}"
        )
    # Shapes alone: drawing weights that are replaced at once would take seconds.
    shapes = nnx.eval_shape(
        lambda: create_model(num_classes=info.num_classes, **model_settings(config))
    )
    model_def, params, batch_stats = split_model(shapes)
    checkpoints = Checkpoints(workdir, best_metric_name(info))
    params, batch_stats, number = checkpoints.restore_model(params, batch_stats, step)
    return LoadedRun(config, info, model_def, params, batch_stats, number)
