"""The workdir of a small network, written as training does, without training."""

from encnet_jax.config import default, save_config
from encnet_jax.data.dataset_info import DatasetInfo, save_info, voc_colormap
from encnet_jax.models import create_model
from encnet_jax.optimizer import create_optimizer
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.model_config import model_settings
from encnet_jax.run.state import create_train_state, split_model
from tests.random_module import random_module

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.25)
TINY = dict(backbone="tiny", stem="plain", width=4, head_channels=8, num_codes=2)


def write_workdir(
    workdir, task="segmentation", *, info=None, data=None, evaluation=None, **settings
):
    """Writes a workdir with a checkpoint of step 7; returns the model."""
    config = default()
    config.total_steps = 9
    config.model.update(settings)
    config.data.update(data or {})
    config.evaluation.update(evaluation or {})
    names = ("road", "car", "sky")
    info = info or DatasetInfo(
        "mine", names, voc_colormap(3), {}, mean=MEAN, std=STD, task=task
    )
    config.data.name = info.name
    count = info.num_classes
    model = random_module(create_model, num_classes=count, **model_settings(config))
    _, params, batch_stats = split_model(model)
    state = create_train_state(params, batch_stats, create_optimizer(lambda step: 0.0))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, 7)
    checkpoints.close()
    save_config(config, workdir / "config.json")
    save_info(info, workdir / "classes.json")
    return model
