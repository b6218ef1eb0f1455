"""Class weights computed from the training split: `loss.class_balance`."""

import json
import logging
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Dataset, checked, read_ahead
from encnet_jax.data.label_check import unlabeled_classes
from encnet_jax.data.statistics import CLASS_BALANCES, Statistics, read_label_counts
from encnet_jax.errors import UserError
from encnet_jax.files import whole_file
from encnet_jax.ops.class_weights import check_class_weights
from encnet_jax.run.distributed import sum_over_hosts

_FILE = "class_weights.json"
_log = logging.getLogger(__name__)

Weights = tuple[float, ...]


def warn_of_unlabeled_classes(dataset: Dataset) -> None:
    """Logs one line that names the classes without a training example, if known."""
    statistics = _known_statistics(dataset)
    if statistics is None or jax.process_index() != 0:
        return
    if line := unlabeled_classes(statistics, dataset.info):
        _log.warning("WARNING: %s", line)


def create_weights(
    config: ConfigDict, dataset: Dataset, workdir: Path, *, resumes: bool
) -> Weights | None:
    """Returns the weights that `loss.class_balance` asks for; None if it is empty.

    A resumed run keeps the weights in its workdir. Otherwise they are computed from the
    counts that the check of the data set took or, failing that, by reading all labels,
    with each host reading its share. The weights are the same on all hosts.

    Args:
        config: See `encnet_jax.config`.
        dataset: The training split.
        workdir: Folder of the run.
        resumes: Whether the run has a checkpoint.

    Raises:
        UserError: A label cannot be read, no pixel has a class, or the stored weights
            are damaged.
    """
    rule, info = config.loss.class_balance, dataset.info
    if not rule:
        return None
    weights = np.zeros(info.num_classes)
    if resumes and jax.process_index() == 0:
        weights = _stored_weights(workdir / _FILE, rule, info)
    weights = sum_over_hosts(weights)
    if not weights.any():
        weights = CLASS_BALANCES[rule](_known_statistics(dataset) or _count(dataset))
        # Those of host 0, should the hosts' copies of the files differ.
        weights = sum_over_hosts(weights * (jax.process_index() == 0))
    pairs = zip(info.class_names, weights)
    text = ", ".join(f"{name} {weight:.4g}" for name, weight in pairs)
    _log.info("loss.class_balance=%s: class weights %s", rule, text)
    return tuple(weights.tolist())


def save_weights(
    weights: Weights | None, config: ConfigDict, dataset: Dataset, workdir: Path
) -> None:
    """Writes the weights to `class_weights.json` in the workdir, unless None."""
    if weights is None:
        return
    content = {
        "class_balance": config.loss.class_balance,
        "class_weights": dict(zip(dataset.info.class_names, weights)),
    }
    with whole_file(workdir / _FILE) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def _stored_weights(path: Path, rule: str, info: DatasetInfo) -> np.ndarray:
    """Returns the weights in a workdir; zeros if they are of another rule, or none."""
    try:
        content = json.loads(path.read_text())
        if content["class_balance"] == rule:
            stored = content["class_weights"]
            weights = [stored[name] for name in info.class_names]
            check_class_weights(weights)
            return np.array(weights, np.float64)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: not the class weights of this run: {error!r}; remove it to "
            "compute them again"
        ) from error
    return np.zeros(info.num_classes)


def _known_statistics(dataset: Dataset) -> Statistics | None:
    """Returns the counts that were taken when the data set was opened, if any."""
    return getattr(dataset, "statistics", None)


def _count(dataset: Dataset) -> Statistics:
    """Counts all labels: each host reads its share, and gets the counts of all."""
    _log.info("loss.class_balance: counting the labels of %d images", len(dataset))
    statistics = Statistics.empty(dataset.info.num_classes)
    indices = range(len(dataset))[jax.process_index() :: jax.process_count()]
    counts = read_ahead(lambda index: read_label_counts(dataset, index), indices)
    for index, counted in zip(indices, counts):
        statistics.add(index, *checked(counted))
    for name in ("pixels", "pixels_with_class", "images"):
        setattr(statistics, name, sum_over_hosts(getattr(statistics, name)))
    if not statistics.pixels.any():
        raise UserError(
            f"loss.class_balance: no pixel of {dataset.info.name} has a class"
        )
    return statistics
