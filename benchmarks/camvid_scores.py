"""Scores of a CamVid run by several conventions, and the file that collects them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from encnet_jax.data.datasets import Dataset
from encnet_jax.errors import UserError
from encnet_jax.evaluate.accumulator import ImageMetrics, MetricAccumulator
from encnet_jax.evaluate.evaluator import (
    ImagePrediction,
    predict_dataset,
    predict_fn_from_config,
)
from encnet_jax.evaluate.figures import select_examples
from encnet_jax.evaluate.settings import whole_image_size
from encnet_jax.files import whole_file
from encnet_jax.inference.predict_fn import make_label_fn, resized_shape
from encnet_jax.models.layers import BatchNorm
from encnet_jax.run.model_config import abstract_model
from encnet_jax.run.state import ModelDef, split_model
from encnet_jax.run.workdir import LoadedRun
from encnet_jax.visualize import charts

_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of PyTorch-Encoding
_TEST_BATCH = 10  # images, as FC-DenseNet103 was scored
# What tells one row from another; a row with the same values is replaced.
_KEYS = (
    *("config", "run", "overrides", "train_split", "held_out", "seed", "total_steps"),
    *("statistics", "scales", "flip", "jpeg_quality", "device"),
)


class Convention(NamedTuple):
    """How a trained network is scored; see `CONVENTIONS`."""

    statistics: str
    scales: tuple[float, ...] = ()
    flip: bool = False

    def row(self) -> dict[str, Any]:
        """Returns its part of a row of the results."""
        scales = list(self.scales) or 1
        return {"statistics": self.statistics, "scales": scales, "flip": self.flip}


CONVENTIONS = {
    "running": Convention("running"),
    "batch": Convention("batch"),
    "scales": Convention("running", _SCALES, flip=True),
}


class Scores(NamedTuple):
    """The scores of a split.

    Attributes:
        results: Those of `MetricAccumulator.results`.
        image_iou: Mean IoU of each image.
        labels: The prediction for each image, by index.
    """

    results: dict[str, Any]
    image_iou: np.ndarray
    labels: dict[int, np.ndarray]


def score(
    config: ConfigDict, run: LoadedRun, dataset: Dataset, convention: Convention
) -> Scores:
    """Scores a split by a convention, every image at the size of its labels.

    Args:
        config: Configuration of the training.
        run: The trained network; averages of its weights, if it keeps them.
        dataset: The split.
        convention: One of `CONVENTIONS`.
    """
    if convention.statistics == "batch":
        predictions = predict_with_batch_statistics(config, run, dataset)
    else:
        config = config.copy_and_resolve_references()
        config.evaluation.scales = convention.scales
        config.evaluation.flip = convention.flip
        predictions = predict_dataset(
            predict_fn_from_config(config, run.model, run.info),
            run.params,
            run.batch_stats,
            dataset,
            batch_size=config.evaluation.batch_size,
        )
    accumulator = MetricAccumulator(len(dataset), dataset.info.num_classes)
    labels = {}
    for prediction in predictions:
        accumulator.add(ImageMetrics.of(prediction, dataset.info.num_classes))
        labels[prediction.index] = prediction.labels
    results = accumulator.over_hosts().results(config.evaluation.absent_classes)
    return Scores(results, accumulator.image_iou, labels)


def check_unpadded(config: ConfigDict, dataset: Dataset) -> None:
    """Raises `UserError` if prediction pads the images of a split.

    The padding would take part in the statistics of a batch.

    Args:
        config: Configuration of the training.
        dataset: The split, of images of one size.
    """
    model_def, *shapes = abstract_model(config, dataset.info.num_classes)
    model: Any = model_def.merge_abstract(*shapes)
    height, width = dataset[0].image.shape[:2]
    size = resized_shape((height, width), whole_image_size(config))
    padded = model.padded_size(size)
    if padded != size:
        before, after = (f"{shape[1]}x{shape[0]}" for shape in (size, padded))
        raise UserError(
            f"--conventions=batch: images of {before} would be padded to {after}, and "
            "statistics computed of the padding; set evaluation.base_size to a size "
            "that needs none, or model.pad_to_stride=False"
        )


def predict_with_batch_statistics(
    config: ConfigDict, run: LoadedRun, dataset: Dataset
) -> Iterator[ImagePrediction]:
    """Predicts with batch norm over ten consecutive images, without dropout.

    The last batch is the last ten images, of which those count that the batch before it
    does not have. The weights and the running statistics stay as they are.
    """
    label = make_label_fn(
        batch_statistics_def(run.model),
        mean=run.info.mean,
        std=run.info.std,
        base_size=whole_image_size(config),
        align_corners=config.evaluation.align_corners,
    )
    for start in range(0, len(dataset), _TEST_BATCH):
        first = max(0, min(start, len(dataset) - _TEST_BATCH))
        batch = range(first, min(first + _TEST_BATCH, len(dataset)))
        examples = [dataset[index] for index in batch]
        images = np.stack([example.image for example in examples])
        found = np.asarray(label(run.params, run.batch_stats, images).labels)
        for index, example, labels in zip(batch, examples, found):
            if index >= start:
                yield ImagePrediction(index, example, labels)


def batch_statistics_def(model: nnx.Module) -> ModelDef:
    """Returns the definition of a model in eval mode but for its batch norms."""
    model = nnx.clone(model)
    model.eval()
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, BatchNorm):
            layer.use_running_average = False
    return split_model(model)[0]


def score_row(results: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a row that holds scores; absent classes are None."""
    values = [float(value) for value in results["per_class_iou"]]
    return {
        "mean_iou": round(float(results["mean_iou"]), 6),
        "per_class_iou": [None if math.isnan(v) else round(v, 6) for v in values],
        "pixel_accuracy": round(float(results["pixel_accuracy"]), 6),
        "confusion_matrix": results["confusion_matrix"].tolist(),
    }


def save_figures(scores: Scores, dataset: Dataset, prefix: Path) -> None:
    """Writes PREFIX_confusion.png, and PREFIX_examples.png: best, median and worst."""
    matrix, info = scores.results["confusion_matrix"], dataset.info
    charts.save_confusion(matrix, info, Path(f"{prefix}_confusion.png"))
    rows = []
    for index, rank in select_examples(scores.image_iou).items():
        example, iou = dataset[index], 100 * scores.image_iou[index]
        caption = f"{rank}, IoU {iou:.1f}: {example.name}"
        rows.append((caption, example, scores.labels[index]))
    charts.save_examples(rows, info, Path(f"{prefix}_examples.png"))


def put_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a row to a JSON list, in place of that of the same run and convention.

    One line per row; the file is complete at any time.
    """
    rows = [old for old in read_rows(path) if not _same(old, row)] + [row]
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(f"[\n{lines}\n]\n".encode())


def read_rows(
    path: Path, flag: str = "--output", *, needed: bool = False
) -> list[dict[str, Any]]:
    """Reads what `put_row` wrote; nothing if there is no file yet.

    Args:
        path: The file.
        flag: What names it, for errors.
        needed: Whether the file must be there.

    Raises:
        UserError: The file holds something else.
    """
    if not needed and not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}={path}: not a JSON file: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{flag}={path}: not a list of rows")
    return rows


def _same(old: dict[str, Any], row: dict[str, Any]) -> bool:
    new = json.loads(json.dumps(row))
    return all(old.get(key) == new.get(key) for key in _KEYS)
