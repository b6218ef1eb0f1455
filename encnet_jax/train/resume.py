"""Whether a run may resume in a workdir, and what it keeps from it."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from encnet_jax.config import leaves, load_config, plain
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.errors import UserError
from encnet_jax.evaluate.settings import (
    describe_differences,
    differences_from_training,
    protocol_from_config,
    whole_image_size,
)
from encnet_jax.run.checkpoint_folder import (
    Scores,
    best_metric_name,
    read_scores,
    saved_steps,
)
from encnet_jax.run.model_config import TRAINING_ONLY
from encnet_jax.run.model_folder import is_model_folder
from encnet_jax.run.unread_settings import unread_settings
from encnet_jax.run.workdir import check_no_run_files, check_resumed_classes
from encnet_jax.train.settings import create_schedule

_log = logging.getLogger(__name__)
# Besides `evaluation`, settings that teach nothing else, or have checks of their own;
# a run may continue for longer, and elsewhere.
_NOT_LEARNING = frozenset(
    "total_steps log_every eval_every checkpoint_every early_stopping tracker "
    "mesh.data data.train_split data.cache_on_device data.padded_size "
    "data.max_image_pixels".split()
) | {f"model.{key}" for key in TRAINING_ONLY if key != "freeze_backbone"}


class _StoredRun(NamedTuple):
    """A run with checkpoints: its configuration, and the latest step saved."""

    config: ConfigDict
    last_step: int


def check_workdir(config: ConfigDict, workdir: Path, info: DatasetInfo) -> None:
    """Raises `UserError` if the workdir has a run of another model or data set.

    Also raises for a folder that has no run, but files named like those of a run, such
    as the `classes.json` of a data set. A run that ended before its first checkpoint
    has nothing to lose, and is no obstacle.

    Args:
        config: See `encnet_jax.config`.
        workdir: Folder of the run.
        info: The data set to train on.
    """
    if (workdir / "config.json").exists() and is_model_folder(workdir):
        raise UserError(
            f"workdir={workdir}: a model folder, which no training can continue; start "
            f"from it in another --workdir: --config.model.weights={workdir}"
        )
    run = _stored_run(workdir)
    if run is None:
        _check_startable(workdir)
        return
    stored = run.config
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
    frozen = stored.model.freeze_backbone, config.model.freeze_backbone
    if frozen == (True, False) and config.optimizer.name == "adamw":
        # The moments of the backbone start at 0 then, but the step, by which AdamW
        # corrects for that, does not: updates would be up to 6.5 times too large.
        pairs["model.freeze_backbone"] = frozen
    _check_equal(pairs, workdir)
    check_resumed_classes(workdir, info)


def check_splits(config: ConfigDict, workdir: Path, info: DatasetInfo) -> None:
    """Raises `UserError` if the workdir has a run on other splits.

    Scores of another split would be ranked among the existing ones, or mistaken for
    scores of the stored one. A run with all steps taken and scored keeps its own.

    Args:
        config: See `encnet_jax.config`, of a training on the splits that it names.
        workdir: Folder of the run.
        info: The data set to train on.
    """
    run = _stored_run(workdir)
    if run is None:
        return
    stored, scores = run.config, _scores(workdir, info)
    pairs = {"data.train_split": (stored.data.train_split, config.data.train_split)}
    remains = run.last_step < config.total_steps
    if _is_scored(scores) if remains else scores[run.last_step] is None:
        pairs["evaluation.split"] = (stored.evaluation.split, config.evaluation.split)
    _check_equal(pairs, workdir)


def _stored_run(workdir: Path) -> _StoredRun | None:
    """Returns the run in a workdir; None if it has no checkpoint.

    Raises:
        UserError: Its configuration is missing or malformed.
    """
    steps = saved_steps(workdir / "checkpoints")
    if not steps:
        return None
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(
            f"{path}: is missing beside the checkpoints of a run; copy it there too, "
            "or use another --workdir"
        )
    return _StoredRun(load_config(path), steps[-1])


def _check_startable(workdir: Path) -> None:
    """Raises `UserError` if a new run would replace files that are not of a run."""
    path = workdir / "config.json"
    if not path.exists():
        check_no_run_files(workdir, "workdir")
        return
    try:
        load_config(path)
    except UserError as error:  # another program's file, or a newer version's
        raise UserError(f"{error}; choose another workdir") from error


def _check_equal(pairs: Mapping[str, tuple[Any, Any]], workdir: Path) -> None:
    for key, (there, here) in pairs.items():
        if there != here:
            raise UserError(
                f"{key}={here!r}: the run in {workdir} has {there!r}; set that to "
                "continue it, or use another --workdir"
            )


def with_stored_weights(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Returns the configuration with the `model.weights` from which the run started.

    A run that has steps continues from these, and keeps the record of where it began.
    """
    run = _stored_run(workdir)
    if run is None or run.config.model.weights == config.model.weights:
        return config
    if config.model.weights:
        _log.warning(
            "WARNING: model.weights=%s is not read: the run in %s continues from its "
            "own steps",
            *(config.model.weights, workdir),
        )
    config = config.copy_and_resolve_references()
    config.model.weights = run.config.model.weights
    return config


def log_changes(config: ConfigDict, workdir: Path, info: DatasetInfo) -> None:
    """Warns where a run was trained, or scored, by other settings so far.

    Args:
        config: See `encnet_jax.config`; `check_workdir` has passed it.
        workdir: Folder of the run.
        info: The data set.
    """
    run = _stored_run(workdir)
    if run is None:
        return
    stored, scores = run.config, _scores(workdir, info)
    complete = run.last_step >= config.total_steps
    if changes := _changed_training(stored, config, complete):
        _log.warning(
            "WARNING: %s: the %d steps that the run in %s has taken stay as they are; "
            "to train anew use another --workdir",
            *(changes, run.last_step, workdir),
        )
    if not complete and config.total_steps != stored.total_steps:
        next_rate, planned = (
            float(create_schedule(each)(run.last_step)) for each in (config, stored)
        )
        _log.info(
            "total_steps=%d (so far: %d): the learning rate continues at %.3g, in "
            "place of %.3g",
            *(config.total_steps, stored.total_steps, next_rate, planned),
        )
    if complete and scores[run.last_step] is not None:
        return
    alike = _scoring(config, info) == _scoring(stored, info)
    if not alike and _is_scored(scores):
        _log.warning(
            "WARNING: later checkpoints are scored differently from earlier ones, but "
            "ranked with them: %s",
            describe_differences(differences_from_training(config, workdir)),
        )


def _changed_training(stored: ConfigDict, config: ConfigDict, complete: bool) -> str:
    """Returns the settings that train otherwise, `key=value (so far: value)`."""
    there, here = stored.data.data_dir, config.data.data_dir
    # Older runs have it as typed, from an unknown folder.
    unknown = not (there and here and Path(there).is_absolute())
    ignored = set(_NOT_LEARNING)
    if complete or unknown or Path(there).resolve() == Path(here).resolve():
        ignored.add("data.data_dir")
    before = dict(leaves(stored))
    return ", ".join(
        f"{key}={value!r} (so far: {before[key]!r})"
        for key, value in leaves(config)
        if key not in ignored
        and not key.startswith("evaluation.")
        and plain(value) != plain(before[key])
        and not all(unread_settings(each, [key]) for each in (stored, config))
    )


def _scoring(config: ConfigDict, info: DatasetInfo) -> Any:
    """Returns what scores depend on besides the network and the split.

    Unlike with `differences_from_training` settings of equal effect are equal.
    """
    if info.task == "classification":
        return config.data.crop_size
    settings = config.evaluation
    protocol = protocol_from_config(config, config.model, info)
    if protocol is None:
        whole = whole_image_size(config), settings.align_corners
        return whole, settings.absent_classes
    resolved = dataclasses.replace(protocol, stride=protocol.window_distance)
    return resolved, settings.absent_classes


def _is_scored(scores: Scores) -> bool:
    return any(score is not None for score in scores.values())


def _scores(workdir: Path, info: DatasetInfo) -> Scores:
    return read_scores(workdir / "checkpoints", best_metric_name(info))
