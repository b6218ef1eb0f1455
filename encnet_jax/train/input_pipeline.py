"""Data sets and training batches by the configuration."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from encnet_jax.data import augment_device
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.loader import train_batches
from encnet_jax.data.object_dataset import (
    Examples,
    ObjectDataset,
    as_datasets,
    is_dataset,
)
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import require_package

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
    config: ConfigDict, datasets: Splits | None
) -> tuple[ConfigDict, Dataset, Dataset]:
    """Returns the configuration, and the splits to train on and to score.

    Args:
        config: See `encnet_jax.config`.
        datasets: The splits; those that `data` names if None. `data.name` becomes the
            name of data set objects.

    Raises:
        UserError: A data set or one of its examples is of no use.
    """
    if datasets is None:
        data, scored = config.data, config.evaluation.split
        drawn = data.cache_on_device
        opened = [
            open_dataset(data.name, split, data.data_dir, drawn=drawn)
            for split in (data.train_split, scored)
        ]
        return config, opened[0], opened[1]
    dataset, validation = as_datasets(*datasets)
    if isinstance(dataset, ObjectDataset):
        config = config.copy_and_resolve_references()
        config.data.name = dataset.info.name
    return config, dataset, validation


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
    return {**seed, **augment_device.load_arrays(dataset)}


def create_batches(
    config: ConfigDict, dataset: Dataset, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Returns this host's rows of the batches from `start_step` on, without end."""
    options: dict[str, Any] = dict(
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if config.data.cache_on_device:
        return augment_device.index_batches(len(dataset), **options)
    if config.data.resize == "device":
        options["padded_size"] = config.data.padded_size
    return train_batches(dataset, create_augmentation(config), **options)
