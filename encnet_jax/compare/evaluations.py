"""Reads stored evaluations, and checks that they can be compared."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.errors import UserError
from encnet_jax.evaluate.image_log import ImageLog, image_log_path, read_image_log
from encnet_jax.evaluate.settings import evaluated_split
from encnet_jax.run.checkpoint_folder import best_metric_name
from encnet_jax.run.metric_writer import read_scores
from encnet_jax.run.workdir import load_run_info


class Evaluation(NamedTuple):
    """An evaluation of a run.

    Attributes:
        name: Name of the run, distinct among those compared.
        workdir: Its folder.
        info: Class names and colors.
        scores: The content of `evaluation/SPLIT.json`.
        log: The counts of every image.
    """

    name: str
    workdir: Path
    info: DatasetInfo
    scores: dict[str, Any]
    log: ImageLog

    @property
    def image_scores(self) -> Float[np.ndarray, " N"]:
        """The mean IoU of each image, or whether its class is right; NaN: no label."""
        if self.info.task == "classification":
            return self.log.correct.sum(1).astype(np.float64)
        iou = self.log.iou
        known = ~np.isnan(iou)
        mean = np.full(len(iou), np.nan)
        total = np.where(known, iou, 0).sum(1)
        np.divide(total, known.sum(1), out=mean, where=known.any(1))
        return mean

    @property
    def absent_classes(self) -> str:
        """How the mean IoU counts classes that do not occur; older files hold none."""
        settings = self.scores.get("evaluation") or {}
        return str(settings.get("absent_classes", "skip"))

    def curve(self, metric: str) -> dict[int, float]:
        """Returns a metric of the training by step; empty if nothing is known."""
        return read_scores(self.workdir / "metrics.jsonl", metric, sys.maxsize)


def check_workdirs(workdirs: Sequence[Path]) -> None:
    """Raises `UserError` unless there are two folders or more, and each is a run."""
    if len(workdirs) < 2:
        raise UserError(f"{len(workdirs)} runs: compare needs at least two workdirs")
    for workdir in workdirs:
        load_run_info(workdir)  # first: links that lead in a circle have no real path
    resolved = [workdir.resolve() for workdir in workdirs]
    for workdir, path in zip(workdirs, resolved):
        if resolved.count(path) > 1:
            raise UserError(f"{workdir}: is given twice")


def shared_evaluation(workdirs: Sequence[Path]) -> str:
    """Returns the name of the one evaluation that all runs have.

    Args:
        workdirs: See `load_evaluations`.

    Raises:
        UserError: There are several or none; lists them. Or see `check_workdirs`.
    """
    check_workdirs(workdirs)
    names = [evaluation_names(workdir) for workdir in workdirs]
    shared = [name for name in names[0] if all(name in other for other in names)]
    if len(shared) == 1:
        return shared[0]
    if shared:
        raise UserError(
            f"--split: the runs share the evaluations {', '.join(shared)}; choose one: "
            f"--split={shared[0]}"
        )
    found = "; ".join(
        f"{workdir} has {', '.join(own) or 'none'}"
        for workdir, own in zip(workdirs, names)
    )
    raise UserError(
        f"--split: the runs share no evaluation: {found}; evaluate each on one split: "
        "encnet evaluate --config=NAME --workdir=DIR --split=SPLIT"
    )


def evaluation_names(workdir: Path) -> list[str]:
    """Returns the names of the evaluations of a run, `test` and `test-ms`, sorted."""
    return sorted(path.stem for path in (workdir / "evaluation").glob("*.json"))


def load_evaluations(workdirs: Sequence[Path], split: str) -> list[Evaluation]:
    """Reads the evaluations of runs on one split.

    Args:
        workdirs: At least two folders of runs, without repetition.
        split: Name of the evaluation: `test`, or `test-ms` with scales; see
            `settings.evaluation_name`.

    Raises:
        UserError: Too few runs, a run or an evaluation is missing or damaged, or they
            are not of the same data set, classes, images and labels, or count absent
            classes differently.
    """
    check_workdirs(workdirs)
    names = [workdir.resolve().name for workdir in workdirs]
    if len({*names}) < len(names):
        names = [str(workdir) for workdir in workdirs]
    found = [_load(*pair, split) for pair in zip(names, workdirs)]
    for other in found[1:]:
        _check_same(found[0], other)
    return found


def metric_names(info: DatasetInfo) -> dict[str, str]:
    """Returns the curves that are shown: key in `metrics.jsonl` -> title."""
    best = best_metric_name(info)
    title = {"accuracy": "Validation accuracy", "mean_iou": "Validation mean IoU"}
    return {best: title[best], "loss": "Training loss"}


def _load(name: str, workdir: Path, split: str) -> Evaluation:
    path = workdir / "evaluation" / f"{split}.json"
    info = load_run_info(workdir)
    try:
        scores = json.loads(path.read_text())
        matrix = np.asarray(scores["confusion_matrix"], np.int64)
        classes = tuple(scores["class_names"])
        if matrix.shape != (len(classes), len(classes)):
            raise ValueError(f"confusion_matrix of {matrix.shape}")
        groups = [scores.get(key) or {} for key in ("evaluation", "calibration")]
        if not all(isinstance(group, dict) for group in groups):
            raise ValueError("evaluation, calibration: must be objects")
        scores["split"] = str(scores["split"])
    except OSError as error:
        others = ", ".join(n for n in evaluation_names(workdir) if n != split)
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; choose another --split of this "
            f"run ({others or 'it has none'}), or evaluate it: encnet evaluate "
            f"--config=NAME --workdir={shlex.quote(str(workdir))} "
            f"--split={evaluated_split(split)}"
            f"{' --scales=...' if evaluated_split(split) != split else ''}"
        ) from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: not an evaluation: {error!r}") from error
    if classes != info.class_names:
        raise UserError(f"{path}: has other classes than {workdir / 'classes.json'}")
    log_path = image_log_path(path)
    log = read_image_log(log_path, len(classes))
    if not log.names:
        raise UserError(f"{log_path}: has no images")
    sums = [counts.sum(0) for counts in (log.correct, log.labeled, log.predicted)]
    expected = [matrix.diagonal(), matrix.sum(1), matrix.sum(0)]
    if not np.array_equal(sums, expected):
        raise UserError(
            f"{log_path}: is of another evaluation than {path.name}; evaluate the run "
            "again"
        )
    return Evaluation(name, workdir, info, scores, log)


def _check_same(first: Evaluation, other: Evaluation) -> None:
    """Raises `UserError` unless two evaluations are of the same, counted alike."""
    pair = f"{first.workdir} and {other.workdir}"
    for what, one, two in (
        ("data sets", first.scores.get("data"), other.scores.get("data")),
        ("tasks", first.info.task, other.info.task),
        ("splits", first.scores.get("split"), other.scores.get("split")),
        ("evaluation.absent_classes", first.absent_classes, other.absent_classes),
        ("numbers of images", len(first.log.names), len(other.log.names)),
    ):
        if one != two:
            raise UserError(f"{pair}: evaluated on different {what}, {one} and {two}")
    classes = first.info.class_names, other.info.class_names
    if classes[0] != classes[1]:
        raise UserError(f"{pair}: have different classes")
    for index, (one, two) in enumerate(zip(first.log.names, other.log.names)):
        if one != two:
            raise UserError(f"{pair}: image {index} is {one!r} and {two!r}")
    labeled = first.log.labeled == other.log.labeled
    if not labeled.all():
        name = first.log.names[int(np.flatnonzero(~labeled.all(1))[0])]
        raise UserError(f"{pair}: the labels of {name!r} were different")
