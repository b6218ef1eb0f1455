"""Scores of image classification, the task of the paper's CIFAR-10 experiments."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from encnet_jax.data.registry import open_dataset
from encnet_jax.evaluate.evaluator import (
    ImagePrediction,
    predict_dataset,
    predict_fn_from_config,
)
from encnet_jax.evaluate.progress import show_progress
from encnet_jax.evaluate.report import save_scores
from encnet_jax.metrics import confusion_matrix_np
from encnet_jax.run.distributed import sum_over_hosts
from encnet_jax.run.workdir import load_workdir


def classification_scores(
    predictions: Iterable[ImagePrediction], num_classes: int
) -> dict[str, Any]:
    """Counts this host's predictions and returns the scores over all hosts.

    Returns:
        `accuracy`, `error`, `per_class_accuracy` (n,), `confusion_matrix` int64 (n, n),
        rows true classes, and the number of `images`.
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
        "per_class_accuracy": correct / np.maximum(counts, 1),
        "confusion_matrix": matrix,
        "images": int(counts.sum()),
    }


def evaluate_classes_workdir(
    config: ConfigDict, workdir: Path, split: str, step: str = "best"
) -> str:
    """Scores a checkpoint, writes `evaluation/SPLIT.json` and returns a table.

    The confusion matrix is plotted to `evaluation/SPLIT-confusion.png`.

    Raises:
        UserError: Workdir, checkpoint, classes and split do not fit.
    """
    dataset = open_dataset(config.data.name, split, config.data.data_dir)
    run = load_workdir(workdir, step, dataset=dataset.info)
    predictions = predict_dataset(
        predict_fn_from_config(config, run.config, run.model, run.info),
        run.params,
        run.batch_stats,
        dataset,
        batch_size=config.evaluation.batch_size,
    )
    scores = classification_scores(
        show_progress(predictions, len(dataset)), run.info.num_classes
    )
    names = run.info.class_names
    path = workdir / "evaluation" / f"{split}.json"
    if jax.process_index() == 0:
        save_scores(scores, path, split=split, step=run.step, class_names=names)
        # Here, so that training runs without matplotlib.
        from encnet_jax.visualize.charts import save_confusion

        figure = path.with_name(f"{split}-confusion.png")
        save_confusion(scores["confusion_matrix"], run.info, figure)
    width = max(map(len, (*names, "accuracy")))
    lines = [
        f"{name:<{width}}  {100 * value:6.2f}"
        for name, value in zip(names, scores["per_class_accuracy"])
    ]
    lines += ["-" * (width + 8)]
    lines += [f"{k:<{width}}  {100 * scores[k]:6.2f}" for k in ("accuracy", "error")]
    lines += [f"{scores['images']} images, step {run.step}: {path}"]
    return "\n".join(lines)
