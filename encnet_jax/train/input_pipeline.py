"""Data sets and training batches by the configuration."""

import copy
import dataclasses
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from encnet_jax.data.array_dataset import load_arrays
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.bands import declare_bands, describe_bands, with_bands
from encnet_jax.data.dataset_info import load_info
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.loader import train_batches
from encnet_jax.data.normalization import BandSource, measure_bands
from encnet_jax.data.object_dataset import (
    Examples,
    ObjectDataset,
    as_datasets,
    is_dataset,
)
from encnet_jax.data.registry import dataset_info, open_dataset
from encnet_jax.data.sampler import index_batches
from encnet_jax.errors import UserError, require_package
from encnet_jax.files import absolute_path
from encnet_jax.run.checkpoint_folder import saved_steps

_log = logging.getLogger(__name__)
Splits = tuple[Dataset | Examples, Dataset | Examples]


def check_packages(config: ConfigDict, datasets: Splits | None = None) -> None:
    """Raises `UserError` if the batches need a package that is not installed."""
    if config.data.cache_on_device:
        return
    # Objects return decoded images.
    dataset = None if datasets is None else datasets[0]
    wrapped = isinstance(dataset, ObjectDataset)
    if dataset is None or (is_dataset(dataset) and not wrapped):
        require_package("tensorflow", "train", "training from files")


def open_splits(
    config: ConfigDict, datasets: Splits | None, workdir: Path
) -> tuple[ConfigDict, Dataset, Dataset]:
    """Returns the configuration as it is stored, and the splits to train on and score.

    `data.data_dir` becomes absolute: whoever reads the stored one may do so from
    another current folder.

    The normalization of bands is that of the run in the workdir, or is measured in the
    training split.

    Args:
        config: See `encnet_jax.config`.
        datasets: The splits; those that `data` names if None. `data.name` becomes the
            name of data set objects.
        workdir: Folder of the run.

    Raises:
        UserError: A data set or one of its examples is invalid.
    """
    config = config.copy_and_resolve_references()
    if config.data.data_dir:
        config.data.data_dir = _absolute_folder(config.data.data_dir)
    if datasets is None:
        data, scored = config.data, config.evaluation.split
        options: dict[str, Any] = dict(in_memory=data.cache_on_device)
        options["bands"] = declare_bands(
            dataset_info(data.name, data.data_dir), data.channels, data.value_range
        )
        dataset, validation = (
            open_dataset(data.name, split, data.data_dir, **options)
            for split in (data.train_split, scored)
        )
    else:
        dataset, validation = as_datasets(
            *datasets,
            channels=config.data.channels,
            value_range=config.data.value_range,
        )
        if isinstance(dataset, ObjectDataset):
            config.data.name = dataset.info.name
    return config, *_with_bands(config, (dataset, validation), workdir)


def _absolute_folder(data_dir: str) -> str:
    try:
        return absolute_path(data_dir)
    except UserError as error:  # it starts with the folder
        raise UserError(f"data.data_dir={error}") from error


def _with_bands(
    config: ConfigDict, splits: tuple[Dataset, Dataset], workdir: Path
) -> tuple[Dataset, Dataset]:
    """Returns splits with ranges and normalization, if they are of bands.

    These are copies: another training may read the same ones otherwise.
    """
    channels, value_range = config.data.channels, config.data.value_range
    infos = []
    for split in splits:
        info = split.info
        if info.banded and info.channels != channels:
            raise UserError(
                f"data.channels={channels}: {info.name} has images of {info.channels}"
            )
        if value_range or not info.banded:
            info = declare_bands(info, channels, value_range)
        infos.append(info)
    info = infos[0]
    if not info.banded:
        return splits
    dataset = copy.copy(splits[0])
    dataset.info = info
    validation = dataset if splits[1] is splits[0] else copy.copy(splits[1])
    files = (workdir / "config.json", workdir / "classes.json")
    if saved_steps(workdir / "checkpoints") and all(file.exists() for file in files):
        stored = load_info(workdir / "classes.json")
        same = stored.banded and stored.channels == channels
        if same and info.value_range in (None, stored.value_range):
            info = with_bands(info, stored)
    if not any(info.mean):
        if not hasattr(dataset, "bands"):
            raise UserError(f"data.channels={channels}: {info.name} has no bands")
        info = measure_bands(cast(BandSource, dataset))
        _log.info("bands: %s", describe_bands(info))
    dataset.info = info
    if validation is not dataset:
        validation.info = with_bands(infos[1], info)
    return dataset, validation


def create_augmentation(config: ConfigDict) -> Augmentation:
    """Returns the augmentation set in `data`, whose keys have the same names."""
    keys = [field.name for field in dataclasses.fields(Augmentation)]
    return Augmentation(**{key: config.data[key] for key in keys})


def resident_arrays(config: ConfigDict, dataset: Dataset) -> dict[str, np.ndarray]:
    """Returns the arrays to keep on the device: `seed`, with `cache_on_device` all.

    Raises:
        UserError: Images to be cached differ in size.
    """
    seed = {"seed": np.asarray(config.seed, np.uint32)}
    if not config.data.cache_on_device:
        return seed
    return {**seed, **load_arrays(dataset)}


def create_batches(
    config: ConfigDict, dataset: Dataset, start_step: int
) -> Generator[dict[str, np.ndarray]]:
    """Returns this host's rows of the batches from `start_step` on, without end.

    To be closed by the caller.
    """
    options: dict[str, Any] = dict(
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if config.data.cache_on_device:
        return index_batches(len(dataset), **options)
    if config.data.resize == "device":
        options["padded_size"] = config.data.padded_size
    return train_batches(dataset, create_augmentation(config), **options)
