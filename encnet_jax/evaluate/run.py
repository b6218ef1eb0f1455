"""evaluate.py from end to end: checkpoint and split to scores, figures, submission."""

import logging
import shlex
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from encnet_jax.data.bands import declare_bands, with_bands
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.image_io import set_max_image_pixels
from encnet_jax.data.registry import dataset_info, open_dataset
from encnet_jax.errors import UserError, require_package
from encnet_jax.evaluate.accumulator import ImageMetrics, MetricAccumulator
from encnet_jax.evaluate.calibration import make_confidence_fn
from encnet_jax.evaluate.classification import evaluate_classes_workdir
from encnet_jax.evaluate.evaluator import (
    PredictBatchesFn,
    predict_dataset,
    predict_fn_from_config,
)
from encnet_jax.evaluate.figures import (
    RankedExample,
    predict_examples,
    save_figures,
)
from encnet_jax.evaluate.image_log import image_log_path, write_image_log
from encnet_jax.evaluate.page import page_settings, save_segmentation_page
from encnet_jax.evaluate.progress import show_progress
from encnet_jax.evaluate.progress_log import (
    EvalProgressLog,
    known_to_all_hosts,
    open_progress_log,
)
from encnet_jax.evaluate.scores import (
    add_dataset_metrics,
    format_table,
    save_scores,
)
from encnet_jax.evaluate.settings import (
    check_data_folder,
    describe_differences,
    differences_from_training,
    evaluation_name,
)
from encnet_jax.evaluate.submission import Submission, UnlabeledDataset, check_apart
from encnet_jax.files import check_folder, user_path
from encnet_jax.run.distributed import distinct_over_hosts
from encnet_jax.run.workdir import (
    LoadedRun,
    load_run_config,
    load_run_info,
    load_workdir,
)

_UNWRITABLE = (
    "scores are written to the folder of the run; copy it, or save a model folder and "
    "evaluate that: encnet export --format=pretrained --workdir={} --output=DIR"
)
_log = logging.getLogger(__name__)


def evaluate_workdir(
    config: ConfigDict,
    workdir: str | Path,
    split: str,
    step: str = "best",
    *,
    submission: bool = False,
    images: str | Path | None = None,
    command: str | None = None,
) -> str:
    """Scores a checkpoint and returns a table; resumes an interrupted evaluation.

    Writes `evaluation/SPLIT[-ms].json` with figures, the page `SPLIT[-ms].html`, and
    the counts of each image, `SPLIT[-ms]-images.jsonl`, beside it; with `submission`
    the predictions for the data set's test server to `submission/SPLIT[-ms]`.

    Args:
        config: Data set and settings of the evaluation; see `evaluation_config`.
        workdir: Folder of the run.
        split: Name of the split.
        step: Which checkpoint: `"best"`, `"latest"` or a step number.
        submission: Whether to write the predictions.
        images: Folder of images without labels, predicted instead of the split.
        command: The command line, for the page.

    Raises:
        UserError: Workdir, checkpoint, model, classes and split do not fit, or the
            workdir cannot be written to.
    """
    workdir = user_path(workdir)
    images = None if images is None else user_path(images)
    set_max_image_pixels(config.data.max_image_pixels)
    _check_folders(config, workdir, images)
    if _task(config, submission or images is not None) == "classification":
        return evaluate_classes_workdir(config, workdir, split, step, command)
    name = evaluation_name("images" if images else split, config.evaluation)
    path = workdir / "evaluation" / f"{name}.json"
    folder = workdir / "submission" / name
    dataset = _open(config, workdir, split, images, folder if submission else None)
    run, differences = _load(config, workdir, step, dataset.info)
    predict_batches = predict_fn_from_config(config, run.model, run.info)
    writer = _open_submission(folder, dataset) if submission else None
    identity = _identity(config, dataset, run, submission)
    with open_progress_log(path, identity, dataset.info.num_classes) as log:
        totals = _accumulate(config, dataset, run, predict_batches, log, writer)
        summary = [f"{totals.times.sum()} images, step {run.step}"]
        if writer is not None:
            summary.append(f"predictions: {writer.folder}")
        if images is not None:
            log.remove()
            return "\n".join(summary)
        results = totals.results(config.evaluation.absent_classes)
        results = add_dataset_metrics(results, dataset.info)
        examples: list[RankedExample] = []
        if jax.process_index() == 0:
            predict = make_confidence_fn(config, run.model, run.info)
            examples, calibration = predict_examples(
                predict, run, dataset, totals.image_iou
            )
            results["calibration"] = calibration.results()
            save_scores(
                results,
                path,
                split=split,
                step=run.step,
                data=config.data.name,
                dtype=run.dtype,
                evaluation=config.evaluation.to_dict(),
                differs_from_training=differences,
                class_names=dataset.info.class_names,
            )
            _write_image_log(log, path, len(dataset))
            save_figures(results, examples, dataset.info, path.with_suffix(""))
            settings = page_settings(config, split, run, differences)
            save_segmentation_page(path, results, examples, dataset, settings, command)
        log.remove()  # last: until then a rerun has the counts of each image
        table = format_table(results, dataset.info)
        return "\n".join([table, *summary, f"scores: {path}"])


def _check_folders(config: ConfigDict, workdir: Path, images: Path | None) -> None:
    """Raises `UserError` if the run cannot be written to, or its data set is gone."""
    check_folder(
        workdir / "evaluation",
        "--workdir",
        _UNWRITABLE.format(shlex.quote(str(workdir))),
    )
    check_data_folder(config, workdir, labels=images is None)


def _task(config: ConfigDict, writes_predictions: bool) -> str:
    """Returns the task of the data set; raises where a setting is not for it."""
    task = dataset_info(config.data.name, config.data.data_dir).task
    if task == "classification":
        if writes_predictions or config.evaluation.scales:
            raise UserError(
                f"--scales, --flip, --submission, --images: are for segmentation; "
                f"{config.data.name} is for classification"
            )
        return task
    for key in ("object_sizes", "boundary_iou"):
        if config.evaluation[key]:
            require_package("scipy", "train", f"evaluation.{key}")
    return task


def _write_image_log(progress_log: EvalProgressLog, path: Path, count: int) -> None:
    """Writes the counts of each image beside the scores, in place of older ones."""
    lines = progress_log.lines()
    target = image_log_path(path)
    if len(lines) == count:
        write_image_log(target, lines.values())
    else:  # hosts with a workdir of their own
        target.unlink(missing_ok=True)
        _log.info("no %s: the hosts do not share the workdir", target.name)


def _load(
    config: ConfigDict, workdir: Path, step: str, info: DatasetInfo
) -> tuple[LoadedRun, dict[str, Any]]:
    """Returns the run, and the settings that differ from its training; logs them."""
    computation = {key: config.model[key] for key in ("dtype", "conv_impl")}
    run = load_workdir(workdir, step, dataset=info, **computation)
    compare_value_ranges(run.info, as_declared(config, workdir, run.info, info))
    differences = differences_from_training(config, workdir)
    if differences:
        _log.info("differs from training: %s", describe_differences(differences))
    return run, differences


def compare_value_ranges(trained: DatasetInfo, evaluated: DatasetInfo) -> None:
    """Warns if a data set declares another value range than that of the training."""
    ranges = trained.value_range, evaluated.value_range
    if ranges[0] != ranges[1]:
        _log.warning("value_range: %s in training, %s in the data set", *ranges)


def as_declared(
    config: ConfigDict, workdir: Path, trained: DatasetInfo, info: DatasetInfo
) -> DatasetInfo:
    """Returns `info` with the value range that the data set itself declares, if any.

    Bands are scaled as in the training, so `info` has the training's range. It stays if
    the training set a range in place of the one that this data set declares.
    """
    data, stored = config.data, load_run_config(workdir).data
    same = (data.name, data.data_dir) == (stored.name, stored.data_dir)
    if not trained.banded or (same and stored.value_range):
        return info
    declared: Any = dataset_info(data.name, data.data_dir).value_range
    # One pair is that of each channel.
    return declare_bands(info, trained.channels, declared) if declared else info


def _accumulate(
    config: ConfigDict,
    dataset: Dataset,
    run: LoadedRun,
    predict_batches: PredictBatchesFn,
    progress_log: EvalProgressLog,
    writer: Submission | None,
) -> MetricAccumulator:
    """Predicts what the log does not list; returns the counts of all images."""
    settings, done = config.evaluation, progress_log.done
    if writer is not None:  # what it wrote may have been deleted since
        done = [item for item in done if writer.has(item.name)]
    done = known_to_all_hosts(done, len(dataset))
    if writer is not None:
        for metrics in done:
            writer.keep(metrics.name)
    if done:
        _log.info("resuming: %d of %d images are done", len(done), len(dataset))
    accumulator = MetricAccumulator(len(dataset), dataset.info.num_classes)
    accumulator.add_known(done)
    predictions = predict_dataset(
        predict_batches,
        run.params,
        run.batch_stats,
        dataset,
        batch_size=settings.batch_size,
        skip={metrics.index for metrics in done},
    )
    for prediction in show_progress(predictions, len(dataset), len(done)):
        metrics = ImageMetrics.of(
            prediction,
            dataset.info.num_classes,
            settings.object_sizes,
            settings.boundary_iou,
            thumbnail=True,  # for pages, the comparison of runs, and figures
        )
        # Before the log: whatever it lists has been written.
        if writer is not None:
            writer.write(prediction.example.name, prediction.labels)
        progress_log.add(metrics)
        accumulator.add(metrics)
    progress_log.sync()
    return accumulator.over_hosts()


def _open(
    config: ConfigDict,
    workdir: Path,
    split: str,
    images: Path | None,
    output: Path | None,
) -> Dataset:
    """Returns the split, or images to predict for a submission in `output`."""
    data, trained = config.data, load_run_info(workdir)
    if images is None:
        return open_dataset(
            data.name,
            split,
            data.data_dir,
            in_memory=data.cache_on_device,
            bands=trained,
        )
    if output is None:
        raise UserError(f"--images={images}: needs --submission; there are no labels")
    check_apart(images, output)
    info = with_bands(dataset_info(data.name, data.data_dir), trained)
    return UnlabeledDataset(info, images)


def _open_submission(folder: Path, dataset: Dataset) -> Submission:
    """Returns the writer of predictions; raises where those of another folder are."""
    writer = Submission(folder, dataset.info)
    if isinstance(dataset, UnlabeledDataset):
        writer.check_no_others(dataset.names)
    return writer


def _identity(
    config: ConfigDict, dataset: Dataset, run: LoadedRun, submission: bool
) -> dict[str, Any]:
    """Returns everything that the metrics in a progress log depend on.

    The same on all hosts, whose own copies of the files may differ in their times.
    """
    checksum = 0
    for leaf in jax.tree.leaves((run.params, run.batch_stats)):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    data = distinct_over_hosts(dataset.fingerprint())
    settings = {
        **config.evaluation.to_dict(),
        "absent_classes": None,
        "batch_size": None,
        "split": None,  # named by the file
    }
    return {
        "evaluation": settings,
        "data": [config.data.name, len(dataset), data],
        "sizes": [config.data.base_size, config.data.crop_size],
        "dtype": run.dtype,
        "step": run.step,
        "weights": checksum,
        "submission": submission,
    }
