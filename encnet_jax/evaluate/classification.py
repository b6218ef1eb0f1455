"""Whole images into classes: the score of a split.

The task of the paper's CIFAR-10 experiments; the same training loop, checkpoints and
commands as for segmentation.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.registry import open_dataset
from encnet_jax.evaluate.report import save_scores
from encnet_jax.inference.predict_fn import eval_model_def
from encnet_jax.ops.normalize import normalize
from encnet_jax.run.progress import Counter
from encnet_jax.run.state import PureDict
from encnet_jax.run.workdir import load_workdir

# (params, batch_stats, uint8 images (b, h, w, 3)) -> probabilities float32 (b, n)
ClassifyFn = Callable[[PureDict, PureDict, Any], jax.Array]


def make_classify_fn(model: nnx.Module, info: DatasetInfo) -> ClassifyFn:
    """Returns a jitted function from images to the probabilities of their classes."""
    model_def = eval_model_def(model)

    @jax.jit
    def classify(params: PureDict, batch_stats: PureDict, images: Any) -> jax.Array:
        model = model_def.merge(params, batch_stats)
        return jax.nn.softmax(model(normalize(images, info.mean, info.std)).logits)

    return classify


def evaluate_classes(
    classify: ClassifyFn,
    params: PureDict,
    batch_stats: PureDict,
    dataset: Dataset,
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Scores every image of a dataset; hosts share them and return the same scores.

    Args:
        classify: From `make_classify_fn`.
        params: Weights.
        batch_stats: Running statistics.
        dataset: Images of one size.
        batch_size: Images that pass the network together; the last are filled up.
        progress: Called with the index of images that this host has done.

    Returns:
        `accuracy`, `error`, `per_class_accuracy` (n,), `confusion_matrix` int64 (n, n)
        of labels and predictions, `images`; and the predictions of this host's images.
    """
    classes = dataset.info.num_classes
    own = local_indices(dataset)
    matrix = np.zeros((classes, classes), np.int64)
    predictions = []
    for start in range(0, len(own), batch_size):
        indices = own[start : start + batch_size]
        examples = [dataset[index] for index in indices]
        images = [example.image for example in examples]
        images += [images[-1]] * (batch_size - len(images))
        scores = np.asarray(classify(params, batch_stats, np.stack(images)))
        found = scores[: len(examples)].argmax(-1)
        np.add.at(matrix, ([int(e.labels) for e in examples], found), 1)
        predictions.append(found)
        progress(start + len(examples))
    matrix = _over_hosts(matrix)
    right, counts = matrix.diagonal(), matrix.sum(1)
    accuracy = float(right.sum() / counts.sum())
    scores_by_name = {
        "accuracy": accuracy,
        "error": 1 - accuracy,
        "per_class_accuracy": right / np.maximum(counts, 1),
        "confusion_matrix": matrix,
        "images": int(counts.sum()),
    }
    return scores_by_name, np.concatenate(predictions)


def local_indices(dataset: Dataset) -> range:
    """Returns the indices of the images that this host scores."""
    return range(jax.process_index(), len(dataset), jax.process_count())


def _over_hosts(matrix: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return matrix
    from jax.experimental import multihost_utils

    # A split has far fewer images than int32 can count.
    return np.asarray(
        multihost_utils.process_allgather(jnp.asarray(matrix, jnp.int32))
    ).sum(0, dtype=np.int64)


def evaluate_classes_workdir(
    config: ConfigDict, workdir: Path, split: str, step: str = "best"
) -> str:
    """Scores a checkpoint, writes `evaluation/SPLIT.json` and returns a table.

    The confusion matrix is drawn beside it.

    Raises:
        UserError: Workdir, checkpoint, classes and split do not fit.
    """
    dataset = open_dataset(config.data.name, split, config.data.data_dir)
    trained = load_workdir(workdir, step, dataset=dataset.info)
    info, index = trained.info, trained.step
    counter = Counter(len(dataset), "images")
    results, _ = evaluate_classes(
        make_classify_fn(trained.model, info),
        trained.params,
        trained.batch_stats,
        dataset,
        batch_size=config.evaluation.batch_size,
        progress=counter.show,
    )
    counter.close()
    path = workdir / "evaluation" / f"{split}.json"
    if jax.process_index() == 0:
        save_scores(
            results, path, split=split, step=index, class_names=info.class_names
        )
        # Here, so that training does without matplotlib.
        from encnet_jax.visualize.charts import save_confusion

        picture = path.with_name(f"{split}-confusion.png")
        save_confusion(results["confusion_matrix"], info, picture)
    width = max(map(len, (*info.class_names, "accuracy")))
    lines = [
        f"{name:<{width}}  {100 * value:6.2f}"
        for name, value in zip(info.class_names, results["per_class_accuracy"])
    ]
    lines += ["-" * (width + 8)]
    lines += [f"{k:<{width}}  {100 * results[k]:6.2f}" for k in ("accuracy", "error")]
    lines += [f"{results['images']} images, step {index}: {path}"]
    return "\n".join(lines)
