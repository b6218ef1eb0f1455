"""Order of the training examples, a pure function of seed and step.

Batch t takes positions t * batch_size to (t + 1) * batch_size of an endless sequence of
shuffled epochs, in each of which every example occurs once. Resuming at any step needs
no saved state, and the content of a batch depends neither on the number of hosts nor on
the loader.
"""

import functools
from collections.abc import Generator

import numpy as np
from jaxtyping import Int32, Int64


def batch_indices(
    seed: int, size: int, batch_size: int, step: int
) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
    """Returns the indices of the examples in a batch, and the epoch of each.

    Args:
        seed: Seed of the run.
        size: Number of examples in the data set.
        batch_size: Size of the global batch.
        step: Index of the batch.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, ranks = np.divmod(positions, size)
    indices = np.empty_like(ranks)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        indices[in_epoch] = _permutation(seed, int(epoch), size)[ranks[in_epoch]]
    return indices, epochs


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """Returns the rows of the global batch that one host loads."""
    if batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} does not divide among {process_count} hosts"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> Int64[np.ndarray, " n"]:
    return np.random.default_rng((seed, epoch)).permutation(size)


def index_batches(
    size: int,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[dict[str, Int32[np.ndarray, " b"]]]:
    """Yields this host's rows of every global batch: `index` and `epoch`.

    Args:
        size: Number of examples.
        batch_size: Size of the global batch.
        seed: Seed of the run.
        start_step: Index of the first batch.
        process_index: Index of this host.
        process_count: Number of hosts.
    """
    rows = process_rows(batch_size, process_index, process_count)
    step = start_step
    while True:
        indices, epochs = batch_indices(seed, size, batch_size, step)
        yield {
            "index": indices[rows].astype(np.int32),
            "epoch": epochs[rows].astype(np.int32),
        }
        step += 1
