"""Whether a training may continue what is in a workdir, and what it keeps of it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from encnet_jax.config import load_config
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.errors import UserError
from encnet_jax.evaluate.settings import (
    describe_differences,
    differences_from_training,
    protocol_from_config,
    whole_image_size,
)
from encnet_jax.run.checkpoint_folder import read_scores, saved_steps
from encnet_jax.run.model_config import TRAINING_ONLY
from encnet_jax.run.model_folder import is_model_folder
from encnet_jax.run.workdir import (
    best_metric_name,
    check_no_run_files,
    check_resumed_classes,
)

_log = logging.getLogger(__name__)


def check_workdir(config: ConfigDict, workdir: Path, info: DatasetInfo) -> None:
    """Raises `UserError` if the workdir has a run of another model or data set.

    So does a folder without a run but with files of the names that a run writes, such
    as the `classes.json` of a data set. A run that ended before its first checkpoint
    has nothing to lose, and is no obstacle.

    Args:
        config: See `encnet_jax.config`.
        workdir: Folder of the run.
        info: The data set to train on.
    """
    path = workdir / "config.json"
    if not path.exists():
        if saved_steps(workdir / "checkpoints"):
            raise UserError(
                f"{path}: is missing beside the checkpoints of a run; copy it there "
                "too, or use another --workdir"
            )
        check_no_run_files(workdir, "workdir")
        return
    if is_model_folder(workdir):
        raise UserError(
            f"workdir={workdir}: a model folder, which no training can continue; start "
            f"from it in another --workdir: --config.model.weights={workdir}"
        )
    if not saved_steps(workdir / "checkpoints"):
        try:
            load_config(path)
        except UserError as error:  # somebody's file, or a newer version's
            raise UserError(f"{error}; choose another workdir") from error
        return
    stored = load_config(path)
    pairs = {
        f"model.{key}": (stored.model[key], config.model[key])
        for key in config.model
        if key not in TRAINING_ONLY
    }
    for key in ("name", "channels"):
        pairs[f"data.{key}"] = (stored.data[key], config.data[key])
    pairs["optimizer.name"] = (stored.optimizer.name, config.optimizer.name)
    decays = stored.optimizer.ema_decay, config.optimizer.ema_decay
    if 0 in decays:  # the checkpoints have averages, or have not
        pairs["optimizer.ema_decay"] = decays
    _check_equal(pairs, workdir)
    check_resumed_classes(workdir, info)


def check_splits(config: ConfigDict, workdir: Path, info: DatasetInfo) -> None:
    """Raises `UserError` if the workdir has a run on other splits.

    Scores of another split would be ranked with those that there are. A run that has
    taken all steps prints them, and keeps its own.

    Args:
        config: See `encnet_jax.config`, of a training on the splits that it names.
        workdir: Folder of the run.
        info: The data set to train on.
    """
    steps = saved_steps(workdir / "checkpoints")
    if not steps:
        return
    stored = load_config(workdir / "config.json")
    pairs = {"data.train_split": (stored.data.train_split, config.data.train_split)}
    if steps[-1] < config.total_steps and _is_scored(workdir, info):
        pairs["evaluation.split"] = (stored.evaluation.split, config.evaluation.split)
    _check_equal(pairs, workdir)


def _check_equal(pairs: Mapping[str, tuple[Any, Any]], workdir: Path) -> None:
    for key, (there, here) in pairs.items():
        if there != here:
            raise UserError(
                f"{key}={here!r}: the run in {workdir} has {there!r}; set that to "
                "continue it, or use another --workdir"
            )


def with_stored_origin(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Returns the configuration with the `model.weights` from which the run started.

    A run that has steps continues from these, and keeps the record of where it began.
    """
    path = workdir / "config.json"
    if not (path.exists() and saved_steps(workdir / "checkpoints")):
        return config
    stored = load_config(path).model.weights
    if stored == config.model.weights:
        return config
    if config.model.weights:
        _log.warning(
            "WARNING: model.weights=%s is not read: the run in %s continues from its "
            "own steps",
            *(config.model.weights, workdir),
        )
    config = config.copy_and_resolve_references()
    config.model.weights = stored
    return config


def log_changes(config: ConfigDict, workdir: Path, info: DatasetInfo) -> None:
    """Warns where a run continues on other data, or is scored otherwise than before.

    Args:
        config: See `encnet_jax.config`; `check_workdir` has passed it.
        workdir: Folder of the run.
        info: The data set.
    """
    steps = saved_steps(workdir / "checkpoints")
    if not steps or steps[-1] >= config.total_steps:
        return
    stored = load_config(workdir / "config.json")
    there, here = stored.data.data_dir, config.data.data_dir
    known = there and here and Path(there).is_absolute()  # older ones are as typed
    if known and Path(there).resolve() != Path(here).resolve():
        _log.warning(
            "WARNING: data.data_dir=%s: the run in %s was trained on %s so far, and "
            "continues from there; to train anew use another --workdir",
            *(here, workdir, there),
        )
    alike = _scoring(config, info) == _scoring(stored, info)
    if _is_scored(workdir, info) and not alike:
        _log.warning(
            "WARNING: checkpoints from here on are scored otherwise than those before, "
            "and ranked with them: %s",
            describe_differences(differences_from_training(config, workdir)),
        )


def _scoring(config: ConfigDict, info: DatasetInfo) -> Any:
    """Returns all that scores depend on beside the network and the split."""
    if info.task == "classification":
        return None
    settings = config.evaluation
    protocol = protocol_from_config(config, config.model, info)
    if protocol is None:
        whole = whole_image_size(config), settings.align_corners
        return whole, settings.absent_classes
    return protocol, settings.absent_classes


def _is_scored(workdir: Path, info: DatasetInfo) -> bool:
    scores = read_scores(workdir / "checkpoints", best_metric_name(info))
    return any(score is not None for score in scores.values())
