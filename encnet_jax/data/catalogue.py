"""The data sets by name: opening a split of any of them."""

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from encnet_jax.data.classes import DATASETS, DatasetInfo
from encnet_jax.data.sources import (
    DrawnSource,
    FileSource,
    RecordSource,
    Source,
    pair_files,
)
from encnet_jax.errors import UserError

_log = logging.getLogger(__name__)

# Data set -> module under `builders`, class and configuration of its TFDS builder.
_BUILDERS = {
    "scenes": ("scenes", "Scenes", "default"),
}


def open_source(
    name: str, split: str, data_dir: str | None = None, *, drawn: bool = False
) -> Source:
    """Opens a split of a data set.

    Args:
        name: A key of `DATASETS`.
        split: One of its splits.
        data_dir: For file sets the folder in its published layout, by default that of
            the set's environment variable (`ENCNET_CAMVID`); for TFDS sets the folder
            of prepared sets, by default TFDS's own.
        drawn: Draw `scenes` instead of preparing it on disk; needs no TensorFlow.

    Raises:
        UserError: Unknown name or split, missing or empty folder, a bad file.
    """
    if name not in DATASETS:
        raise UserError(f"data.name={name!r}: allowed are {', '.join(DATASETS)}")
    info = DATASETS[name]
    if split not in info.splits:
        allowed = ", ".join(info.splits)
        raise UserError(f"split {split!r} of {name}: allowed are {allowed}")
    if drawn and name == "scenes":
        return DrawnSource(info, split)
    if name in _BUILDERS:
        return _open_records(info, split, data_dir)
    return _OPENERS[name](info, split, data_dir)


def _open_records(info: DatasetInfo, split: str, data_dir: str | None) -> Source:
    builder = create_builder(info.name, data_dir)
    if not builder.data_path.exists():
        _log.info("preparing %s, once, in %s", info.name, builder.data_path)
    builder.download_and_prepare()
    return RecordSource(info, builder, split)


def create_builder(name: str, data_dir: str | None):
    """Returns the TFDS builder of a data set that has one."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    file, builder, config = _BUILDERS[name]
    module = importlib.import_module(f"encnet_jax.data.builders.{file}")
    return getattr(module, builder)(config=config, data_dir=data_dir)


def _open_camvid(info: DatasetInfo, split: str, data_dir: str | None) -> Source:
    folder = data_dir or os.environ.get("ENCNET_CAMVID")
    if not folder:
        raise UserError(
            "data.data_dir: give the CamVid folder (train/, trainannot/, ...) by "
            "--config.data.data_dir=DIR or in ENCNET_CAMVID"
        )
    root = Path(folder).expanduser()
    source = FileSource(info, pair_files(root / split, root / f"{split}annot"))
    source.check()
    return source


_OPENERS: dict[str, Callable[..., Source]] = {"camvid": _open_camvid}
