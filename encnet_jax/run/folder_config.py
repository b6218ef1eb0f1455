"""`config.json` of a model folder: network, classes, sizes, origin of the weights."""

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from encnet_jax.config_checks import validate
from encnet_jax.data.dataset_info import (
    IGNORE_LABEL,
    DatasetInfo,
    info_from_json,
    info_to_json,
)
from encnet_jax.errors import UserError
from encnet_jax.migrations import migrate_config
from encnet_jax.models.registry import check_model_settings, segments
from encnet_jax.run.model_config import TRAINING_ONLY, config_of_model, model_settings
from encnet_jax.run.training_record import check_record, is_number

FORMAT, VERSION = "encnet_jax", 1
# Entries of `prediction`, all keys of `evaluation`. Those of the second line are for
# `encnet predict --slide` where evaluation takes whole images; older folders may lack
# them. Those of the third are only there where images are cut into windows or evaluated
# at several scales.
_WHOLE = ("mode", "protocol", "base_size", "align_corners")
_SLIDE = ("crop_size", "stride")
_WINDOWS = ("scales", "flip", "short_size")
PREDICTION_KEYS = (*_WHOLE, *_SLIDE, *_WINDOWS)
_ALLOWED = {
    "name": "a text",
    "class_names": f"2 to {IGNORE_LABEL} different texts, none of them empty",
    "colors": "three integers from 0 to 255 per class",
    "mean": "a number per channel",
    "std": "as many numbers greater than 0",
    "value_range": "two numbers, the first one less; of bands such a pair per channel",
    "display_channels": "three channels or one, from 0",
    "label_map": f"integers from 0 to 255, each with a class or {IGNORE_LABEL}",
    "label_colors": "four integers from 0 to 255 per color",
    "task": "segmentation or classification",
}


class FolderConfig(NamedTuple):
    """The contents of a `config.json`.

    Attributes:
        config: The default configuration with the network, the sizes, and the settings
            of `evaluation` by which the saved model predicts.
        info: Classes and normalization.
        training: Where the weights come from, and their scores, see
            `training_record`; may be empty.
    """

    config: ConfigDict
    info: DatasetInfo
    training: dict[str, Any]


def to_json(
    config: ConfigDict, info: DatasetInfo, training: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the contents as `json.loads` would; see `FolderConfig`."""
    network = {
        k: v for k, v in config.model.to_dict().items() if k not in TRAINING_ONLY
    }
    stored: dict[str, Any] = {
        "format": FORMAT,
        "format_version": VERSION,
        "model": {"name": config.model.name, "num_classes": info.num_classes} | network,
        "data": info_to_json(info),
        "prediction": _prediction(config, info),
    }
    if training:
        stored["training"] = dict(training)
    return json.loads(json.dumps(stored))


def from_json(stored: Any, path: Path) -> FolderConfig:
    """Returns the contents of a file.

    Args:
        stored: As returned by `json.loads`.
        path: The file, for errors.

    Raises:
        UserError: Not of a model folder, of a newer version, or malformed.
    """
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise UserError(f'{path}: not of a model folder: "format" is not "{FORMAT}"')
    version = stored.get("format_version")
    if type(version) is not int or version != VERSION:
        raise UserError(
            f"{path}: format_version={version!r}: this version reads {VERSION}; a "
            "newer encnet_jax may read it"
        )
    groups = ("model", "data", "prediction")
    training = stored.get("training", {})
    for name, group in (*((g, stored.get(g)) for g in groups), ("training", training)):
        if not isinstance(group, dict):
            raise UserError(f"{path}: {name}: must be an object")
    info = info_from_json(stored["data"], path)
    _check_info(info, path)
    check_record(training, path)
    migrated = migrate_config(
        {"model": stored["model"], "evaluation": stored["prediction"]}
    )
    network, prediction = migrated["model"], migrated["evaluation"]
    count = network.get("num_classes")
    if count != info.num_classes:
        raise UserError(
            f"{path}: model.num_classes={count!r}; data.class_names has "
            f"{info.num_classes} names"
        )
    try:
        config = config_of_model(network)
        config.data.channels = info.channels
        check_model_settings(num_classes=count, **model_settings(config))
        config.data.crop_size = training.get("crop_size", config.data.crop_size)
        _set_prediction(config, info, prediction)
        _validate(config)
    # A value such as null in place of a number fails where it is used.
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    gate = training.get("mean_gate", {}).get("gate")
    if gate is not None and len(gate) != config.model.head_channels:
        raise UserError(
            f"{path}: training.mean_gate: {len(gate)} channels; model.head_channels is "
            f"{config.model.head_channels}"
        )
    if segments(config.model.name) != (info.task == "segmentation"):
        raise UserError(f"{path}: data.task={info.task!r}: not that of the network")
    return FolderConfig(config, info, training)


def has_windows(config: ConfigDict) -> bool:
    """Returns whether images are not simply resized; see `protocol_from_config`."""
    settings = config.evaluation
    return has_windows_at_one_scale(settings) or bool(settings.scales)


def has_windows_at_one_scale(settings: ConfigDict) -> bool:
    """Returns whether `evaluation` has windows without `scales` too."""
    return settings.protocol == "mmseg" or settings.mode == "slide"


def multi_scale(scales: Sequence[float]) -> bool:
    """Returns whether `evaluation.scales` asks for more than images at scale 1."""
    return tuple(scales) not in ((), (1.0,))


def _prediction(config: ConfigDict, info: DatasetInfo) -> dict[str, Any]:
    if info.task == "classification":
        return {"size": config.data.crop_size}
    settings, slides = config.evaluation, has_windows(config)
    keys = PREDICTION_KEYS if slides else (*_WHOLE, *_SLIDE)
    entry = {key: settings[key] for key in keys}
    entry["crop_size"] = settings.crop_size or config.data.crop_size
    if settings.protocol != "mmseg":  # which takes 0 for no bound
        entry["base_size"] = settings.base_size or config.data.base_size
        entry["mode"] = "slide" if slides else "whole"  # with scales always windows
    if slides:
        # As for a run that evaluates at one scale; for windows, () and (1,) are equal.
        entry["scales"] = tuple(settings.scales) if multi_scale(settings.scales) else ()
    return entry


def _set_prediction(
    config: ConfigDict, info: DatasetInfo, prediction: Mapping[str, Any]
) -> None:
    """Sets in a configuration what `_prediction` reads from it."""
    if info.task == "classification":
        if prediction.keys() != {"size"}:
            raise UserError(f"prediction: {[*prediction]}: must be size")
        config.data.crop_size = prediction["size"]
        return
    if not {*_WHOLE} <= prediction.keys() <= {*PREDICTION_KEYS}:
        raise UserError(
            f"prediction: has {', '.join(prediction)}; must be {', '.join(_WHOLE)}, "
            f"and for windows {', '.join((*_SLIDE, *_WINDOWS))}"
        )
    for key, value in prediction.items():
        default = config.evaluation[key]
        # A configuration accepts None for any key, and True for a number.
        if value is None or isinstance(value, bool) != isinstance(default, bool):
            allowed = type(default).__name__
            raise UserError(f"prediction.{key}={value!r}: must be {allowed}")
        config.evaluation[key] = tuple(value) if key == "scales" else value
    config.data.base_size = config.evaluation.base_size
    config.data.crop_size = config.evaluation.crop_size or config.data.crop_size


def _validate(config: ConfigDict) -> None:
    config = config.copy_and_resolve_references()
    config.total_steps = 1
    # Images that keep their size; no training could have it.
    config.data.base_size = config.data.base_size or 1
    validate(config)


def _check_info(info: DatasetInfo, path: Path) -> None:
    """Raises for metadata that prediction, overlays or label files would choke on."""
    names, count = info.class_names, info.num_classes
    classes = {*range(count), IGNORE_LABEL}

    def is_text(value: Any) -> bool:
        # Half a surrogate pair cannot be written to a file.
        return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)

    def bytes_only(*values: Any) -> bool:
        return all(type(value) is int and 0 <= value <= 255 for value in values)

    def numbers(values: Any, length: int) -> bool:
        return len(values) == length and all(map(is_number, values))

    def is_range(pair: Any) -> bool:
        is_pair = isinstance(pair, tuple) and numbers(pair, 2)
        return is_pair and pair[0] < pair[1]

    ranges: Any = info.value_range
    if info.banded:
        good_range = ranges is not None and len(ranges) == info.channels
        good_range = good_range and all(map(is_range, ranges))
    else:
        good_range = ranges is None or is_range(ranges)
    shown = info.display_channels
    valid = {
        "name": is_text(info.name),
        "class_names": 2 <= count <= IGNORE_LABEL
        and all(is_text(name) and name for name in names)
        and len({*names}) == count,
        "colors": len(info.colors) == count
        and all(len(color) == 3 and bytes_only(*color) for color in info.colors),
        "mean": len(info.mean) > 0 and numbers(info.mean, info.channels),
        "std": numbers(info.std, info.channels) and min(info.std) > 0,
        "value_range": good_range,
        "display_channels": len(shown) in (0, 1, 3)
        and bytes_only(*shown)
        and all(channel < info.channels for channel in shown),
        "label_map": bytes_only(*info.label_map)
        and all(
            bytes_only(index) and index in classes for index in info.label_map.values()
        ),
        "label_colors": all(
            bytes_only(*color, label) for color, label in info.label_colors.items()
        ),
        "task": info.task in ("segmentation", "classification"),
    }
    for key, good in valid.items():
        if not good:
            value = reprlib.repr(getattr(info, key))
            raise UserError(f"{path}: data.{key}={value}: must be {_ALLOWED[key]}")
