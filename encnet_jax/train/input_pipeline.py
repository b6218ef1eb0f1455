"""Training batches by the configuration: from files, or from arrays on the device."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from encnet_jax.data import augment_device
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.datasets import Dataset
from encnet_jax.errors import require_package


def check_packages(config: ConfigDict) -> None:
    """Raises `UserError` if the batches need a package that is not installed."""
    if not config.data.cache_on_device:
        require_package("tensorflow", "train", "training from files")


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
    # Lazily, because training from arrays must not need TensorFlow.
    from encnet_jax.data.loader import train_batches

    if config.data.resize == "device":
        options["padded_size"] = config.data.padded_size
    return train_batches(dataset, create_augmentation(config), **options)
