"""What evaluate.py does: a trained workdir scored, told and drawn."""

import dataclasses
import importlib.util
import logging
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.registry import dataset_info, open_dataset
from encnet_jax.errors import UserError
from encnet_jax.evaluate.accumulator import ImageMetrics
from encnet_jax.evaluate.classification import evaluate_classes_workdir
from encnet_jax.evaluate.evaluator import (
    ImagePrediction,
    PredictBatchesFn,
    evaluate,
    predict_fn_from_config,
)
from encnet_jax.evaluate.progress_log import EvalProgressLog
from encnet_jax.evaluate.report import add_dataset_metrics, format_table, save_scores
from encnet_jax.evaluate.submission import Submission, UnlabeledDataset
from encnet_jax.run.progress import Counter
from encnet_jax.run.state import PureDict
from encnet_jax.run.workdir import load_workdir

_PICTURES = 2  # of the best, the median and the worst images each
_LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A trained model that fits what is to be scored.

    Attributes:
        score: The way to score.
        arrays: Weights and running statistics.
        step: Of the checkpoint.
    """

    score: PredictBatchesFn
    arrays: tuple[PureDict, PureDict]
    step: int


def evaluate_workdir(
    config: ConfigDict,
    workdir: Path,
    split: str,
    step: str = "best",
    *,
    submission: bool = False,
    images: Path | None = None,
) -> str:
    """Scores a checkpoint and returns a table; goes on where a killed call was.

    Writes `evaluation/SPLIT[-ms].json` and pictures beside it; with `submission`, in
    `submission/SPLIT[-ms]`, what the data set's test server asks for.

    Args:
        config: What to score, and how.
        workdir: Folder of the run.
        split: Of the data set.
        step: Which checkpoint: `"best"`, `"latest"` or a index.
        submission: Write the predictions.
        images: A folder of images without labels in place of the split; only written.

    Raises:
        UserError: Workdir, checkpoint, model, classes and split do not fit.
    """
    if dataset_info(config.data.name, config.data.data_dir).task == "classification":
        if submission or images or config.evaluation.scales:
            raise UserError(
                f"--scales, --flip, --submission, --images: are for segmentation; "
                f"{config.data.name} is for classification"
            )
        return evaluate_classes_workdir(config, workdir, split, step)
    dataset = _open(config, split, submission, images)
    trained = _load(config, workdir, step, dataset.info)
    name = ("images" if images else split) + ("-ms" if config.evaluation.scales else "")
    path = workdir / "evaluation" / f"{name}.json"
    target = None
    if submission:
        target = Submission(workdir / "submission" / name, dataset.info)
    identity = _identity(config, dataset, trained, submission, images)
    progress_log = EvalProgressLog(
        path.with_suffix(".partial"), identity, dataset.info.num_classes
    )
    results = _score(config, dataset, trained, progress_log, target)
    told = [f"{results['images']} images, step {trained.step}"]
    if target is not None:
        told.append(f"predictions: {target.folder}")
    if images is not None:
        progress_log.remove()
        return "\n".join(told)
    image_iou = results.pop("image_iou")
    lead = jax.process_index() == 0
    if lead:
        save_scores(
            results,
            path,
            split=split,
            step=trained.step,
            evaluation=config.evaluation.to_dict(),
            class_names=dataset.info.class_names,
        )
    progress_log.remove()
    if lead:
        _draw(results, image_iou, path.with_suffix(""), dataset, trained)
    return "\n".join([format_table(results, dataset.info), *told, f"scores: {path}"])


def _score(
    config: ConfigDict,
    dataset: Dataset,
    trained: _Trained,
    progress_log: EvalProgressLog,
    target: Submission | None,
) -> dict[str, Any]:
    """Scores what the progress_log does not have, and returns the scores of all."""
    settings, done = config.evaluation, len(progress_log.done)
    if done:
        _log.info("%d of %d images are done", done, len(dataset))

    def keep(scored: ImagePrediction, record: ImageMetrics) -> None:
        # In this order: what the progress_log has is written.
        if target is not None:
            target.write(scored.example.name, scored.predictions)
        progress_log.add(record)

    results, _ = evaluate(
        trained.score,
        *trained.arrays,
        dataset,
        batch_size=settings.batch_size,
        absent_classes=settings.absent_classes,
        object_sizes=settings.object_sizes,
        progress=_progress(len(dataset), done),
        done=progress_log.done,
        on_image=keep,
    )
    return add_dataset_metrics(results, dataset.info)


def _open(
    config: ConfigDict, split: str, submission: bool, images: Path | None
) -> Dataset:
    data = config.data
    if images is None:
        return open_dataset(data.name, split, data.data_dir, drawn=data.cache_on_device)
    if not submission:
        raise UserError(f"--images={images}: needs --submission; there is no label")
    return UnlabeledDataset(dataset_info(data.name, data.data_dir), images)


def _load(
    config: ConfigDict, workdir: Path, step: str, dataset: DatasetInfo
) -> _Trained:
    trained = load_workdir(workdir, step, dataset=dataset)
    score = predict_fn_from_config(config, trained.config, trained.model, trained.info)
    return _Trained(score, (trained.params, trained.batch_stats), trained.step)


def _identity(
    config: ConfigDict,
    dataset: Dataset,
    trained: _Trained,
    submission: bool,
    images: Path | None,
) -> dict[str, Any]:
    """Returns all that the records of a progress_log depend on."""
    checksum = 0
    for leaf in jax.tree.leaves(trained.arrays):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    settings = {
        **config.evaluation.to_dict(),
        "absent_classes": None,
        "batch_size": None,
    }
    return {
        "evaluation": settings,
        "data": [config.data.name, config.data.data_dir, len(dataset)],
        "sizes": [config.data.base_size, config.data.crop_size],
        "step": trained.step,
        "weights": checksum,
        "submission": submission,
        "images": str(images),
    }


def _progress(total: int, start: int) -> Callable[[int], None]:
    """Returns what shows progress: a bar on a terminal, elsewhere a line at times."""
    counter = Counter(total, "images")
    began = shown = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown
        counter.show(done)
        now = time.monotonic()
        if done == total:
            counter.close()
        elif now - shown > _LINE_EVERY and not sys.stderr.isatty():
            shown, rate = now, (done - start) / (now - began)
            left = (total - done) / rate / 60
            _log.info(
                "%d/%d images  %.2f images/s  %.0f min left", done, total, rate, left
            )

    return show


def _draw(
    results: dict[str, Any],
    image_iou: np.ndarray,
    path: Path,
    dataset: Dataset,
    trained: _Trained,
) -> None:
    """Writes pictures of the scores, whose names start with `path`."""
    if importlib.util.find_spec("matplotlib") is None:
        _log.info("no pictures of the scores: matplotlib is not installed")
        return
    # Here, so that scores do without it.
    from encnet_jax.visualize import charts

    info = dataset.info
    charts.save_class_bars(results, info, Path(f"{path}-classes.png"))
    charts.save_confusion(
        results["confusion_matrix"], info, Path(f"{path}-confusion.png")
    )
    chosen = select_examples(image_iou)
    examples = ((index, dataset[index]) for index in chosen)
    scored = {s.index: s for s in trained.score(*trained.arrays, examples, 1)}
    rows = [
        (
            f"{word}, IoU {100 * image_iou[n]:.1f}: {scored[n].example.name}",
            scored[n].example,
            scored[n].predictions,
        )
        for n, word in chosen.items()
    ]
    charts.save_pictures(rows, info, Path(f"{path}-pictures.png"))


def select_examples(image_iou: np.ndarray) -> dict[int, str]:
    """Returns the indices of the best, the median and the worst images, each once."""
    order = np.argsort(-image_iou, kind="stable").tolist()
    middle = max((len(order) - _PICTURES) // 2, 0)
    parts = {
        "best": order[:_PICTURES],
        "median": order[middle : middle + _PICTURES],
        "worst": order[-_PICTURES:],
    }
    chosen: dict[int, str] = {}
    for word, indices in parts.items():
        for index in indices:
            chosen.setdefault(index, word)
    return chosen
