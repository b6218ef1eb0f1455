"""The run of `SMALL` in this process, and one to be killed many times, in others."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from configs.camvid import get_config
from encnet_jax.run.model_config import check_config
from encnet_jax.train import train
from tests.commands import SMALL


def small_run_config(data: str) -> ConfigDict:
    """Returns the settings of `SMALL`, on one device, with cached images."""
    config = get_config("cpu")
    for argument in SMALL:
        key, value = argument.removeprefix("--config.").split("=")
        *groups, name = key.split(".")
        part = config
        for group in groups:
            part = part[group]
        part[name] = type(part[name])(value)
    config.data.data_dir = data
    config.data.cache_on_device = True
    config.mesh.data = 1
    check_config(config)
    return config


def train_small(data: str, workdir: str, checkpoint_every: int) -> None:
    """Trains 300 small steps."""
    config = small_run_config(data)
    config.total_steps = config.eval_every = 300
    config.checkpoint_every = checkpoint_every
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", f"{data}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    train(config, Path(workdir))
