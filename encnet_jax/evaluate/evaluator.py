"""A split of a data set to scores: every image once, at the size of its own labels."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Example, Source
from encnet_jax.evaluate.accumulator import ImageMetrics, Tally
from encnet_jax.evaluate.object_sizes import count_by_size
from encnet_jax.inference.predict_fn import InferenceModel, Labelling, make_labelling_fn
from encnet_jax.inference.score_map import Labels, Layout, ScoreMapPool
from encnet_jax.inference.sliding_window import finished_images, joined, paired
from encnet_jax.inference.tta import (
    MmsegProtocol,
    PyTorchEncodingProtocol,
    WindowProtocol,
)
from encnet_jax.metrics import count_pixels
from encnet_jax.run.sharding import batch_sharded, local_mesh, replicated
from encnet_jax.run.state import PureDict

_Numbered = tuple[int, Example]


class Scored(NamedTuple):
    """What a model says of an example.

    Attributes:
        number: Of the example in its source.
        example: Image and true labels.
        predictions: uint8 (h, w), classes.
        presence: float32 (n,), the probability of each class, or None.
    """

    number: int
    example: Example
    predictions: np.ndarray
    presence: np.ndarray | None


# (params, batch_stats, numbered examples, batch size of a device) -> each once; the
# order may differ.
ScoreFn = Callable[[PureDict, PureDict, Iterable[_Numbered], int], Iterator[Scored]]


def score_fn_by_config(
    config: ConfigDict, trained: ConfigDict, model: nnx.Module, info: DatasetInfo
) -> ScoreFn:
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
    protocol: WindowProtocol
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
        return make_score_fn(model, info, settings.base_size, corners, mesh)
    return make_window_score_fn(model, info, protocol, mesh)


def make_score_fn(
    model: nnx.Module,
    info: DatasetInfo,
    base_size: int = 0,
    align_corners: bool = False,
    mesh: Mesh | None = None,
) -> ScoreFn:
    """Returns a function that passes whole images, those of one size together.

    Compiled once for each size. The last batch of a size is filled up.

    Args:
        model: A segmentation model, or its shapes.
        info: Of the data set.
        base_size: See `working_size`.
        align_corners: See `whole_image_logits`.
        mesh: Devices of this host; all of them if None.
    """
    mesh = mesh or local_mesh()
    folded = InferenceModel(model)
    label = make_labelling_fn(
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
        pending: deque[tuple[list[_Numbered], Labelling]] = deque()
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


def make_window_score_fn(
    model: nnx.Module,
    info: DatasetInfo,
    protocol: WindowProtocol,
    mesh: Mesh | None = None,
) -> ScoreFn:
    """Returns a function that passes images in windows of one shape.

    Whatever sizes the images have, three programs are compiled, or four with
    `protocol.softmax`; only images smaller than a window of mmsegmentation's rules, and
    its whole images, are compiled by size.

    Args:
        model: A segmentation model, or its shapes.
        info: Of the data set.
        protocol: How images are cut and scores joined.
        mesh: Devices of this host; all of them if None.
    """
    mesh = mesh or local_mesh()
    folded = InferenceModel(model)
    layout = Layout(info.num_classes, protocol.softmax, mesh)
    score_maps = ScoreMapPool(layout)
    mirror = protocol.mirror_windows

    @jax.jit
    def forward(params: PureDict, batch_stats: PureDict, windows: jax.Array):
        output = folded.model_def.merge(params, batch_stats)(paired(windows, mirror))
        return joined(output.logits, output.se_logits, mirror, layout)

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
        for image in finished_images(
            images, apply, protocol, score_maps, share * mesh.size
        ):
            pending.append((image.key, image.score_map.labels(), image.presence))
            if len(pending) > 1:
                yield _fetched(*pending.popleft())
        for waiting in pending:
            yield _fetched(*waiting)

    return score


def evaluate(
    score: ScoreFn,
    params: PureDict,
    batch_stats: PureDict,
    source: Source,
    *,
    batch_size: int,
    absent: str = "skip",
    object_sizes: bool = False,
    progress: Callable[[int], None] = lambda images: None,
    keep: int = 0,
    done: Sequence[ImageMetrics] = (),
    on_image: Callable[[Scored, ImageMetrics], None] = lambda scored, record: None,
) -> tuple[dict[str, Any], list[tuple[Example, np.ndarray]]]:
    """Scores every example of a source; hosts share them and return the same scores.

    Args:
        score: From `make_score_fn` or its like.
        params: Weights.
        batch_stats: Running statistics.
        source: What to score.
        batch_size: Images or windows that pass the network together on a device.
        absent: See `metrics.scores`.
        object_sizes: Score by the size of objects too; needs SciPy.
        progress: Called with the number of images that this host knows to be done.
        keep: How many examples to return with their predictions.
        done: What is known of examples that need not be scored again.
        on_image: Called with each image that is scored.

    Returns:
        The scores, as `Tally.results`, and `image_iou`, (images,), the mean IoU of
        each; and of the examples that this host scored some, evenly spread, with
        predictions uint8 (h, w).
    """
    classes = source.info.num_classes
    tally = Tally(len(source), classes)
    if jax.process_index() == 0:
        for record in done:
            tally.add(record)
    known = {record.number for record in done}
    open_numbers = [n for n in range(len(source)) if n not in known]
    own = open_numbers[jax.process_index() :: jax.process_count()]
    spread = np.linspace(0, len(own) - 1, keep if own else 0).astype(int)
    wanted = {own[place] for place in spread}
    kept: dict[int, tuple[Example, np.ndarray]] = {}
    examples = _read_ahead(source, own, 2 * batch_size)
    scored_images = score(params, batch_stats, examples, batch_size)
    for count, scored in enumerate(scored_images, len(done) + 1):
        truth, predictions = scored.example.labels, scored.predictions
        record = ImageMetrics(
            scored.number,
            count_pixels(truth, predictions, classes),
            scored.presence,
            count_by_size(truth, predictions, classes) if object_sizes else None,
        )
        tally.add(record)
        on_image(scored, record)
        if scored.number in wanted:
            kept[scored.number] = (scored.example, predictions)
        progress(count)
    tally = tally.over_hosts()
    results = {**tally.results(absent), "image_iou": tally.image_iou}
    return results, [kept[number] for number in sorted(kept)]


def _rows(group: Sequence[_Numbered], result: Labelling) -> Iterator[Scored]:
    labels, presence = jax.device_get(result)
    for row, (number, example) in enumerate(group):
        probability = None if presence is None else presence[row]
        yield Scored(number, example, labels[row], probability)


def _fetched(
    numbered: _Numbered, labels: Labels, presence: list[tuple[jax.Array, int]]
) -> Scored:
    """Of the presence in windows the mean is that of the image."""
    rows = [np.asarray(array)[row] for array, row in presence]
    mean = np.asarray(np.mean(rows, 0, dtype=np.float32)) if rows else None
    return Scored(*numbered, labels.fetch(), mean)


def _groups_of_one_size(
    examples: Iterable[_Numbered], size: int
) -> Iterator[list[_Numbered]]:
    """Yields `size` examples of one size at a time; at the end fewer."""
    waiting: dict[tuple[int, ...], list[_Numbered]] = {}
    for number, example in examples:
        group = waiting.setdefault(example.image.shape, [])
        group.append((number, example))
        if len(group) == size:
            yield waiting.pop(example.image.shape)
    yield from waiting.values()


def _read_ahead(
    source: Source, numbers: Sequence[int], ahead: int
) -> Iterator[_Numbered]:
    """Yields examples in order; threads decode the next ones meanwhile."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        pending = deque(pool.submit(source.example, n) for n in numbers[:ahead])
        for place, number in enumerate(numbers):
            example = pending.popleft().result()
            if place + ahead < len(numbers):
                pending.append(pool.submit(source.example, numbers[place + ahead]))
            yield number, example
