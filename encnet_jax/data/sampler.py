"""The order of the training examples: a function of the seed and the step alone.

Batch t holds positions t * batch_size and on of an endless row, in which every example
occurs exactly once an epoch. Nothing needs saving to resume at any step, and neither
the number of hosts nor the loader changes which examples a batch holds.
"""

import functools

import numpy as np


def batch_indices(
    seed: int, size: int, batch_size: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of batch `step`: their indices and epochs, int64 (b,)."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions, size)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = _epoch_order(seed, int(epoch), size)[places[chosen]]
    return indices, epochs


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """Returns the rows of a global batch that one host reads."""
    if batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} does not divide among {process_count} hosts"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)
