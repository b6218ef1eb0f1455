"""A training, put together: data, model, optimizer, loss, and the loop over them."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from encnet_jax import optimizer
from encnet_jax.config import load_config, save_config
from encnet_jax.data import augment_device as arrays
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import save_info
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.model_config import model_settings
from encnet_jax.run.preemption import lock_workdir
from encnet_jax.run.sharding import create_mesh, replicated
from encnet_jax.run.state import create_train_state, split_model
from encnet_jax.run.workdir import best_metric_name
from encnet_jax.train.initialization import load_initial_weights
from encnet_jax.train.step import make_train_step
from encnet_jax.train.task import check_task, create_task
from encnet_jax.train.trainer import Trainer, TrainingData

# The start's, and how the same numbers are computed.
_NOT_OF_THE_MODEL = ("weights", "remat", "conv_impl")
_log = logging.getLogger(__name__)


def train(
    config: ConfigDict, workdir: Path, datasets: tuple[Dataset, Dataset] | None = None
) -> dict[str, float] | None:
    """Trains by a validated configuration, or goes on where the workdir stands.

    Order of restoring: the newest readable checkpoint of the workdir, else what
    `model.weights` names, else scratch.

    Args:
        config: See `encnet_jax.config`.
        workdir: Folder for `config.json`, `metrics.jsonl`, TensorBoard events and
            `checkpoints/`; made if it is missing, once everything else is known to fit.
        datasets: Where to train and to validate, in place of what `data` names.

    Returns:
        The scores of the last evaluation, or None if SIGTERM ended the run early.

    Raises:
        UserError: Something of the user's does not fit; names it.
        FloatingPointError: The loss is not finite; names the step.
    """
    mesh = create_mesh(config.mesh.data)
    _check_batch(config, mesh.size)
    dataset, validation = datasets or (
        _open(config, config.data.train_split),
        _open(config, config.evaluation.split),
    )
    info = dataset.info
    check_task(config, info)
    model = create_model(
        num_classes=info.num_classes,
        rngs=nnx.Rngs(config.seed),
        **model_settings(config),
    )
    _check_workdir(config, workdir)
    checkpoints = Checkpoints(workdir, best_metric_name(info))
    if config.model.weights and not checkpoints.steps():
        account = load_initial_weights(model, config.model.weights, info.class_names)
        _log.info("%s: %s", config.model.weights, account)
    model_def, params, batch_stats = split_model(model)
    schedule = create_schedule(config)
    tx = create_optimizer(config, schedule)
    state = create_train_state(params, batch_stats, tx)
    data = training_data(config, dataset)
    task = create_task(config, model, validation)
    step_fn = make_train_step(
        model_def,
        tx,
        prepare=data.prepare,
        forward=task.forward,
        loss=task.loss,
        info=info,
        grad_accum_steps=config.grad_accum_steps,
    )
    loop = Trainer(config, workdir, mesh, checkpoints, task.validate, schedule)
    workdir.mkdir(parents=True, exist_ok=True)
    with lock_workdir(workdir):
        restored = checkpoints.restore_latest(state, replicated(mesh))
        if restored is not None:
            state = restored
            _log.info("going on at step %d of %s", int(state.step), workdir)
        if jax.process_index() == 0:
            save_config(config, workdir / "config.json")
            save_info(info, workdir / "classes.json")
        return loop.run(jax.device_put(state, replicated(mesh)), step_fn, data)


def create_schedule(config: ConfigDict) -> optax.Schedule:
    """Returns the learning rate that a configuration asks for."""
    settings = config.optimizer
    if settings.schedule == "cosine":
        return optimizer.cosine_schedule(
            config.learning_rate,
            config.total_steps,
            warmup_steps=settings.warmup_steps,
        )
    return optimizer.poly_schedule(
        config.learning_rate,
        config.total_steps,
        settings.power,
        warmup_steps=settings.warmup_steps,
        min_learning_rate=settings.min_learning_rate,
    )


def create_optimizer(
    config: ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns the optimizer that a configuration asks for."""
    settings = config.optimizer
    return optimizer.create_optimizer(
        schedule,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        head_lr_mult=settings.head_lr_mult,
    )


def training_data(config: ConfigDict, dataset: Dataset) -> TrainingData:
    """Returns the way to batches: from files, or from arrays on the device."""
    settings = config.data
    augmentation = Augmentation(
        base_size=settings.base_size,
        crop_size=settings.crop_size,
        scale_range=tuple(settings.scale_range),
        flip=settings.flip,
        color_jitter=settings.color_jitter,
        pad=settings.pad,
    )
    options: dict[str, Any] = dict(
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    seed = {"seed": np.asarray(config.seed, np.uint32)}
    if settings.cache_on_device:
        return TrainingData(
            lambda step: arrays.index_batches(len(dataset), start_step=step, **options),
            {**seed, **arrays.load_arrays(dataset)},
            lambda resident, batch: arrays.augmented_batch(
                resident, batch, resident["seed"], augmentation
            ),
        )
    # Here, so that what trains from arrays needs no TensorFlow.
    from encnet_jax.data.loader import train_batches

    on_device = settings.resize == "device"
    options["padded_size"] = settings.padded_size if on_device else None

    def prepare(_, batch):
        if on_device:
            return arrays.resized_batch(batch, augmentation)
        return batch["images"], batch["labels"]

    return TrainingData(
        lambda step: train_batches(dataset, augmentation, start_step=step, **options),
        seed,
        prepare,
    )


def _open(config: ConfigDict, split: str) -> Dataset:
    return open_dataset(
        config.data.name, split, config.data.data_dir, drawn=config.data.cache_on_device
    )


def _check_batch(config: ConfigDict, devices: int) -> None:
    part = config.batch_size // config.grad_accum_steps
    if part % devices:
        raise UserError(
            f"batch_size={config.batch_size}: a multiple of {devices} devices times "
            f"grad_accum_steps={config.grad_accum_steps} is needed"
        )


def _check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Raises if the workdir belongs to a run of another model or data set."""
    path = workdir / "config.json"
    if not path.exists():
        return
    stored = load_config(path)
    pairs = {
        f"model.{key}": (stored.model[key], config.model[key])
        for key in config.model
        if key not in _NOT_OF_THE_MODEL
    }
    pairs["data.name"] = (stored.data.name, config.data.name)
    for key, (there, here) in pairs.items():
        if _plain(there) != _plain(here):
            raise UserError(
                f"{key}={here!r}: the run in {workdir} has {there!r}; give another "
                "--workdir, or remove that one"
            )


def _plain(value: Any) -> Any:
    """Tuples come back from JSON as lists."""
    return list(value) if isinstance(value, (list, tuple)) else value
