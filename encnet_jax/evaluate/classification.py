"""Scores of image classification, the task of the paper's CIFAR-10 experiments."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from encnet_jax.data.fit_image import fit_image
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import has_package
from encnet_jax.evaluate.class_page import ClassRecord, save_classification_page
from encnet_jax.evaluate.evaluator import (
    Examples,
    ImagePrediction,
    PredictBatchesFn,
    batches_of_one_size,
    predict_dataset,
    stack_padded,
)
from encnet_jax.evaluate.image_log import image_log_path, write_image_log
from encnet_jax.evaluate.page import page_settings
from encnet_jax.evaluate.progress import show_progress
from encnet_jax.evaluate.scores import percent, save_scores
from encnet_jax.evaluate.settings import (
    describe_differences,
    differences_from_training,
)
from encnet_jax.inference.predict_fn import ClassifyFn, make_classify_fn
from encnet_jax.metrics import confusion_matrix_np
from encnet_jax.run.distributed import sum_over_hosts
from encnet_jax.run.sharding import batch_sharded, local_mesh, replicated
from encnet_jax.run.state import PureDict
from encnet_jax.run.workdir import load_run_info, load_workdir

_SETTINGS_USED = ("data.name", "data.crop_size", "model.dtype")
_log = logging.getLogger(__name__)


def make_class_fn(
    classify: ClassifyFn, size: int, mesh: Mesh | None = None
) -> PredictBatchesFn:
    """Returns a function that classifies images in batches, resized as `Classifier`.

    Args:
        classify: See `make_classify_fn`.
        size: Height and width in the network; other aspect ratios are center-cropped.
        mesh: Devices of this host; all of them if None.
    """
    mesh = mesh or local_mesh()

    def predict_batches(
        params: PureDict, batch_stats: PureDict, examples: Examples, batch_size: int
    ) -> Iterator[ImagePrediction]:
        # In training they are on the devices of all hosts.
        arrays = jax.device_get((params, batch_stats))
        params, batch_stats = jax.device_put(arrays, replicated(mesh))
        count = batch_size * mesh.size
        fitted = (
            (index, example._replace(image=fit_image(example.image, (size, size))))
            for index, example in examples
        )
        for batch in batches_of_one_size(fitted, count):
            images = jax.device_put(stack_padded(batch, count), batch_sharded(mesh))
            probabilities = np.asarray(classify(params, batch_stats, images))
            labels = probabilities[: len(batch)].argmax(-1).astype(np.uint8)
            for (index, example), label, row in zip(batch, labels, probabilities):
                yield ImagePrediction(index, example, np.asarray(label), row)

    return predict_batches


def classification_scores(
    predictions: Iterable[ImagePrediction], num_classes: int
) -> dict[str, Any]:
    """Counts this host's predictions and returns the scores over all hosts.

    Returns:
        `accuracy`, `error`, `per_class_accuracy` (n,), NaN of classes without images,
        `confusion_matrix` int64 (n, n), rows true classes, and the number of `images`.
    """
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for prediction in predictions:
        matrix += confusion_matrix_np(
            prediction.example.labels, prediction.labels, num_classes
        )
    matrix = sum_over_hosts(matrix)
    correct, counts = matrix.diagonal(), matrix.sum(1)
    accuracy = float(correct.sum() / counts.sum())
    return {
        "accuracy": accuracy,
        "error": 1 - accuracy,
        "per_class_accuracy": np.where(
            counts > 0, correct / np.maximum(counts, 1), np.nan
        ),
        "confusion_matrix": matrix,
        "images": int(counts.sum()),
    }


def evaluate_classes_workdir(
    config: ConfigDict,
    workdir: Path,
    split: str,
    step: str = "best",
    command: str | None = None,
) -> str:
    """Scores a checkpoint, writes `evaluation/SPLIT.json` and returns a table.

    The confusion matrix is plotted to `evaluation/SPLIT-confusion.png`; all is shown by
    the page `SPLIT.html`, and `SPLIT-images.jsonl` has the probabilities of each image.
    `command` is the command line, for the page.

    Raises:
        UserError: Workdir, checkpoint, classes and split do not fit.
    """
    bands = load_run_info(workdir)
    dataset = open_dataset(config.data.name, split, config.data.data_dir, bands=bands)
    computation = {key: config.model[key] for key in ("dtype", "conv_impl")}
    run = load_workdir(workdir, step, dataset=dataset.info, **computation)
    # Others, such as those of windows, are not used.
    differences = differences_from_training(config, workdir)
    differences = {
        key: differences[key] for key in _SETTINGS_USED if key in differences
    }
    if differences:
        _log.info("differs from training: %s", describe_differences(differences))
    classify = make_classify_fn(run.model, mean=run.info.mean, std=run.info.std)
    predictions = predict_dataset(
        make_class_fn(classify, config.data.crop_size, local_mesh(config.mesh.data)),
        run.params,
        run.batch_stats,
        dataset,
        batch_size=config.evaluation.batch_size,
    )
    record = ClassRecord(dataset)
    predictions = record.of(show_progress(predictions, len(dataset)))
    scores = classification_scores(predictions, run.info.num_classes)
    record.merge_hosts()
    names = run.info.class_names
    path = workdir / "evaluation" / f"{split}.json"
    if jax.process_index() == 0:
        scores["calibration"] = record.calibration()
        write_image_log(image_log_path(path), record.lines())
        save_scores(
            scores,
            path,
            split=split,
            step=run.step,
            data=config.data.name,
            dtype=run.dtype,
            differs_from_training=differences,
            class_names=names,
        )
        if has_package("matplotlib", "figures"):
            # Here, so that training runs without matplotlib.
            from encnet_jax.visualize.charts import save_confusion

            figure = path.with_name(f"{split}-confusion.png")
            save_confusion(scores["confusion_matrix"], run.info, figure)
        settings = page_settings(config, split, run, differences)
        save_classification_page(path, scores, record, settings, command)
    table = _table(scores, names)
    return f"{table}\n{scores['images']} images, step {run.step}: {path}"


def _table(scores: dict[str, Any], names: Sequence[str]) -> str:
    """Returns the accuracy of each class and of all, in percent."""
    width = max(map(len, (*names, "accuracy")))
    lines = [
        f"{name:<{width}}  {percent(value):>6}"
        for name, value in zip(names, scores["per_class_accuracy"])
    ]
    lines += ["-" * (width + 8)]
    lines += [f"{k:<{width}}  {percent(scores[k]):>6}" for k in ("accuracy", "error")]
    return "\n".join(lines)
