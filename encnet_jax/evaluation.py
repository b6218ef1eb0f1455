"""A split of a data set to scores: every image once, at the size of its own labels."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from encnet_jax.checkpoint import Checkpoints
from encnet_jax.config import load_config, model_settings
from encnet_jax.data.catalogue import open_source
from encnet_jax.data.classes import IGNORE_LABEL, DatasetInfo, load_info
from encnet_jax.data.sources import Example, Source
from encnet_jax.errors import UserError
from encnet_jax.inference import (
    eval_definition,
    multi_scale_scores,
    normalise,
    whole_image_logits,
)
from encnet_jax.metrics import confusion_matrix, scores
from encnet_jax.models import create_model
from encnet_jax.progress import Counter
from encnet_jax.report import save_scores, table
from encnet_jax.train_state import PureDict, split_model

# (params, batch_stats, images, labels) -> (matrix, predictions)
ScoreFn = Callable[..., tuple[jax.Array, jax.Array]]


def make_score_fn(
    model: nnx.Module,
    info: DatasetInfo,
    base_size: int = 0,
    align_corners: bool = False,
) -> ScoreFn:
    """Returns a jitted function that predicts and counts a batch.

    It maps parameters, statistics, uint8 images (b, h, w, 3) and uint8 labels (b, h, w)
    to an int32 confusion matrix (n, n) and uint8 predictions (b, h, w). Compiled once
    for each shape.
    """
    definition = eval_definition(model)

    @jax.jit
    def score(params: PureDict, stats: PureDict, images: Any, labels: Any):
        logits, _ = whole_image_logits(
            definition.merge(params, stats),
            images,
            mean=info.mean,
            std=info.std,
            base_size=base_size,
            align_corners=align_corners,
        )
        predictions = logits.argmax(-1)
        matrix = confusion_matrix(labels, predictions, info.num_classes, IGNORE_LABEL)
        return matrix, predictions.astype(jnp.uint8)

    return score


def make_multi_scale_score_fn(
    model: nnx.Module,
    info: DatasetInfo,
    *,
    base_size: int,
    crop_size: int,
    scales: Sequence[float],
    flip: bool,
    align_corners: bool,
) -> ScoreFn:
    """Returns a function as that of `make_score_fn`, by `multi_scale_scores`.

    The network is compiled once, for windows of `crop_size`, whatever sizes the images
    have.
    """
    definition = eval_definition(model)

    @jax.jit
    def logits(params: PureDict, stats: PureDict, windows: jax.Array) -> jax.Array:
        return definition.merge(params, stats)(windows).logits.astype(jnp.float32)

    def score(params: PureDict, stats: PureDict, images: Any, labels: Any):
        total = np.zeros((info.num_classes, info.num_classes), np.int64)
        predictions = np.zeros(labels.shape, np.uint8)
        # Rows that only fill up the batch have no labels.
        for row in np.flatnonzero((labels != IGNORE_LABEL).any((1, 2))):
            result = multi_scale_scores(
                functools.partial(logits, params, stats),
                np.asarray(normalise(images[row], info.mean, info.std)),
                num_classes=info.num_classes,
                base_size=base_size,
                crop_size=crop_size,
                scales=scales,
                flip=flip,
                mean=info.mean,
                std=info.std,
                align_corners=align_corners,
            )
            predictions[row] = result.argmax(-1)
            total += np.asarray(
                confusion_matrix(labels[row], predictions[row], info.num_classes)
            )
        return total, predictions

    return score


def evaluate(
    score: ScoreFn,
    params: PureDict,
    batch_stats: PureDict,
    source: Source,
    *,
    batch_size: int,
    absent: str = "skip",
    progress: Callable[[int], None] = lambda images: None,
    keep: int = 0,
) -> tuple[dict[str, Any], list[tuple[Example, np.ndarray]]]:
    """Scores every example of a source.

    Args:
        score: From `make_score_fn`.
        params: Weights.
        batch_stats: Running statistics.
        source: What to score.
        batch_size: Images of one size that are scored together; the last of a size are
            filled up with ignored ones, so that no further shape is compiled.
        absent: See `metrics.scores`.
        progress: Called with the number of images done so far.
        keep: How many examples to return with their predictions.

    Returns:
        The scores, with `images`, their number, and `confusion_matrix`, int64 (n, n);
        and examples, evenly spread over the source, with predictions uint8 (h, w).
    """
    classes = source.info.num_classes
    total = np.zeros((classes, classes), np.int64)
    wanted = set(np.linspace(0, len(source) - 1, keep).astype(int)) if keep else set()
    kept: dict[int, tuple[Example, np.ndarray]] = {}
    done = 0
    for numbers, examples, images, labels in _batches(source, batch_size):
        matrix, predictions = score(params, batch_stats, images, labels)
        total += np.asarray(matrix)
        for row in wanted.intersection(numbers):
            place = numbers.index(row)
            kept[row] = (examples[place], np.asarray(predictions[place]))
        done += len(numbers)
        progress(done)
    results = scores(total, absent)
    results.update(images=done, confusion_matrix=total)
    return results, [kept[row] for row in sorted(kept)]


def _batches(
    source: Source, batch_size: int
) -> Iterator[tuple[list[int], list[Example], np.ndarray, np.ndarray]]:
    """Yields full batches of images of one size, the last padded with ignored ones."""
    waiting: dict[tuple[int, ...], list[tuple[int, Example]]] = {}
    for number, example in _read_ahead(source, 2 * batch_size):
        group = waiting.setdefault(example.image.shape, [])
        group.append((number, example))
        if len(group) == batch_size:
            yield _stack(waiting.pop(example.image.shape), batch_size)
    for group in waiting.values():
        yield _stack(group, batch_size)


def _stack(
    group: list[tuple[int, Example]], batch_size: int
) -> tuple[list[int], list[Example], np.ndarray, np.ndarray]:
    numbers = [number for number, _ in group]
    examples = [example for _, example in group]
    shape = examples[0].image.shape
    images = np.zeros((batch_size, *shape), np.uint8)
    labels = np.full((batch_size, *shape[:2]), IGNORE_LABEL, np.uint8)
    for row, example in enumerate(examples):
        images[row], labels[row] = example.image, example.labels
    return numbers, examples, images, labels


def _read_ahead(source: Source, ahead: int) -> Iterator[tuple[int, Example]]:
    """Yields the examples in order; threads decode the next ones meanwhile."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        pending = {
            n: pool.submit(source.example, n) for n in range(min(ahead, len(source)))
        }
        for number in range(len(source)):
            example = pending.pop(number).result()
            following = number + ahead
            if following < len(source):
                pending[following] = pool.submit(
                    functools.partial(source.example, following)
                )
            yield number, example


def evaluate_workdir(
    config: ConfigDict, workdir: Path, split: str, step: str = "best"
) -> str:
    """Scores a checkpoint, writes `evaluation/SPLIT[-ms].json`, returns a table.

    Raises:
        UserError: Workdir, checkpoint, model, classes and split do not fit.
    """
    stored = load_config(workdir / "config.json")
    info = load_info(workdir / "classes.json")
    source = open_source(
        config.data.name, split, config.data.data_dir, drawn=config.data.in_memory
    )
    if info.class_names != source.info.class_names:
        raise UserError(
            f"{workdir} was trained on the {info.num_classes} classes of {info.name}; "
            f"{config.data.name} has other {source.info.num_classes}"
        )
    model = nnx.eval_shape(
        lambda: create_model(num_classes=info.num_classes, **model_settings(stored))
    )
    _, params, stats = split_model(model)
    params, stats, number = Checkpoints(workdir).restore_model(params, stats, step)
    settings = config.evaluation
    name = split
    if settings.scales:
        name = f"{split}-ms"
        score = make_multi_scale_score_fn(
            model,
            info,
            base_size=settings.base_size or config.data.base_size,
            crop_size=settings.crop_size or config.data.crop_size,
            scales=tuple(settings.scales),
            flip=settings.flip,
            align_corners=stored.model.align_corners,
        )
    else:
        score = make_score_fn(
            model, info, settings.base_size, stored.evaluation.align_corners
        )
    counter = Counter(len(source), "images")
    results, _ = evaluate(
        score,
        params,
        stats,
        source,
        batch_size=settings.batch_size,
        absent=settings.absent,
        progress=counter.show,
    )
    counter.close()
    path = workdir / "evaluation" / f"{name}.json"
    save_scores(results, path, split=split, step=number, class_names=info.class_names)
    return f"{table(results, info)}\n{results['images']} images, step {number}: {path}"
