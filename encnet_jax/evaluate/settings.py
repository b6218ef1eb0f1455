"""Settings of an evaluation: those of the run, unless the command line sets others."""

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from encnet_jax.config import plain
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.registry import DATASETS, LocalDataset, folder_variable
from encnet_jax.errors import UserError
from encnet_jax.files import is_address, user_path
from encnet_jax.inference.tta import (
    MmsegProtocol,
    PyTorchEncodingProtocol,
    TTAProtocol,
)
from encnet_jax.run.checkpoint_folder import saved_steps
from encnet_jax.run.folder_config import (
    PREDICTION_KEYS,
    has_windows,
    has_windows_at_one_scale,
    multi_scale,
)
from encnet_jax.run.model_config import TRAINING_ONLY
from encnet_jax.run.model_folder import is_model_folder
from encnet_jax.run.unread_settings import unread_settings
from encnet_jax.run.workdir import load_run_config

_SIZES = ("base_size", "crop_size")
_READ = ("channels", "value_range")  # how images become numbers
# Keys of `model` that may be set for an evaluation.
_FREE = (*TRAINING_ONLY, "dtype", "dropout")
# Keys of `evaluation` and `data` that change no score.
_NEUTRAL = (
    *("batch_size", "split", "object_sizes", "boundary_iou"),
    "max_image_pixels",
)
_MULTI_SCALE = "-ms"
_log = logging.getLogger(__name__)


def evaluation_config(
    given: ConfigDict, workdir: str | Path, explicit: Collection[str]
) -> ConfigDict:
    """Returns the configuration by which a run is evaluated.

    Whatever changes predictions or scores is taken from the run: `model`, `evaluation`,
    `data.base_size`, `data.crop_size` and `data.max_image_pixels`; from a model folder
    what it stores of these. Of imported weights only `model` and
    `evaluation.align_corners` are taken, as nothing else was used to train them. `mesh`
    and the data set are those given. Values of `given` that are replaced are logged in
    one line.

    Args:
        given: The configuration that `--config` names, with its overrides.
        workdir: Folder of the run.
        explicit: Keys that the command line sets, such as `data.base_size`; they stay.

    Raises:
        UserError: There is no run, or a key of `model`, or of how images are read, is
            set to another value.
    """
    workdir = user_path(workdir)
    stored = load_run_config(workdir)
    _check_reading(given, stored, workdir, explicit)
    config = given.copy_and_resolve_references()
    keys = _inherited_keys(given, stored, workdir)
    unused = []
    for key in (*keys, *(f"model.{key}" for key in stored.model)):
        group, _, name = key.partition(".")
        value, other = stored[group][name], config[group][name]
        if value == other:
            continue
        if key not in explicit:
            config[group][name] = value
            if group != "model" and name not in (*_NEUTRAL, "data_dir"):
                unused.append(f"{key}={plain(value)!r}, not {plain(other)!r}")
        elif group == "model" and name not in _FREE:
            raise UserError(f"{key}={other!r}: the run in {workdir} has {value!r}")
    if unused:
        _log.info("as in the training, unless set by a flag: %s", "; ".join(unused))
    return config


def _check_reading(
    given: ConfigDict, stored: ConfigDict, workdir: Path, explicit: Collection[str]
) -> None:
    """Raises `UserError` for a flag by which images would be read differently."""
    # A model folder stores the range with its classes, not among its settings.
    for key in ("channels",) if is_model_folder(workdir) else _READ:
        value = plain(given.data[key])
        if f"data.{key}" in explicit and value != plain(stored.data[key]):
            raise UserError(
                f"data.{key}={value!r}: images are read as in the training of "
                f"{workdir}; remove the flag"
            )


def _inherited_keys(given: ConfigDict, stored: ConfigDict, workdir: Path) -> list[str]:
    """Returns the keys of `data` and `evaluation` that are taken from the run."""
    same_data = given.data.name == stored.data.name
    if _is_imported(workdir):
        keys = ["evaluation.align_corners"]
    elif is_model_folder(workdir):
        keys = [f"evaluation.{key}" for key in PREDICTION_KEYS]
        keys += [f"data.{key}" for key in _SIZES]
    else:
        keys = [f"evaluation.{key}" for key in stored.evaluation]
        keys += [f"data.{key}" for key in (*_SIZES, "max_image_pixels")]
        if same_data:
            keys.append("data.cache_on_device")
        else:
            keys.remove("evaluation.split")
    variable = folder_variable(given.data.name)
    if same_data and given.data.data_dir is None and not os.environ.get(variable):
        keys.append("data.data_dir")
    return keys


def check_data_folder(config: ConfigDict, workdir: Path, *, labels: bool) -> None:
    """Raises `UserError` if the folder of a local data set that the run stores is gone.

    Older runs store a relative path as it was typed. If that is a folder here, a log
    line names it in full.

    Args:
        config: Settings of the evaluation.
        workdir: Folder of the run.
        labels: Whether the data set is read, not only its classes.
    """
    data, stored = config.data, load_run_config(workdir).data
    entry = DATASETS.get(data.name)
    if not isinstance(entry, LocalDataset) or (entry.info and not labels):
        return
    if not data.data_dir or is_address(data.data_dir):
        return
    if (data.name, data.data_dir) != (stored.name, stored.data_dir):
        return
    folder, origin = user_path(data.data_dir), f"as {workdir / 'config.json'} has it"
    if not os.path.isdir(folder):  # unlike `Path.is_dir` never raises
        here = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise UserError(
            f"data.data_dir={data.data_dir!r}, {origin}: no such folder{here}; give "
            "that of the data set: --config.data.data_dir=DIR"
        )
    if not folder.is_absolute():
        path = folder.absolute()
        _log.info("data.data_dir=%r, %s: is %s here", data.data_dir, origin, path)


def differences_from_training(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Returns the settings that change scores and are not those of the training.

    Args:
        config: Settings of the evaluation.
        workdir: Folder of the run.

    Returns:
        Key -> `value` and `training`, the values here and there. Empty for imported
        weights.
    """
    if _is_imported(workdir):
        return {}
    stored = load_run_config(workdir)
    if is_model_folder(workdir):
        keys = [f"evaluation.{key}" for key in PREDICTION_KEYS]
    else:
        keys = [f"evaluation.{key}" for key in stored.evaluation if key not in _NEUTRAL]
        keys.append("data.name")
    found = {}
    for key in (*(f"data.{key}" for key in _SIZES), "model.dtype", *keys):
        group, _, name = key.partition(".")
        value, training = (plain(c[group][name]) for c in (config, stored))
        if value != training and not unread_settings(config, [key]):
            found[key] = {"value": value, "training": training}
    return found


def describe_differences(differences: dict[str, Any]) -> str:
    """Returns `differences_from_training` as text, `key=value (training: value)`."""
    return ", ".join(
        f"{key}={pair['value']!r} (training: {pair['training']!r})"
        for key, pair in differences.items()
    )


def evaluation_name(split: str, settings: ConfigDict) -> str:
    """Returns the name of the files of an evaluation: `test`, or `test-ms`.

    Args:
        split: Name of the split.
        settings: `evaluation`. `scales=(1.0,)` counts as a single scale, unless it is
            what makes the evaluation cut windows in place of whole images.
    """
    alike = has_windows_at_one_scale(settings) and not multi_scale(settings.scales)
    single = not settings.scales or alike
    return split + ("" if single else _MULTI_SCALE)


def evaluated_split(name: str) -> str:
    """Returns the split in the name of an evaluation."""
    return name.removesuffix(_MULTI_SCALE)


def whole_image_size(config: ConfigDict) -> int:
    """Returns the long side to which whole images are resized; 0 keeps their size."""
    return config.evaluation.base_size or config.data.base_size


def protocol_from_config(
    config: ConfigDict, model: Any, info: DatasetInfo
) -> TTAProtocol | None:
    """Returns how images are cut into windows, or None where each is one input.

    Args:
        config: Settings of the evaluation.
        model: A segmentation model, or an abstract one; its `align_corners` applies to
            the windows of `pytorch_encoding`.
        info: The data set.
    """
    if not has_windows(config):
        return None
    settings = config.evaluation
    windows: dict[str, Any] = dict(
        crop_size=settings.crop_size or config.data.crop_size,
        scales=tuple(settings.scales) or (1.0,),
        flip=settings.flip,
        stride=settings.stride,
        mean=info.mean,
        std=info.std,
    )
    if settings.protocol == "mmseg":
        if settings.mode == "whole":
            windows["crop_size"] = 0
        return MmsegProtocol(
            base_size=settings.base_size,
            short_size=settings.short_size,
            align_corners=settings.align_corners,
            **windows,
        )
    return PyTorchEncodingProtocol(
        base_size=settings.base_size or config.data.base_size,
        align_corners=model.align_corners,
        **windows,
    )


def slide_protocol(config: ConfigDict, model: Any, info: DatasetInfo) -> TTAProtocol:
    """Returns `protocol_from_config` for `evaluation.mode=slide`, whatever the mode."""
    config = config.copy_and_resolve_references()
    config.evaluation.mode = "slide"
    protocol = protocol_from_config(config, model, info)
    assert protocol is not None
    return protocol


def set_protocol(
    config: ConfigDict,
    base_size: int,
    align_corners: bool,
    protocol: TTAProtocol | None,
) -> None:
    """Sets the settings by which a `Segmenter` predicts; see `protocol_from_config`.

    Args:
        config: Changed: groups `evaluation` and `data`.
        base_size: Long side of whole images; 0 keeps their size.
        align_corners: How they are resized.
        protocol: How images are cut into windows instead, if they are.
    """

    def builtin(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else value

    settings = config.evaluation
    settings.base_size = config.data.base_size = builtin(base_size)
    settings.align_corners = builtin(align_corners)
    if protocol is None:
        return
    settings.mode = "slide" if protocol.crop_size else "whole"
    for key in ("base_size", "crop_size", "stride", "scales", "flip"):
        settings[key] = builtin(getattr(protocol, key))
    config.data.base_size = settings.base_size
    if isinstance(protocol, MmsegProtocol):
        settings.protocol = "mmseg"
        settings.short_size = builtin(protocol.short_size)
        settings.align_corners = builtin(protocol.align_corners)


def _is_imported(workdir: Path) -> bool:
    """Returns whether the weights were converted; training saves from step 1 on."""
    return saved_steps(workdir / "checkpoints") == [0]
