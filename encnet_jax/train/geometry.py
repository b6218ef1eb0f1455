"""Warnings about features that are placed beside their pixels."""

import logging
import math

from ml_collections import ConfigDict

from encnet_jax.evaluate.settings import whole_image_size
from encnet_jax.models.registry import feature_stride, is_centered, segments
from encnet_jax.run.folder_config import has_windows

_log = logging.getLogger(__name__)


def warn_of_geometry(config: ConfigDict) -> None:
    """Warns where training or prediction places features beside their pixels.

    With output stride s, feature i is centered on pixel s i. `model.align_corners`
    stretches a map of n features over the whole crop, which puts feature i there only
    if the crop has s (n - 1) + 1 pixels. Without it, features stay s pixels apart if
    the crop has s n. Published weights were trained with it at any size. Features of a
    centered backbone, as patches are, lie as they do without it, at any size.
    """
    model = config.model
    if not segments(model.name):
        return
    if is_centered(model.backbone):
        if model.align_corners:
            _log.warning(
                "WARNING: model.align_corners=True with model.backbone=%s: features "
                "lie at the centers of equal parts of the image, but logits are "
                "stretched to its edges. Set model.align_corners=False",
                model.backbone,
            )
        return
    stride = feature_stride(model.backbone, model.output_stride)
    if config.data.crop_size % stride == int(model.align_corners):
        if not model.weights:
            _warn_of_whole_images(config, stride)
    elif not model.weights:
        _warn_of_crops(config, stride)
    elif model.pad_to_stride:
        distance = _distance(config.data.crop_size, stride, model.align_corners)
        _log.warning(
            "WARNING: model.pad_to_stride=True with data.crop_size=%d: training places "
            "logits of neighboring features %.3g pixels apart, prediction %d. Set "
            "data.crop_size=%d, or model.pad_to_stride=False",
            *(config.data.crop_size, distance, stride),
            _fitting(config.data.crop_size, stride) + int(model.align_corners),
        )


def _warn_of_crops(config: ConfigDict, stride: int) -> None:
    size, aligned = config.data.crop_size, config.model.align_corners
    fitting = _fitting(size, stride)
    distance = _distance(size, stride, aligned)
    remedy = "model.align_corners=False with " if aligned else ""
    _log.warning(
        "WARNING: model.align_corners=%s from scratch with data.crop_size=%d: logits "
        "of neighboring features, which lie %d pixels apart, are placed %.3g apart. "
        "Set %ssizes of a multiple of %d (data.crop_size=%d), or %ssizes of a multiple "
        "of %d plus 1 (data.crop_size=%d)",
        *(aligned, size, stride, distance, remedy, stride, fitting),
        *("" if aligned else "model.align_corners=True with ", stride, fitting + 1),
    )


def _warn_of_whole_images(config: ConfigDict, stride: int) -> None:
    size, aligned = whole_image_size(config), config.model.align_corners
    fits = config.model.pad_to_stride or size % stride == int(aligned)
    if fits or has_windows(config):
        return
    key = "evaluation" if config.evaluation.base_size else "data"
    _log.warning(
        "WARNING: images of %s.base_size=%d pixels are predicted whole: logits of "
        "neighboring features are placed %.3g pixels apart, in training %d. Set "
        "model.pad_to_stride=True",
        *(key, size, _distance(size, stride, aligned), stride),
    )


def _fitting(size: int, stride: int) -> int:
    """Returns the multiple of a stride up to a size; at least one."""
    return max(size // stride, 1) * stride


def _distance(size: int, stride: int, aligned: bool) -> float:
    """Returns how far apart the logits of neighboring features are placed."""
    count = math.ceil(size / stride)
    return (size - 1) / max(count - 1, 1) if aligned else size / count
