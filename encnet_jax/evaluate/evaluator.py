"""Predictions for a split: every image once, at the size of its own labels.

`predict_dataset` yields `ImagePrediction`s; the caller counts and writes them.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Dataset, Example, checked, read_ahead
from encnet_jax.evaluate.settings import protocol_from_config, whole_image_size
from encnet_jax.inference.folding import InferenceModel
from encnet_jax.inference.predict_fn import Prediction, make_label_fn
from encnet_jax.inference.sliding_window import (
    ScoreFn,
    make_score_fn,
    mean_over_windows,
)
from encnet_jax.inference.tta import TTAProtocol
from encnet_jax.run.sharding import batch_sharded, local_mesh, replicated
from encnet_jax.run.state import PureDict

_Item = TypeVar("_Item")
_MAX_WAITING = 4  # batches of examples, where images have many sizes
IndexedExample = tuple[int, Example]
Examples = Iterable[IndexedExample]


@dataclasses.dataclass(frozen=True)
class ImagePrediction:
    """The prediction for one example of a dataset.

    Attributes:
        index: Index of the example in its dataset.
        example: Image and ground truth.
        labels: Predicted classes, (h, w), or () of a classification.
        presence: The probability that each class occurs in the image, or None.
        gate: The gate of the Context Encoding Module, the mean over windows, or None.
    """

    index: int
    example: Example
    labels: UInt8[np.ndarray, "..."]
    presence: Float32[np.ndarray, " n"] | None = None
    gate: Float32[np.ndarray, " c"] | None = None


# (params, batch_stats, indexed examples, batch size per device) -> each of them once,
# in any order.
PredictBatchesFn = Callable[
    [PureDict, PureDict, Examples, int], Iterator[ImagePrediction]
]


def predict_dataset(
    predict_batches: PredictBatchesFn,
    params: PureDict,
    batch_stats: PureDict,
    dataset: Dataset,
    *,
    batch_size: int,
    skip: Collection[int] = (),
) -> Iterator[ImagePrediction]:
    """Yields predictions for this host's share of a dataset, each example once.

    Args:
        predict_batches: See `predict_fn_from_config`.
        params: Weights.
        batch_stats: Running statistics.
        dataset: The split.
        batch_size: Images or windows per batch and device.
        skip: Indices of examples to leave out; the same on all hosts.
    """
    indices = local_indices(dataset, skip)
    ahead = 2 * batch_size * jax.local_device_count()
    examples = _read_ahead(dataset, indices, ahead)
    return predict_batches(params, batch_stats, examples, batch_size)


def local_indices(dataset: Dataset, skip: Collection[int] = ()) -> list[int]:
    """Returns the indices of the examples that this host predicts."""
    remaining = [index for index in range(len(dataset)) if index not in skip]
    return remaining[jax.process_index() :: jax.process_count()]


def predict_fn_from_config(
    config: ConfigDict, model: nnx.Module, info: DatasetInfo
) -> PredictBatchesFn:
    """Returns the segmentation function that `config.evaluation` describes.

    Args:
        config: Settings of the evaluation.
        model: A segmentation model, or an abstract one.
        info: The data set.
    """
    mesh = local_mesh(config.mesh.data)
    protocol = protocol_from_config(config, model, info)
    if protocol is not None:
        return make_window_fn(model, info, protocol, mesh)
    size, align_corners = whole_image_size(config), config.evaluation.align_corners
    return make_whole_image_fn(model, info, size, align_corners, mesh)


def make_whole_image_fn(
    model: nnx.Module,
    info: DatasetInfo,
    base_size: int = 0,
    align_corners: bool = False,
    mesh: Mesh | None = None,
) -> PredictBatchesFn:
    """Returns a function that segments whole images, batched by size.

    Compiled once per image size. The last batch of a size is padded.

    Args:
        model: A segmentation model, or an abstract one.
        info: The data set.
        base_size: See `resized_shape`.
        align_corners: See `whole_image_logits`.
        mesh: Devices of this host; all of them if None.
    """
    mesh = mesh or local_mesh()
    folded = InferenceModel(model)
    label = make_label_fn(
        folded.model_def,
        mean=info.mean,
        std=info.std,
        base_size=base_size,
        align_corners=align_corners,
    )

    def predict_batches(
        params: PureDict, batch_stats: PureDict, examples: Examples, batch_size: int
    ) -> Iterator[ImagePrediction]:
        params, batch_stats = jax.device_put(
            folded.arrays(params, batch_stats), replicated(mesh)
        )

        def results() -> Iterator[tuple[list[IndexedExample], Prediction]]:
            size = batch_size * mesh.size
            for batch in batches_of_one_size(examples, size):
                images = jax.device_put(stack_padded(batch, size), batch_sharded(mesh))
                yield batch, label(params, batch_stats, images)

        for batch, result in _one_behind(results()):
            yield from _unbatch(batch, result)

    return predict_batches


def make_window_fn(
    model: nnx.Module,
    info: DatasetInfo,
    protocol: TTAProtocol,
    mesh: Mesh | None = None,
) -> PredictBatchesFn:
    """Returns a function that segments images in windows of one shape.

    Three programs are compiled for all image sizes, four with `protocol.softmax`. Only
    `MmsegProtocol` compiles by size: its whole images, and images smaller than a
    window.

    Args:
        model: A segmentation model, or an abstract one.
        info: The data set.
        protocol: How images are cut into windows and their scores merged.
        mesh: Devices of this host; all of them if None.
    """
    mesh = mesh or local_mesh()
    folded = InferenceModel(model)
    scores_of = make_score_fn(folded.model_def, info.num_classes, protocol, mesh)

    def predict_batches(
        params: PureDict, batch_stats: PureDict, examples: Examples, batch_size: int
    ) -> Iterator[ImagePrediction]:
        params, batch_stats = jax.device_put(
            folded.arrays(params, batch_stats), replicated(mesh)
        )
        return predict_windows(scores_of, params, batch_stats, examples, batch_size)

    return predict_batches


def predict_windows(
    scores_of: ScoreFn,
    params: PureDict,
    batch_stats: PureDict,
    examples: Examples,
    batch_size: int,
) -> Iterator[ImagePrediction]:
    """Yields the predictions of images, with arrays that are folded and on the devices.

    Args:
        scores_of: See `make_score_fn`, as for the other arguments.
        params: Likewise.
        batch_stats: Likewise.
        examples: Indices and examples.
        batch_size: Windows of a batch on each device, mirror images included.
    """
    images = ((indexed, indexed[1].image) for indexed in examples)
    finished = scores_of(params, batch_stats, images, batch_size)
    results = ((i, i.score_map.labels()) for i in finished)
    for image, labels in _one_behind(results):
        index, example = image.key
        yield ImagePrediction(
            index,
            example,
            labels.fetch(),
            mean_over_windows(image.presence),
            mean_over_windows(image.gates),
        )


def stack_padded(batch: Sequence[IndexedExample], size: int) -> np.ndarray:
    """Stacks images, padded to `size` by repeating the last."""
    images = [example.image for _, example in batch]
    return np.stack(images + [images[-1]] * (size - len(images)))


def _one_behind(results: Iterable[_Item]) -> Iterator[_Item]:
    """Yields each result once the next is dispatched, so that devices stay busy."""
    pending: deque[_Item] = deque()
    for result in results:
        pending.append(result)
        if len(pending) > 1:
            yield pending.popleft()
    yield from pending


def _unbatch(
    batch: Sequence[IndexedExample], result: Prediction
) -> Iterator[ImagePrediction]:
    labels, presence, gates = jax.device_get(result)
    for row, (index, example) in enumerate(batch):
        probabilities = None if presence is None else presence[row]
        gate = None if gates is None else gates[row]
        yield ImagePrediction(index, example, labels[row], probabilities, gate)


def batches_of_one_size(
    examples: Examples, size: int
) -> Iterator[list[IndexedExample]]:
    """Yields batches of up to `size` examples of one image size.

    Examples wait until `size` of them have the same image size. Once `_MAX_WAITING`
    batches' worth wait in total, those of the most frequent image size go first.
    """
    waiting: dict[tuple[int, ...], list[IndexedExample]] = {}
    count = 0
    for index, example in examples:
        batch = waiting.setdefault(example.image.shape, [])
        batch.append((index, example))
        count += 1
        if len(batch) == size or count == _MAX_WAITING * size:
            batch = waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
            count -= len(batch)
            yield batch
    yield from waiting.values()


def _read_ahead(
    dataset: Dataset, indices: Sequence[int], ahead: int
) -> Iterator[IndexedExample]:
    """Yields examples in order while threads decode the next ones."""
    with closing(read_ahead(dataset.__getitem__, indices, ahead)) as examples:
        yield from zip(indices, map(checked, examples))
