"""A split of a data set to scores: every image once, at the size of its own labels."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Dataset, Example
from encnet_jax.evaluate.accumulator import ImageMetrics, MetricAccumulator
from encnet_jax.evaluate.object_sizes import count_by_size
from encnet_jax.inference.predict_fn import InferenceModel, Prediction, make_label_fn
from encnet_jax.inference.score_map import Labels, ScoreMapPool, ScoreMapSharding
from encnet_jax.inference.sliding_window import (
    add_hflip,
    merge_hflip,
    run_sliding_window,
)
from encnet_jax.inference.tta import (
    MmsegProtocol,
    PyTorchEncodingProtocol,
    TTAProtocol,
)
from encnet_jax.metrics import confusion_matrix_np
from encnet_jax.run.sharding import batch_sharded, local_mesh, replicated
from encnet_jax.run.state import PureDict

_Numbered = tuple[int, Example]


@dataclasses.dataclass(frozen=True)
class ImagePrediction:
    """What a model says of an example.

    Attributes:
        index: Of the example in its dataset.
        example: Image and true labels.
        predictions: uint8 (h, w), classes.
        presence: float32 (n,), the probability of each class, or None.
    """

    index: int
    example: Example
    predictions: np.ndarray
    presence: np.ndarray | None


# (params, batch_stats, numbered examples, batch size of a device) -> each once; the
# order may differ.
PredictBatchesFn = Callable[
    [PureDict, PureDict, Iterable[_Numbered], int], Iterator[ImagePrediction]
]


def predict_fn_from_config(
    config: ConfigDict, trained: ConfigDict, model: nnx.Module, info: DatasetInfo
) -> PredictBatchesFn:
    """Returns the way to score that `evaluation` of a configuration asks for.

    Args:
        config: What to do.
        trained: How the model was trained; its conventions of resizing hold.
        model: A segmentation model, or its shapes.
        info: Of the data set.
    """
    settings, mesh = config.evaluation, local_mesh(config.mesh.data)
    corners = trained.evaluation.align_corners
    windows: dict[str, Any] = dict(
        crop_size=settings.crop_size or config.data.crop_size,
        scales=tuple(settings.scales) or (1.0,),
        flip=settings.flip,
        stride=settings.stride,
        mean=info.mean,
        std=info.std,
    )
    protocol: TTAProtocol
    if settings.protocol == "mmseg":
        if settings.mode == "whole":
            windows["crop_size"] = 0
        protocol = MmsegProtocol(
            base_size=settings.base_size,
            short_size=settings.short_size,
            align_corners=corners,
            **windows,
        )
    elif settings.mode == "slide" or settings.scales:
        protocol = PyTorchEncodingProtocol(
            base_size=settings.base_size or config.data.base_size,
            align_corners=trained.model.align_corners,
            **windows,
        )
    else:
        return make_whole_image_fn(model, info, settings.base_size, corners, mesh)
    return make_window_fn(model, info, protocol, mesh)


def make_whole_image_fn(
    model: nnx.Module,
    info: DatasetInfo,
    base_size: int = 0,
    align_corners: bool = False,
    mesh: Mesh | None = None,
) -> PredictBatchesFn:
    """Returns a function that passes whole images, those of one size together.

    Compiled once for each size. The last batch of a size is filled up.

    Args:
        model: A segmentation model, or its shapes.
        info: Of the data set.
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

    def score(params, batch_stats, examples, batch_size):
        params, batch_stats = jax.device_put(
            folded.arrays(params, batch_stats), replicated(mesh)
        )
        pending: deque[tuple[list[_Numbered], Prediction]] = deque()
        for group in _groups_of_one_size(examples, batch_size * mesh.size):
            fill = batch_size * mesh.size - len(group)
            pixels = [example.image for _, example in group]
            images = np.stack(pixels + [pixels[-1]] * fill)
            placed = jax.device_put(images, batch_sharded(mesh))
            pending.append((group, label(params, batch_stats, placed)))
            if len(pending) > 1:  # the next is on its way while this one is counted
                yield from _rows(*pending.popleft())
        for waiting in pending:
            yield from _rows(*waiting)

    return score


def make_window_fn(
    model: nnx.Module,
    info: DatasetInfo,
    protocol: TTAProtocol,
    mesh: Mesh | None = None,
) -> PredictBatchesFn:
    """Returns a function that passes images in windows of one shape.

    Whatever sizes the images have, three programs are compiled, or four with
    `protocol.softmax`; only images smaller than a window of mmsegmentation's rules, and
    its whole images, are compiled by size.

    Args:
        model: A segmentation model, or its shapes.
        info: Of the data set.
        protocol: How images are cut and scores merge_hflip.
        mesh: Devices of this host; all of them if None.
    """
    mesh = mesh or local_mesh()
    folded = InferenceModel(model)
    sharding = ScoreMapSharding(info.num_classes, protocol.softmax, mesh)
    score_maps = ScoreMapPool(sharding)
    mirror = protocol.mirror_windows

    @jax.jit
    def forward(params: PureDict, batch_stats: PureDict, windows: jax.Array):
        output = folded.model_def.merge(params, batch_stats)(add_hflip(windows, mirror))
        return merge_hflip(output.logits, output.se_logits, mirror, sharding)

    def score(params, batch_stats, examples, batch_size):
        params, batch_stats = jax.device_put(
            folded.arrays(params, batch_stats), replicated(mesh)
        )
        share = max(batch_size // 2, 1) if mirror else batch_size

        def apply(windows: np.ndarray):
            return forward(
                params, batch_stats, jax.device_put(windows, batch_sharded(mesh))
            )

        images = ((numbered, numbered[1].image) for numbered in examples)
        pending: deque[tuple[_Numbered, Labels, list]] = deque()
        for image in run_sliding_window(
            images, apply, protocol, score_maps, share * mesh.size
        ):
            pending.append((image.key, image.score_map.labels(), image.presence))
            if len(pending) > 1:
                yield _fetched(*pending.popleft())
        for waiting in pending:
            yield _fetched(*waiting)

    return score


def evaluate(
    score: PredictBatchesFn,
    params: PureDict,
    batch_stats: PureDict,
    dataset: Dataset,
    *,
    batch_size: int,
    absent_classes: str = "skip",
    object_sizes: bool = False,
    progress: Callable[[int], None] = lambda images: None,
    keep: int = 0,
    done: Sequence[ImageMetrics] = (),
    on_image: Callable[[ImagePrediction, ImageMetrics], None] = lambda scored, record: (
        None
    ),
) -> tuple[dict[str, Any], list[tuple[Example, np.ndarray]]]:
    """Scores every example of a dataset; hosts share them and return the same scores.

    Args:
        score: From `make_whole_image_fn` or its like.
        params: Weights.
        batch_stats: Running statistics.
        dataset: What to score.
        batch_size: Images or windows that pass the network together on a device.
        absent_classes: See `metrics.segmentation_metrics`.
        object_sizes: Score by the size of objects too; needs SciPy.
        progress: Called with the index of images that this host knows to be done.
        keep: How many examples to return with their predictions.
        done: What is known of examples that need not be scored again.
        on_image: Called with each image that is scored.

    Returns:
        The scores, as `MetricAccumulator.results`, and `image_iou`, (images,), the mean
        IoU of each; and of the examples that this host scored some, evenly spread, with
        predictions uint8 (h, w).
    """
    classes = dataset.info.num_classes
    accumulator = MetricAccumulator(len(dataset), classes)
    if jax.process_index() == 0:
        for record in done:
            accumulator.add(record)
    known = {record.index for record in done}
    open_numbers = [n for n in range(len(dataset)) if n not in known]
    own = open_numbers[jax.process_index() :: jax.process_count()]
    spread = np.linspace(0, len(own) - 1, keep if own else 0).astype(int)
    wanted = {own[place] for place in spread}
    kept: dict[int, tuple[Example, np.ndarray]] = {}
    examples = _read_ahead(dataset, own, 2 * batch_size)
    scored_images = score(params, batch_stats, examples, batch_size)
    for count, scored in enumerate(scored_images, len(done) + 1):
        truth, predictions = scored.example.labels, scored.predictions
        record = ImageMetrics(
            scored.index,
            confusion_matrix_np(truth, predictions, classes),
            scored.presence,
            count_by_size(truth, predictions, classes) if object_sizes else None,
        )
        accumulator.add(record)
        on_image(scored, record)
        if scored.index in wanted:
            kept[scored.index] = (scored.example, predictions)
        progress(count)
    accumulator = accumulator.over_hosts()
    results = {
        **accumulator.results(absent_classes),
        "image_iou": accumulator.image_iou,
    }
    return results, [kept[index] for index in sorted(kept)]


def _rows(group: Sequence[_Numbered], result: Prediction) -> Iterator[ImagePrediction]:
    labels, presence = jax.device_get(result)
    for row, (index, example) in enumerate(group):
        probability = None if presence is None else presence[row]
        yield ImagePrediction(index, example, labels[row], probability)


def _fetched(
    numbered: _Numbered, labels: Labels, presence: list[tuple[jax.Array, int]]
) -> ImagePrediction:
    """Of the presence in windows the mean is that of the image."""
    rows = [np.asarray(array)[row] for array, row in presence]
    mean = np.asarray(np.mean(rows, 0, dtype=np.float32)) if rows else None
    return ImagePrediction(*numbered, labels.fetch(), mean)


def _groups_of_one_size(
    examples: Iterable[_Numbered], size: int
) -> Iterator[list[_Numbered]]:
    """Yields `size` examples of one size at a time; at the end fewer."""
    waiting: dict[tuple[int, ...], list[_Numbered]] = {}
    for index, example in examples:
        group = waiting.setdefault(example.image.shape, [])
        group.append((index, example))
        if len(group) == size:
            yield waiting.pop(example.image.shape)
    yield from waiting.values()


def _read_ahead(
    dataset: Dataset, indices: Sequence[int], ahead: int
) -> Iterator[_Numbered]:
    """Yields examples in order; threads decode the next ones meanwhile."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        pending = deque(pool.submit(dataset.__getitem__, n) for n in indices[:ahead])
        for place, index in enumerate(indices):
            example = pending.popleft().result()
            if place + ahead < len(indices):
                pending.append(pool.submit(dataset.__getitem__, indices[place + ahead]))
            yield index, example
