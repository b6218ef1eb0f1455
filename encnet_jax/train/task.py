"""What a training is for: its loss, its score, and what the score is called."""

import functools
from typing import NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Dataset
from encnet_jax.errors import UserError
from encnet_jax.evaluate.classification import (
    evaluate_classes,
    local_indices,
    make_classify_fn,
)
from encnet_jax.evaluate.evaluator import (
    PredictBatchesFn,
    evaluate,
    predict_fn_from_config,
)
from encnet_jax.losses import classification_loss, segmentation_loss
from encnet_jax.models.cifar import CifarResNet14, ClassifierOutput
from encnet_jax.models.registry import CIFAR_MODELS
from encnet_jax.models.segmentation import SegmentationModel, SegmentationOutput
from encnet_jax.run.state import PureDict
from encnet_jax.run.workdir import best_metric_name
from encnet_jax.train.step import ForwardFn, LossFn
from encnet_jax.train.trainer import ValidateFn, Validation
from encnet_jax.visualize.overlay import class_panel, prediction_panel

_PANEL_ROWS = 4
_PANEL_IMAGES = 64  # small ones, of a classification


class Task(NamedTuple):
    """A kind of training.

    Attributes:
        metric: Name of the score that tells the best checkpoint; greater is better.
        forward: What of the model the loss sees: logits that are not upsampled yet.
        loss: Of that and the labels.
        validate: Scores parameters and statistics on the validation split.
    """

    metric: str
    forward: ForwardFn
    loss: LossFn
    validate: ValidateFn


def create_task(config: ConfigDict, model: nnx.Module, validation: Dataset) -> Task:
    """Returns the task that fits a data set.

    Args:
        config: See `encnet_jax.config`.
        model: Of `create_model`, or its shapes.
        validation: The split that is scored while training.
    """
    info = validation.info
    if info.task == "classification":
        classify = make_classify_fn(model, info)
        validate: ValidateFn = functools.partial(
            _validate_classes, config, validation, classify
        )
        return Task(best_metric_name(info), _whole, classification_loss, validate)
    score = predict_fn_from_config(config, config, model, info)
    validate = functools.partial(_validate_pixels, config, validation, score)
    loss = _pixel_loss(config, info)
    return Task(best_metric_name(info), _forward_low_res, loss, validate)


def check_task(config: ConfigDict, info: DatasetInfo) -> None:
    """Raises `UserError` if a model or its loss is not for a data set."""
    classifies = config.model.name in CIFAR_MODELS
    if classifies != (info.task == "classification"):
        kind = "whole images" if classifies else "pixels"
        raise UserError(
            f"model.name={config.model.name!r}: classifies {kind}; data.name="
            f"{config.data.name!r} is for {info.task}"
        )
    count = len(config.loss.class_weights)
    if count and (classifies or count != info.num_classes):
        allowed = 0 if classifies else f"0 or {info.num_classes}"
        raise UserError(
            f"loss.class_weights has {count} numbers; {info.name} allows {allowed}"
        )
    if config.data.pad and not classifies:
        raise UserError(f"data.pad={config.data.pad}: is for images in classes")
    if config.data.resize != "host" and classifies:
        raise UserError(
            f"data.resize={config.data.resize!r}: images in classes are not resized; "
            "allowed is 'host'"
        )


def _whole(model: CifarResNet14, images: jax.Array) -> ClassifierOutput:
    return model(images)


def _forward_low_res(model: SegmentationModel, images: jax.Array) -> SegmentationOutput:
    return model.forward_low_res(images)


def _pixel_loss(config: ConfigDict, info: DatasetInfo) -> LossFn:
    settings = config.loss
    return functools.partial(
        segmentation_loss,
        num_classes=info.num_classes,
        se_weight=settings.se_weight,
        aux_weight=settings.aux_weight,
        class_weights=tuple(settings.class_weights) or None,
        normalize_by=settings.normalize_by,
        align_corners=config.model.align_corners,
    )


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
    classify,
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
