"""Evaluation during training: scores of the validation split, and a panel."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from encnet_jax.data.datasets import Dataset
from encnet_jax.evaluate.classification import (
    ClassifyFn,
    evaluate_classes,
    local_indices,
    make_classify_fn,
)
from encnet_jax.evaluate.evaluator import (
    PredictBatchesFn,
    evaluate,
    predict_fn_from_config,
)
from encnet_jax.run.state import PureDict
from encnet_jax.visualize.overlay import class_panel, prediction_panel

_PANEL_ROWS = 4  # segmentation
_PANEL_IMAGES = 64  # classification: small ones


class Validation(NamedTuple):
    """Result of an evaluation during training.

    Attributes:
        scores: Name -> value, logged and used to choose the best checkpoint.
        images: Number of images scored.
        panel: Some of them with their predictions.
    """

    scores: dict[str, float]
    images: int
    panel: Image.Image


# (params, batch_stats) -> scores of the validation split
ValidateFn = Callable[[PureDict, PureDict], Validation]


def make_validate_fn(
    config: ConfigDict, model: nnx.Module, dataset: Dataset
) -> ValidateFn:
    """Returns the function that scores the validation split.

    Args:
        config: See `encnet_jax.config`.
        model: From `create_model`, or its abstract form.
        dataset: The validation split.
    """
    if dataset.info.task == "classification":
        classify = make_classify_fn(model, dataset.info)
        return functools.partial(_validate_classes, config, dataset, classify)
    score = predict_fn_from_config(config, config, model, dataset.info)
    return functools.partial(_validate_pixels, config, dataset, score)


def _validate_pixels(
    config: ConfigDict,
    dataset: Dataset,
    score: PredictBatchesFn,
    params: PureDict,
    batch_stats: PureDict,
) -> Validation:
    results, examples = evaluate(
        score,
        params,
        batch_stats,
        dataset,
        batch_size=config.evaluation.batch_size,
        absent_classes=config.evaluation.absent_classes,
        keep=_PANEL_ROWS,
    )
    rows = [(e.image, e.labels, predicted) for e, predicted in examples]
    return Validation(
        {key: results[key] for key in ("mean_iou", "pixel_accuracy")},
        results["images"],
        prediction_panel(rows, dataset.info.colors),
    )


def _validate_classes(
    config: ConfigDict,
    dataset: Dataset,
    classify: ClassifyFn,
    params: PureDict,
    batch_stats: PureDict,
) -> Validation:
    results, predictions = evaluate_classes(
        classify, params, batch_stats, dataset, batch_size=config.evaluation.batch_size
    )
    shown = [dataset[n] for n in local_indices(dataset)[:_PANEL_IMAGES]]
    rows = [(e.image, int(e.labels), int(p)) for e, p in zip(shown, predictions)]
    return Validation(
        {key: results[key] for key in ("accuracy", "error")},
        results["images"],
        class_panel(rows, dataset.info.class_names),
    )
