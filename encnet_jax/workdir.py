"""What a training leaves behind, read back: settings, classes, weights."""

from pathlib import Path
from typing import NamedTuple

from flax import nnx
from ml_collections import ConfigDict

from encnet_jax.checkpoint import Checkpoints
from encnet_jax.config import load_config, model_settings
from encnet_jax.data.classes import DatasetInfo, load_info
from encnet_jax.models import create_model
from encnet_jax.train_state import ModelDef, PureDict, split_model


class Trained(NamedTuple):
    """A trained model and what belongs to it.

    Attributes:
        config: Of its training.
        info: Of its data set, as far as a prediction needs it.
        definition: The model without its arrays.
        params: Weights.
        batch_stats: Running statistics.
        step: Of the checkpoint.
    """

    config: ConfigDict
    info: DatasetInfo
    definition: ModelDef
    params: PureDict
    batch_stats: PureDict
    step: int


def metric_of(info: DatasetInfo) -> str:
    """Returns the name of the score that tells the best checkpoint."""
    return "accuracy" if info.task == "classification" else "mean_iou"


def load_workdir(workdir: Path, step: str | int = "best") -> Trained:
    """Reads a workdir that `train.py` wrote.

    Args:
        workdir: Folder of the run.
        step: `"best"`, `"latest"` or the number of a checkpoint.

    Raises:
        UserError: No workdir, no such checkpoint, or a damaged one.
    """
    config = load_config(workdir / "config.json")
    info = load_info(workdir / "classes.json")
    # Shapes alone: drawing weights that are replaced at once would take seconds.
    shapes = nnx.eval_shape(
        lambda: create_model(num_classes=info.num_classes, **model_settings(config))
    )
    definition, params, stats = split_model(shapes)
    checkpoints = Checkpoints(workdir, metric_of(info))
    params, stats, number = checkpoints.restore_model(params, stats, step)
    return Trained(config, info, definition, params, stats, number)
