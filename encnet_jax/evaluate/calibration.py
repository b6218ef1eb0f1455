"""Calibration: how often predictions of a given confidence are right.

The reliability diagram and the expected calibration error are those of Guo et al.
(ICML 2017), over pixels: bins of equal width, weighted by their pixels.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Integer, UInt8
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Example
from encnet_jax.evaluate.evaluator import Examples
from encnet_jax.evaluate.settings import protocol_from_config, whole_image_size
from encnet_jax.inference.folding import InferenceModel
from encnet_jax.inference.predict_fn import make_probability_fn
from encnet_jax.inference.sliding_window import make_score_fn
from encnet_jax.inference.tta import TTAProtocol
from encnet_jax.run.sharding import local_mesh, replicated
from encnet_jax.run.state import PureDict

BINS = 15


@dataclasses.dataclass(frozen=True)
class ConfidentPrediction:
    """A prediction with its confidence.

    Attributes:
        index: Index of the example in its dataset.
        example: Image and ground truth.
        labels: Predicted classes, (h, w).
        confidence: Their probabilities, (h, w).
    """

    index: int
    example: Example
    labels: UInt8[np.ndarray, "h w"]
    confidence: Float32[np.ndarray, "h w"]


# (params, batch_stats, indexed examples) -> each of them once, in order.
ConfidenceFn = Callable[[PureDict, PureDict, Examples], Iterator[ConfidentPrediction]]


class Calibration:
    """Counts predictions by their confidence.

    Attributes:
        images: Number of images that were added.
    """

    def __init__(self) -> None:
        self.images = 0
        self._count = np.zeros(BINS, np.int64)
        self._correct = np.zeros(BINS, np.int64)
        self._confidence = np.zeros(BINS)

    def add(
        self,
        labels: Integer[np.ndarray, "..."],
        predictions: Integer[np.ndarray, "..."],
        confidence: Float32[np.ndarray, "..."],
        num_classes: int,
    ) -> None:
        """Adds an image; labels of `num_classes` and above are ignored.

        A confidence that is NaN, of logits that are not finite, counts as 0.
        """
        valid = labels < num_classes
        probability = np.nan_to_num(confidence[valid].astype(np.float64), nan=0.0)
        place = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
        correct = (labels == predictions)[valid]
        self._count += np.bincount(place, minlength=BINS)
        self._correct += np.bincount(place[correct], minlength=BINS)
        self._confidence += np.bincount(place, probability, BINS)
        self.images += 1

    def results(self) -> dict[str, Any]:
        """Returns the error, and by bin the counts, the accuracy and the confidence.

        Accuracy and confidence of an empty bin are NaN, and so is the error of none.
        """
        total = int(self._count.sum())
        accuracy, confidence = np.full(BINS, np.nan), np.full(BINS, np.nan)
        filled = self._count > 0
        np.divide(self._correct, self._count, out=accuracy, where=filled)
        np.divide(self._confidence, self._count, out=confidence, where=filled)
        gap = np.abs(self._correct - self._confidence).sum()
        return {
            "expected_calibration_error": float(gap / total) if total else np.nan,
            "images": self.images,
            "pixels": total,
            "count": self._count,
            "accuracy": accuracy,
            "confidence": confidence,
        }


def sample_indices(count: int) -> list[int]:
    """Returns the indices of the images that calibration is measured on.

    A hundredth of a split, at least 16 and at most 100 images, evenly spaced, and the
    same each time. Each takes as long as in the evaluation.
    """
    size = min(count, max(16, min(count // 100, 100)))
    return [(2 * i + 1) * count // (2 * size) for i in range(size)]


def make_confidence_fn(
    config: ConfigDict, model: nnx.Module, info: DatasetInfo
) -> ConfidenceFn:
    """Returns a function that segments images one by one with confidences.

    Args:
        config: Settings of the evaluation; labels are those of `predict_fn_from_config`
            but for ties.
        model: A segmentation model, or an abstract one.
        info: The data set.
    """
    protocol = protocol_from_config(config, model, info)
    if protocol is None:
        return _whole_image_confidences(config, InferenceModel(model), info)
    return _window_confidences(config, InferenceModel(model), info, protocol)


def _whole_image_confidences(
    config: ConfigDict, folded: InferenceModel, info: DatasetInfo
) -> ConfidenceFn:
    probabilities = make_probability_fn(
        folded.model_def,
        mean=info.mean,
        std=info.std,
        base_size=whole_image_size(config),
        align_corners=config.evaluation.align_corners,
    )

    @jax.jit
    def top(*inputs: Any) -> tuple[jax.Array, jax.Array]:
        values = probabilities(*inputs)[0]
        return values.argmax(-1).astype(jnp.uint8), values.max(-1)

    def predict(
        params: PureDict, batch_stats: PureDict, examples: Examples
    ) -> Iterator[ConfidentPrediction]:
        # On one device: images of one size are too few for a batch.
        arrays = jax.device_put(folded.arrays(params, batch_stats))
        for index, example in examples:
            labels, confidence = jax.device_get(top(*arrays, example.image[None]))
            yield ConfidentPrediction(index, example, labels, confidence)

    return predict


def _window_confidences(
    config: ConfigDict, folded: InferenceModel, info: DatasetInfo, protocol: TTAProtocol
) -> ConfidenceFn:
    mesh = local_mesh(config.mesh.data)
    scores_of = make_score_fn(folded.model_def, info.num_classes, protocol, mesh)

    def predict(
        params: PureDict, batch_stats: PureDict, examples: Examples
    ) -> Iterator[ConfidentPrediction]:
        arrays = folded.arrays(params, batch_stats)
        params, batch_stats = jax.device_put(arrays, replicated(mesh))
        images = (((i, example), example.image) for i, example in examples)
        batch_size = config.evaluation.batch_size
        for finished in scores_of(params, batch_stats, images, batch_size):
            index, example = finished.key
            labels, confidence = finished.score_map.labels_with_confidence()
            yield ConfidentPrediction(index, example, labels, confidence)

    return predict
