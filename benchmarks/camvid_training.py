"""Trains a run of `benchmarks/camvid.py` within a time, and scores it."""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import camvid_runs, camvid_scores, curves
from benchmarks.camvid_runs import Run
from benchmarks.camvid_scores import CONVENTIONS
from benchmarks.time_budget import StopAt, measure_speed, plan_steps
from encnet_jax.config import load_config, plain
from encnet_jax.data.datasets import Dataset
from encnet_jax.errors import require_package
from encnet_jax.files import check_folder, make_folder, whole_file
from encnet_jax.run.checkpoint_folder import saved_steps
from encnet_jax.run.model_config import resolve_dtype
from encnet_jax.run.state import flatten_paths
from encnet_jax.run.workdir import LoadedRun, load_workdir
from encnet_jax.train import train

_MAX_WEIGHTS = 16 * 2**20  # bytes of a file


@dataclasses.dataclass(frozen=True)
class Limits:
    """The time of a command.

    Attributes:
        minutes: For everything, from `started` on; None: as long as it takes.
        evaluation_minutes: Part of it for the scores.
        fit_steps: Whether to shorten the schedule.
        started: Time of `time.perf_counter`.
    """

    minutes: float | None = None
    evaluation_minutes: float = 2.0
    fit_steps: bool = False
    started: float = 0.0

    @property
    def training_ends(self) -> float | None:
        """Time of `time.perf_counter` by which the training should be done."""
        if self.minutes is None:
            return None
        return self.started + 60 * (self.minutes - self.evaluation_minutes)


def run_once(
    run: Run,
    data_dir: str | None,
    workdir: Path,
    files: Path,
    output: Path,
    limits: Limits,
    conventions: Sequence[str] = tuple(CONVENTIONS),
) -> list[dict[str, Any]] | None:
    """Trains or resumes a run and scores it; None if SIGTERM ended it early.

    Args:
        run: What to train.
        data_dir: Folder of the data set.
        workdir: Folder of the training.
        files: Folder for curve, figures and weights.
        output: The file of all rows.
        limits: The time.
        conventions: Keys of `CONVENTIONS`.

    Returns:
        A row for each convention.

    Raises:
        UserError: A file, a setting, or the time does not allow it.
    """
    require_package("matplotlib", "train", "the figures")
    camvid_scores.read_rows(output)
    check_folder(output.parent, "--output")
    check_folder(files, "--files")
    camvid_runs.check_identity(run, workdir)
    train_set, validation, scored = camvid_runs.open_splits(run, data_dir)
    if any(CONVENTIONS[name].statistics == "batch" for name in conventions):
        camvid_scores.check_unpadded(run.config(), scored)
    config = planned_config(run, workdir, (train_set, validation), limits)
    camvid_runs.save_identity(run, workdir)
    config.data.data_dir = data_dir
    # A little later than planned, and half of what the scores are given.
    deadline = limits.training_ends
    if deadline is not None:
        deadline += 30 * limits.evaluation_minutes
    with StopAt(deadline) as stop:
        finished = train(config, workdir, (train_set, validation)) is not None
    if not finished and not stop.expired:
        return None
    trained = load_workdir(workdir, "latest")
    make_folder(files, "--files")
    prefix = files / workdir.name
    row = _common_fields(run, config, workdir, trained.step, complete=finished)
    rows = score_all(config, trained, scored, row, prefix, output, conventions)
    save_curve(workdir, prefix, run)
    return rows


def _common_fields(
    run: Run, config: ConfigDict, workdir: Path, step: int, *, complete: bool
) -> dict[str, Any]:
    """Returns the fields that the rows of a run share."""
    return {
        "config": "camvid.py" + (f":{run.recipe}" if run.recipe != "gpu" else ""),
        "run": run.name,
        "overrides": {key: plain(value) for key, value in run.settings.items()},
        "train_split": run.split,
        "held_out": run.hold_out or None,
        "checkpoint": "last",
        "complete": complete,
        "seed": run.seed,
        "steps": step,
        "total_steps": config.total_steps,
        "device": jax.devices()[0].device_kind,
        "dtype": resolve_dtype(config.model.dtype).name,
        "minutes": training_minutes(workdir, config.batch_size),
        "jpeg_quality": run.jpeg_quality,
    }


def planned_config(
    run: Run, workdir: Path, datasets: tuple[Dataset, Dataset], limits: Limits
) -> ConfigDict:
    """Returns the configuration, with the steps that fit if no checkpoint has them."""
    config = run.config()
    if saved_steps(workdir / "checkpoints"):
        return run.config(load_config(workdir / "config.json").total_steps)
    if limits.training_ends is None:
        return config
    speed = measure_speed(config, workdir, datasets)
    left = limits.training_ends - time.perf_counter()
    flag = f"--minutes={limits.minutes}"
    return run.config(
        plan_steps(config, speed, left, shorten=limits.fit_steps, flag=flag)
    )


def score_all(
    config: ConfigDict,
    trained: LoadedRun,
    dataset: Dataset,
    row: dict[str, Any],
    prefix: Path,
    output: Path,
    conventions: Sequence[str],
) -> list[dict[str, Any]]:
    """Scores by some conventions; writes each row, and the figures of the first."""
    rows: list[dict[str, Any]] = []
    first: camvid_scores.Scores | None = None
    for name in conventions:
        convention = CONVENTIONS[name]
        started = time.perf_counter()
        scores = camvid_scores.score(config, trained, dataset, convention)
        seconds = time.perf_counter() - started
        found = camvid_scores.score_row(scores.results)
        rows.append({**row, **convention.row(), **found, "images": len(dataset)})
        camvid_scores.put_row(output, rows[-1])
        print(
            f"{prefix.name}, {convention.statistics} statistics, scales "
            f"{rows[-1]['scales']}: mean IoU {100 * found['mean_iou']:.2f} "
            f"({row['steps']} steps; scored in {seconds:.0f} s)",
            flush=True,
        )
        first = first or scores
    if first is not None:  # behind the rows, which are what must not be lost
        camvid_scores.save_figures(first, dataset, prefix)
        save_weights(trained, prefix)
    return rows


def training_minutes(workdir: Path, batch_size: int) -> float:
    """Returns how long a run has trained, over all its starts, by its log.

    Compilation and evaluations are left out.
    """
    log = workdir / "metrics.jsonl"
    seconds, last = 0.0, 0
    for line in curves.metric_lines(log) if log.exists() else ():
        if "images_per_second" in line:
            seconds += (line["step"] - last) * batch_size / line["images_per_second"]
            last = line["step"]
    return round(seconds / 60, 2)


def save_curve(workdir: Path, prefix: Path, run: Run) -> None:
    """Copies the log of the training, if it has come to one, and plots it."""
    if not (workdir / "metrics.jsonl").exists():
        return
    shutil.copyfile(workdir / "metrics.jsonl", f"{prefix}_metrics.jsonl")
    curves.plot([workdir], Path(f"{prefix}_curve.png"), run.watched)


def save_weights(trained: LoadedRun, prefix: Path) -> None:
    """Writes float16 weights, unless they are too large a file."""
    groups = {"params": trained.params, "batch_stats": trained.batch_stats}
    dtype = {"params": np.float16, "batch_stats": np.float32}  # variances are wide
    arrays: dict[str, Any] = {
        f"{group}/{path}": np.asarray(leaf, dtype[group])
        for group, tree in groups.items()
        for path, leaf in flatten_paths(tree).items()
    }
    size = sum(array.nbytes for array in arrays.values())
    if size > 0.98 * _MAX_WEIGHTS:  # the rest is for the headers
        print(f"no weights: {size / 2**20:.0f} MiB", flush=True)
        return
    with whole_file(Path(f"{prefix}_weights.npz")) as file:
        np.savez(file, **arrays)
