"""Evaluation during training: scores of the validation split, and a panel."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Dataset
from encnet_jax.evaluate.accumulator import ImageMetrics, MetricAccumulator
from encnet_jax.evaluate.classification import classification_scores, make_class_fn
from encnet_jax.evaluate.evaluator import (
    ImagePrediction,
    local_indices,
    predict_dataset,
    predict_fn_from_config,
)
from encnet_jax.evaluate.scores import over_classes
from encnet_jax.inference.context import has_context
from encnet_jax.inference.predict_fn import make_classify_fn
from encnet_jax.run.distributed import sum_over_hosts
from encnet_jax.run.mean_gate import MeanGate
from encnet_jax.run.sharding import local_mesh
from encnet_jax.run.state import PureDict
from encnet_jax.visualize.panels import class_panel, prediction_panel

_PANEL_ROWS = 4  # segmentation
_PANEL_IMAGES = 64  # classification: small ones


class Validation(NamedTuple):
    """Result of an evaluation during training.

    Attributes:
        scores: Name -> value, logged and used to choose the best checkpoint.
        images: Number of images scored.
        panel: Some of them with their predictions.
        classes: For segmentation, `num_classes` and `classes_scored`, the number of
            classes that the mean IoU is over.
        mean_gate: For networks with a Context Encoding Module, its mean gate.
    """

    scores: dict[str, float]
    images: int
    panel: Image.Image
    classes: Mapping[str, int] = MappingProxyType({})
    mean_gate: MeanGate | None = None

    @property
    def summary(self) -> dict[str, float]:
        """What `train` returns: the scores, with the numbers of classes."""
        return {**self.scores, **self.classes}


# (params, batch_stats) -> scores of the validation split
ValidateFn = Callable[[PureDict, PureDict], Validation]


def score_texts(scores: dict[str, float]) -> list[str]:
    """Formats scores for people, a mean IoU with the number of its classes.

    Args:
        scores: `Validation.summary`.
    """
    values = dict(scores)
    scored, count = values.pop("classes_scored", 0), values.pop("num_classes", 0)
    texts = {
        name: f"{name.replace('_', ' ').replace('iou', 'IoU')} {value:.4f}"
        for name, value in values.items()
    }
    if "mean_iou" in texts:
        texts["mean_iou"] += f" {over_classes(int(scored), int(count))}"
    return list(texts.values())


def make_validate_fn(
    config: ConfigDict, model: nnx.Module, dataset: Dataset, info: DatasetInfo
) -> ValidateFn:
    """Returns the function that scores the validation split.

    Args:
        config: See `encnet_jax.config`.
        model: From `create_model`, or abstract.
        dataset: The validation split.
        info: Of the training split, by which images are normalized and shown.
    """
    settings = config.evaluation
    classifies = info.task == "classification"
    if classifies:
        classify = make_classify_fn(model, mean=info.mean, std=info.std)
        mesh = local_mesh(config.mesh.data)
        predict_batches = make_class_fn(classify, config.data.crop_size, mesh)
    else:
        predict_batches = predict_fn_from_config(config, model, info)
    channels = config.model.head_channels if has_context(model) else 0

    def validate(params: PureDict, batch_stats: PureDict) -> Validation:
        predictions = predict_dataset(
            predict_batches,
            params,
            batch_stats,
            dataset,
            batch_size=settings.batch_size,
        )
        if classifies:
            return _score_classes(info, predictions)
        absent = settings.absent_classes
        return _score_pixels(dataset, info, predictions, absent, channels)

    return validate


def _score_pixels(
    dataset: Dataset,
    info: DatasetInfo,
    predictions: Iterable[ImagePrediction],
    absent_classes: str,
    channels: int,
) -> Validation:
    """Scores a split; `channels` are those of the gate, 0 without a context."""
    own = local_indices(dataset)
    spread = np.linspace(0, len(own) - 1, _PANEL_ROWS if own else 0).astype(int)
    shown = {own[place] for place in spread}
    rows = {}
    gates = np.zeros(channels)
    accumulator = MetricAccumulator(len(dataset), info.num_classes)
    for prediction in predictions:
        accumulator.add(ImageMetrics.of(prediction, info.num_classes))
        if prediction.gate is not None:
            gates += prediction.gate
        if prediction.index in shown:
            example = prediction.example
            image = example.shown(info).image
            rows[prediction.index] = (image, example.labels, prediction.labels)
    results = accumulator.over_hosts().results(absent_classes)
    count = results["images"]
    mean = (sum_over_hosts(gates) / max(count, 1)).astype(np.float32)
    return Validation(
        {key: results[key] for key in ("mean_iou", "pixel_accuracy")},
        count,
        prediction_panel([rows[index] for index in sorted(rows)], info.colors),
        {"classes_scored": results["classes_scored"], "num_classes": info.num_classes},
        MeanGate(mean, count) if channels and count else None,
    )


def _score_classes(
    info: DatasetInfo, predictions: Iterable[ImagePrediction]
) -> Validation:
    rows: list[tuple[np.ndarray, int, int]] = []

    def noted() -> Iterator[ImagePrediction]:
        for prediction in predictions:
            if len(rows) < _PANEL_IMAGES:
                example = prediction.example.shown(info)
                rows.append(
                    (example.image, int(example.labels), int(prediction.labels))
                )
            yield prediction

    results = classification_scores(noted(), info.num_classes)
    return Validation(
        {key: results[key] for key in ("accuracy", "error")},
        results["images"],
        class_panel(rows, info.class_names),
    )
