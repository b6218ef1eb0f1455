"""Converts PyTorch weights to a workdir like those of training."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

from encnet_jax import config, optimizer
from encnet_jax.convert.infer_config import ModelDescription, Weights
from encnet_jax.convert.load import load_torch_model
from encnet_jax.data.class_table import check_class_names, listed_names
from encnet_jax.data.dataset_info import DatasetInfo, save_info, voc_colormap
from encnet_jax.data.input_files import read_json
from encnet_jax.data.registry import DATASETS
from encnet_jax.errors import UserError
from encnet_jax.files import check_folder, make_folder, user_path
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.state import create_train_state, split_model
from encnet_jax.run.workdir import check_no_run_files


def write_workdir(
    weights: Weights,
    workdir: Path,
    *,
    classes: str = "",
    dataset: str = "",
    prefix: str = "",
) -> str:
    """Writes a workdir with the network of a weight file.

    Args:
        weights: As in `load_torch_model`.
        workdir: A folder without a run; created if missing.
        classes: Class names: comma-separated, or a file with one per line, or a JSON
            file with a list.
        dataset: A key of `data.registry.DATASETS` that defines class names and colors.
            With neither, classes are named by index.
        prefix: As in `load_torch_model`.

    Returns:
        A description of the network, and the workdir.

    Raises:
        UserError: As `load_torch_model`; or the number of class names differs from that
            of the network's classes, a name is empty or given twice, the folder holds a
            run, or the disk is full.
    """
    checkpoints = Checkpoints(workdir)
    check_folder(workdir, "--output")
    check_no_run_files(workdir, "--output")
    model, description = load_torch_model(weights, prefix=prefix)
    info = _class_info(description, classes, dataset)
    settings = config.default()
    settings.total_steps = 1  # not trained here, but 0 is invalid
    settings.data.name = dataset
    network = {k: v for k, v in description.settings.items() if k != "num_classes"}
    settings.model.update(network)
    settings.evaluation.align_corners = description.resize_align_corners
    _, params, batch_stats = split_model(model)
    tx = optimizer.create_optimizer(lambda step: 0.0)
    with _whole_or_nothing(workdir, checkpoints):
        make_folder(workdir, "--output")
        checkpoints.save(create_train_state(params, batch_stats, tx), 0)
        checkpoints.close()
        if 0 not in checkpoints.steps():  # a full disk is only a warning there
            raise UserError(f"--output={workdir}: the weights do not fit on the disk")
        save_info(info, workdir / "classes.json")
        config.save_config(settings, workdir / "config.json")
    return f"{description} -> {workdir}"


@contextlib.contextmanager
def _whole_or_nothing(workdir: Path, checkpoints: Checkpoints) -> Iterator[None]:
    """Removes what the block has written if it raises: a second try needs the place.

    Unlike that of `files.whole_folder`, the folder may hold other files of the user.

    Raises:
        UserError: In place of an `OSError` of the block.
    """
    # Again: another command may have filled it meanwhile.
    check_no_run_files(workdir, "--output")
    existed = workdir.exists()
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):
            checkpoints.close()  # what is still being written would appear again
        if existed:
            shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
            (workdir / "classes.json").unlink(missing_ok=True)
        else:
            shutil.rmtree(workdir, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"--output={workdir}: cannot be written to: {error.strerror or error}"
        ) from error


def _class_info(
    description: ModelDescription, classes: str, dataset: str
) -> DatasetInfo:
    """Returns names, colors and normalization for the classes of a network."""
    count = description.settings["num_classes"]
    info = DatasetInfo("", tuple(f"class {i}" for i in range(count)), (), {})
    origin = ""
    if dataset:
        known = {name: entry.info for name, entry in DATASETS.items() if entry.info}
        if dataset not in known:
            raise UserError(f"--dataset={dataset}: allowed are {', '.join(known)}")
        info, origin = known[dataset], f"--dataset={dataset}"
    if classes:
        origin = f"--classes={classes}"
        info = dataclasses.replace(info, class_names=_class_names(classes))
    if info.num_classes != count:
        raise UserError(
            f"{origin}: {info.num_classes} classes; the network has {count}"
        )
    return dataclasses.replace(
        info,
        colors=(() if classes else info.colors) or voc_colormap(count),
        mean=description.mean,
        std=description.std,
    )


def _class_names(classes: str) -> tuple[str, ...]:
    is_json = classes.lower().endswith(".json")
    try:
        names = read_json(user_path(classes)) if is_json else listed_names(classes)
    except UserError as error:  # starts with the file
        raise UserError(f"--classes={error}") from error
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f"--classes={classes}: must be a list of names")
    names = [name.strip() for name in names]
    check_class_names(names, f"--classes={classes}")
    return tuple(names)
