"""The data sets that configs can name, and how a split of each is opened.

A new data set is one entry of `DATASETS`.
"""

import dataclasses
import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from encnet_jax.data import dataset_info as infos
from encnet_jax.data import folder
from encnet_jax.data.bands import with_bands
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import (
    ClassificationDataset,
    Dataset,
    FileDataset,
    SyntheticScenes,
    TFRecordDataset,
)
from encnet_jax.data.file_pairs import pair_files
from encnet_jax.data.label_check import check_split
from encnet_jax.errors import UserError, require_package
from encnet_jax.files import user_path

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

_log = logging.getLogger(__name__)


def folder_variable(name: str) -> str:
    """Returns the environment variable that gives the folder of a local data set."""
    return f"ENCNET_{name.upper()}"


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """A data set that a TFDS builder downloads and converts to TFRecord files.

    Attributes:
        info: Its metadata.
        builder: `module.Class` in `encnet_jax.data.builders`, or the name of a builder
            that comes with TFDS.
        config: Name of the builder's configuration, if it has several.
    """

    info: DatasetInfo
    builder: str
    config: str | None = None


@dataclasses.dataclass(frozen=True)
class LocalDataset:
    """A data set of image and label files in a local folder.

    Attributes:
        info: Its metadata; None where the folder itself holds them (`classes.json`).
        open_split: Pairs the images and labels of a split, given metadata, split and
            folder.
        layout: Some entries of the folder, for error messages.
    """

    info: DatasetInfo | None
    open_split: Callable[[DatasetInfo, str, Path], FileDataset]
    layout: str

    def root(self, name: str, data_dir: str | None) -> Path:
        """Returns the folder given by `data_dir` or by the environment variable.

        Raises:
            UserError: Neither is set, or the folder is not local, see `user_path`.
        """
        variable = folder_variable(name)
        key, given = "data.data_dir", data_dir
        if not given:
            key, given = variable, os.environ.get(variable)
        if not given:
            raise UserError(
                f"data.data_dir: give the folder of {name} ({self.layout}, ...) by "
                f"--config.data.data_dir=DIR or in {variable}"
            )
        try:
            return user_path(given)
        except UserError as error:  # it starts with the folder
            raise UserError(f"{key}={error}") from error


def _open_camvid(info: DatasetInfo, split: str, root: Path) -> FileDataset:
    parts = ("train", "val") if split == "trainval" else (split,)
    found = [pair_files(root / part, root / f"{part}annot") for part in parts]
    pairs = [pair for pairs, _ in found for pair in pairs]
    problems = [problem for _, problems in found for problem in problems]
    return FileDataset(info, pairs, problems)


# Labels are stored raw, so that one builder serves three class orders.
_PASCAL_CONTEXT = "pascal_context.PascalContext"

DATASETS: dict[str, PreparedDataset | LocalDataset] = {
    "scenes": PreparedDataset(infos.SCENES, "scenes.Scenes", "default"),
    "camvid": LocalDataset(infos.CAMVID, _open_camvid, "train/, trainannot/"),
    "ade20k": PreparedDataset(infos.ADE20K, "ade20k.Ade20k"),
    "cityscapes": PreparedDataset(infos.CITYSCAPES, "cityscapes.Cityscapes"),
    "coco_stuff": PreparedDataset(infos.COCO_STUFF, "coco_stuff.CocoStuff", "stuff"),
    "coco_voc": PreparedDataset(infos.COCO_VOC, "coco_stuff.CocoStuff", "voc"),
    "voc2012": PreparedDataset(infos.VOC2012, "voc2012.Voc2012", "voc"),
    "voc2012_aug": PreparedDataset(infos.VOC2012_AUG, "voc2012.Voc2012", "aug"),
    "pascal_context": PreparedDataset(infos.PASCAL_CONTEXT, _PASCAL_CONTEXT),
    "pascal_context_sorted": PreparedDataset(
        infos.PASCAL_CONTEXT_SORTED, _PASCAL_CONTEXT
    ),
    "pascal_context_60": PreparedDataset(infos.PASCAL_CONTEXT_60, _PASCAL_CONTEXT),
    "cifar10": PreparedDataset(infos.CIFAR10, "cifar10"),
    "folder": LocalDataset(None, folder.open_split, "classes.json, images/, labels/"),
}


def dataset_info(name: str, data_dir: str | None = None) -> DatasetInfo:
    """Returns the metadata of a data set; those of `folder` are read from its folder.

    Raises:
        UserError: Unknown name, or a problem in the folder or its `classes.json`.
    """
    if name not in DATASETS:
        raise UserError(f"data.name={name!r}: allowed are {', '.join(DATASETS)}")
    entry = DATASETS[name]
    if isinstance(entry, PreparedDataset):
        return entry.info
    return entry.info or folder.read_info(entry.root(name, data_dir))


def open_dataset(
    name: str,
    split: str,
    data_dir: str | None = None,
    *,
    in_memory: bool = False,
    check: bool = True,
    manual_dir: str | None = None,
    prepare: bool = True,
    bands: DatasetInfo | None = None,
) -> Dataset:
    """Opens a split of a data set, and prepares the data set on first use.

    Args:
        name: A key of `DATASETS`.
        split: One of its splits.
        data_dir: For local data sets their folder, by default the value of
            `ENCNET_CAMVID` or `ENCNET_FOLDER`; for prepared ones the folder of
            TFDS, by default TFDS's own.
        in_memory: Generate `scenes` on demand in place of preparing TFRecord files;
            this needs no TensorFlow.
        check: Raise the first problem of a local data set now rather than when the
            example is read.
        manual_dir: For prepared data sets, the folder of archives that must be
            downloaded by hand, by default `downloads/manual` in `data_dir`.
        prepare: Download and convert a prepared data set on first use; otherwise that
            is an error.
        bands: Metadata that hold the channels, ranges and normalization of the images,
            such as those of a run, where these are bands.

    Raises:
        UserError: Unknown name or split, bands of a data set that is not in files,
            missing or empty folder, an invalid file, labels that
            `label_check.label_problem` refuses, or TFDS is not installed.
    """
    info = dataset_info(name, data_dir)
    if bands is not None:
        info = with_bands(info, bands)
    if split not in info.splits:
        allowed = ", ".join(info.splits)
        raise UserError(f"split {split!r} of {name}: allowed are {allowed}")
    entry = DATASETS[name]
    if info.banded and isinstance(entry, PreparedDataset):
        raise UserError(
            f"data.channels={info.channels}: the images of {name} are 8-bit RGB; "
            "allowed is 3, without data.value_range"
        )
    if in_memory and name == "scenes":
        return SyntheticScenes(info, split)
    if isinstance(entry, PreparedDataset):
        builder = _prepare(name, entry, data_dir, manual_dir, prepare)
        if info.task == "classification":
            return ClassificationDataset(info, builder, split)
        return TFRecordDataset(info, builder, split)
    root = entry.root(name, data_dir)
    dataset = entry.open_split(info, split, root)
    if not dataset.pairs and not dataset.problems:
        raise UserError(f"{root}: no images of split {split!r} of {name} in it")
    if check:
        check_split(dataset, split)
    return dataset


def _prepare(
    name: str,
    entry: PreparedDataset,
    data_dir: str | None,
    manual_dir: str | None,
    prepare: bool,
) -> "DatasetBuilder":
    # Here, so that data sets in local files or in memory need no TensorFlow.
    require_package("tensorflow_datasets", "train", f"the data set {name}")
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    module, _, class_name = entry.builder.rpartition(".")
    if module:
        builders = importlib.import_module(f"encnet_jax.data.builders.{module}")
        builder = getattr(builders, class_name)(config=entry.config, data_dir=data_dir)
    else:
        builder = tfds.builder(class_name, data_dir=data_dir)
    if not builder.data_path.exists():
        if not prepare:
            raise UserError(f"{name}: is not prepared in {builder.data_path}")
        _log.info("preparing %s in %s (once)", name, builder.data_path)
    download_config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    builder.download_and_prepare(download_config=download_config)
    return builder
