"""Model folders: a trained model in three files, to keep, share and read anywhere.

`model.safetensors` holds parameters and running statistics by path, float32;
`config.json` the network, classes, normalization, and how images are resized and cut
into windows; `README.md` describes them. Nothing in a folder is executed, and no other
file is read. The folder of a training, with checkpoints, is a workdir instead.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.errors import UserError, shortened
from encnet_jax.files import (
    INCOMPLETE,
    check_folder,
    make_folder,
    user_path,
    whole_file,
)
from encnet_jax.run import folder_config, hub
from encnet_jax.run.folder_config import FORMAT, FolderConfig
from encnet_jax.run.model_card import folder_card, is_card
from encnet_jax.run.model_config import abstract_model
from encnet_jax.run.state import ModelDef, PureDict, flatten_paths, from_paths

CONFIG, WEIGHTS, CARD = FILES = ("config.json", "model.safetensors", "README.md")


class StoredModel(NamedTuple):
    """A model folder; the configuration is as in `FolderConfig`."""

    config: ConfigDict
    info: DatasetInfo
    training: dict[str, Any]
    model_def: ModelDef
    params: PureDict
    batch_stats: PureDict


def is_model_folder(folder: Path) -> bool:
    """Returns whether a folder is meant as a model folder, valid or not."""
    path = folder / CONFIG
    if not os.path.exists(path):  # unlike `Path.exists` never raises
        return os.path.exists(folder / WEIGHTS)
    try:
        return "format" in _read_json(path)
    except (UserError, TypeError):
        return False


def find_model_folder(source: str | Path) -> Path:
    """Returns a model folder on this machine, downloaded first if it is on the hub.

    Args:
        source: A folder; or, as text, `OWNER/REPO` or `hf://OWNER/REPO@REVISION`.

    Raises:
        UserError: It is none of them, or cannot be downloaded.
    """
    address = str(source)
    if not address.startswith(hub.PREFIX):
        folder = user_path(source)
        if os.path.isdir(folder):  # unlike `Path.is_dir` never raises
            if not is_model_folder(folder) and (folder / "checkpoints").is_dir():
                raise UserError(
                    f"{source}: a workdir, no model folder; use from_workdir"
                )
            return folder
        if os.path.exists(folder):
            raise UserError(f"{source}: a file; must be the folder of the model")
    if not isinstance(source, str) or hub.parse_repository(address) is None:
        raise UserError(
            f"{source}: no such folder; allowed are a model folder, OWNER/REPO and "
            "hf://OWNER/REPO@REVISION"
        )
    try:
        return hub.download_folder(address, (CONFIG, WEIGHTS))
    except UserError as error:
        if address.startswith(hub.PREFIX):
            raise
        raise UserError(f"{error}; nor is it a folder here") from error


def read_folder_config(folder: Path) -> FolderConfig:
    """Reads the `config.json` of a model folder.

    Raises:
        UserError: It is missing, of a newer version, or malformed.
    """
    path = folder / CONFIG
    return folder_config.from_json(_read_json(path), path)


def read_model_folder(folder: Path, **settings: Any) -> StoredModel:
    """Reads a model folder.

    Args:
        folder: The folder.
        **settings: Overrides of the model's settings.

    Raises:
        UserError: A file is missing, truncated or malformed, of a newer version, or
            the arrays are not those of the network; all of them in one error.
    """
    config, info, training = read_folder_config(folder)
    config.model.update(settings)
    model_def, params, batch_stats = abstract_model(config, info.num_classes)
    arrays = _read_arrays(folder / WEIGHTS, params, batch_stats)
    arrays = jax.device_put(arrays, jax.local_devices()[0])
    trees = (from_paths(arrays, tree) for tree in (params, batch_stats))
    return StoredModel(config, info, training, model_def, *trees)


def write_model_folder(
    folder: Path,
    stored: FolderConfig,
    params: PureDict,
    batch_stats: PureDict,
    *,
    setting: str = "folder",
    license_id: str = "unknown",
    address: str = "",
) -> None:
    """Writes a model folder; until it is complete, the folder stays as it was.

    Args:
        folder: New, empty, or with nothing but an earlier model folder in it, which is
            replaced.
        stored: The configuration.
        params: Parameters.
        batch_stats: Running statistics.
        setting: What names the folder, for errors: `--output` or `folder`.
        license_id: License of the weights for the card: an identifier of the hub.
        address: OWNER/REPO where the folder will be; for the card.

    Raises:
        UserError: The folder holds something else or cannot be written to, or the
            arrays are not those of the network.
    """
    check_replaceable(folder, setting)
    _, *shapes = abstract_model(stored.config, stored.info.num_classes)
    arrays = {
        path: np.asarray(array) for path, array in _by_path(params, batch_stats).items()
    }
    dtypes = {path: array.dtype.name for path, array in arrays.items()}
    found = {path: array.shape for path, array in arrays.items()}
    if problems := _mismatches(found, dtypes, "float32", *shapes):
        raise UserError(f"the model is not that of its settings: {'; '.join(problems)}")
    _check_finite(arrays, "the model")
    config = folder_config.to_json(*stored)
    # What no reader would accept is not written.
    folder_config.from_json(config, Path("the model"))
    contents = {
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        WEIGHTS: safetensors.numpy.save(arrays, {"format": FORMAT}),
        CARD: folder_card(config, stored.info, license_id, address).encode(),
    }
    try:
        _replace(folder, contents, setting)
    except OSError as error:
        raise UserError(f"{setting}={folder}: {error.strerror}") from error


def check_replaceable(folder: Path, setting: str) -> None:
    """Raises `UserError` if a model folder cannot be written, or would replace more."""
    check_folder(folder, setting)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(INCOMPLETE):
            continue
        problem = ""
        if path.name not in FILES or not path.is_file():
            problem = f"holds {path.name}"
        elif path.name == CONFIG and not _is_our_config(path):
            problem = f"{CONFIG} is not of a model folder"
        elif path.name == WEIGHTS and not _is_ours(path):
            problem = f"{WEIGHTS} is not of this package"
        elif path.name == CARD and not is_card(path.read_bytes()):
            problem = f"{CARD} was edited"
        if problem:
            raise UserError(f"{setting}={folder}: {problem}; choose another folder")


def _replace(folder: Path, contents: Mapping[str, bytes], setting: str) -> None:
    existed = folder.is_dir()
    make_folder(folder, setting)
    try:
        with contextlib.ExitStack() as stack:
            # Replaced in reverse: the configuration is the last, and no folder is valid
            # without it, so that files of two models are never read as one.
            files = [stack.enter_context(whole_file(folder / n)) for n in contents]
            for file, data in zip(files, contents.values()):
                file.write(data)
                file.flush()  # a full disk fails here
            (folder / CONFIG).unlink(missing_ok=True)
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; is {path.parent} a model folder?") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error


def _is_our_config(path: Path) -> bool:
    try:
        stored = _read_json(path)
    except UserError:
        return False
    return isinstance(stored, dict) and stored.get("format") == FORMAT


def _is_ours(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, safetensors.SafetensorError):
        return False


def _read_arrays(
    path: Path, params: PureDict, batch_stats: PureDict
) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by path; shapes are checked before any is read."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
            if problems := _mismatches(shapes, dtypes, "F32", params, batch_stats):
                raise UserError(
                    f"{path}: does not fit the network of {CONFIG}: "
                    f"{'; '.join(problems)}"
                )
            arrays = {name: file.get_tensor(name) for name in slices}
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: truncated or damaged: {error}") from error
    _check_finite(arrays, str(path))
    return arrays


def _mismatches(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    dtype: str,
    params: PureDict,
    batch_stats: PureDict,
) -> list[str]:
    """Returns, in words, how arrays differ from those of a network."""
    wanted = {p: tuple(x.shape) for p, x in _by_path(params, batch_stats).items()}
    both = [path for path in wanted if path in shapes]
    found = {
        "missing": [path for path in wanted if path not in shapes],
        "unexpected": [path for path in shapes if path not in wanted],
        "of another shape": [
            f"{path} is {shapes[path]}, not {wanted[path]}"
            for path in both
            if shapes[path] != wanted[path]
        ],
        "of another dtype": [
            f"{path} is {dtypes[path]}, not {dtype}"
            for path in both
            if dtypes[path] != dtype
        ],
    }
    return [f"{len(n)} arrays {kind}: {shortened(n)}" for kind, n in found.items() if n]


def _check_finite(arrays: Mapping[str, np.ndarray], source: str) -> None:
    bad = [path for path, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(
            f"{source}: NaN or infinity in {len(bad)} arrays: {shortened(bad)}"
        )


def _by_path(params: PureDict, batch_stats: PureDict) -> dict[str, Any]:
    return {**flatten_paths(params), **flatten_paths(batch_stats)}
