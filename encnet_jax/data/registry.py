"""The data sets by name: opening a split of any of them."""

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from encnet_jax.data import folder
from encnet_jax.data.dataset_info import DATASETS, DatasetInfo
from encnet_jax.data.datasets import (
    ClassificationDataset,
    Dataset,
    FileDataset,
    SyntheticScenes,
    TFRecordDataset,
    pair_files,
)
from encnet_jax.errors import UserError

_log = logging.getLogger(__name__)

# Data set -> module under `builders`, class and configuration of its TFDS builder.
_BUILDERS: dict[str, tuple[str, str, str | None]] = {
    "scenes": ("scenes", "Scenes", "default"),
    "voc2012": ("voc2012", "Voc2012", "voc"),
    "voc2012_aug": ("voc2012", "Voc2012", "aug"),
    "pascal_context": ("pascal_context", "PascalContext", None),
    "pascal_context_sorted": ("pascal_context", "PascalContext", None),
    "pascal_context_60": ("pascal_context", "PascalContext", None),
    "ade20k": ("ade20k", "Ade20k", None),
    "cityscapes": ("cityscapes", "Cityscapes", None),
    "coco_stuff": ("coco_stuff", "CocoStuff", "stuff"),
    "coco_voc": ("coco_stuff", "CocoStuff", "voc"),
    "cifar10": ("", "cifar10", None),
}


def dataset_info(name: str, data_dir: str | None = None) -> DatasetInfo:
    """Returns what is known of a data set; that of `folder` is read from its folder.

    Raises:
        UserError: Unknown name, or a problem in the folder or its `classes.json`.
    """
    if name == "folder":
        return folder.read_info(_folder(name, data_dir))
    if name not in DATASETS:
        allowed = ", ".join((*DATASETS, "folder"))
        raise UserError(f"data.name={name!r}: allowed are {allowed}")
    return DATASETS[name]


def open_dataset(
    name: str,
    split: str,
    data_dir: str | None = None,
    *,
    drawn: bool = False,
    check: bool = True,
    manual_dir: str | None = None,
) -> Dataset:
    """Opens a split of a data set, which is prepared if it needs that.

    Args:
        name: A key of `DATASETS`, or `folder`.
        split: One of its splits.
        data_dir: For file sets the folder in its published layout, by default that of
            the set's environment variable (`ENCNET_CAMVID`, `ENCNET_FOLDER`); for TFDS
            sets the folder of prepared sets, by default TFDS's own.
        drawn: Draw `scenes` instead of preparing it on disk; needs no TensorFlow.
        check: Stop for the first problem of a file set; else reading an example does.
        manual_dir: For TFDS sets, where archives are that people must get by hand, by
            default `downloads/manual` in `data_dir`.

    Raises:
        UserError: Unknown name or split, missing or empty folder, a bad file.
    """
    info = dataset_info(name, data_dir)
    if split not in info.splits:
        allowed = ", ".join(info.splits)
        raise UserError(f"split {split!r} of {name}: allowed are {allowed}")
    if drawn and name == "scenes":
        return SyntheticScenes(info, split)
    if name in _BUILDERS:
        kind = (
            ClassificationDataset if info.task == "classification" else TFRecordDataset
        )
        return kind(info, _prepare(name, data_dir, manual_dir), split)
    dataset = _OPENERS[name](info, split, _folder(name, data_dir))
    if check:
        dataset.check()
    return dataset


def _prepare(name: str, data_dir: str | None, manual_dir: str | None):
    import tensorflow_datasets as tfds

    builder = create_builder(name, data_dir)
    if not builder.data_path.exists():
        _log.info("preparing %s, once, in %s", name, builder.data_path)
    where = tfds.download.DownloadConfig(manual_dir=manual_dir)
    builder.download_and_prepare(download_config=where)
    return builder


def create_builder(name: str, data_dir: str | None):
    """Returns the TFDS builder of a data set that has one."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    file, builder, config = _BUILDERS[name]
    if not file:  # TFDS's own
        return tfds.builder(builder, data_dir=data_dir)
    module = importlib.import_module(f"encnet_jax.data.builders.{file}")
    return getattr(module, builder)(config=config, data_dir=data_dir)


def _folder(name: str, data_dir: str | None) -> Path:
    variable = f"ENCNET_{name.upper()}"
    given = data_dir or os.environ.get(variable)
    if not given:
        raise UserError(
            f"data.data_dir: give the folder of {name} ({_LAYOUTS[name]}, ...) by "
            f"--config.data.data_dir=DIR or in {variable}"
        )
    if "://" in given:
        raise UserError(f"data.data_dir={given}: {name} is read from a local folder")
    return Path(given).expanduser()


def _open_camvid(info: DatasetInfo, split: str, root: Path) -> FileDataset:
    pairs, problems = pair_files(root / split, root / f"{split}annot")
    return FileDataset(info, pairs, problems)


_OPENERS: dict[str, Callable[[DatasetInfo, str, Path], FileDataset]] = {
    "camvid": _open_camvid,
    "folder": folder.open_split,
}
_LAYOUTS = {"camvid": "train/, trainannot/", "folder": "classes.json, images/, labels/"}
