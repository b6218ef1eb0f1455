"""Host-to-device transfer, a few batches ahead of the step."""

import collections
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


def to_devices(batch: Any, sharding: NamedSharding) -> Any:
    """Places this host's rows as its shard of the global batch (a pytree)."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
        batch,
    )


def prefetched(
    batches: Iterable[Any], sharding: NamedSharding, ahead: int = 2
) -> Iterator[Any]:
    """Yields batches on the devices while the next `ahead` are being transferred."""
    iterator = iter(batches)
    queue = collections.deque(
        to_devices(batch, sharding) for batch in itertools.islice(iterator, ahead)
    )
    while queue:
        batch = queue.popleft()
        for following in itertools.islice(iterator, 1):
            queue.append(to_devices(following, sharding))
        yield batch
