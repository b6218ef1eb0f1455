"""Many hosts as one machine: the processes of a run find each other."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from encnet_jax.errors import UserError
from encnet_jax.run.sharding import batch_sharded, create_mesh

# Seconds without a sign of life after which a host counts as dead, and the others stop.
_HEARTBEAT = 30
_NO_MEMORY = "RESOURCE_EXHAUSTED"
_HELP = (
    "allowed are auto (Cloud TPU, GKE, Slurm, Open MPI, Kubernetes) and "
    "ADDRESS:PORT,COUNT,ID (of the first process, their number, this one's)"
)


def connect_hosts(value: str | None) -> None:
    """Joins this process to the others of its run; to be called before JAX is used.

    Args:
        value: `auto`, `ADDRESS:PORT,COUNT,ID`, or None for a run of one process.

    Raises:
        UserError: Not of these forms, or no cluster was found.
    """
    if value is None:
        return
    try:
        if value == "auto":
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)
        else:
            address, count, number = _by_hand(value)
            jax.distributed.initialize(
                address, count, number, heartbeat_timeout_seconds=_HEARTBEAT
            )
    # JAX's word for an environment in which it finds no cluster.
    except ValueError as error:
        raise UserError(f"--distributed={value}: {_HELP}: {error}") from error
    _warm_up_collectives()
    if jax.process_index() > 0:  # what all would say, one says
        logging.getLogger("encnet_jax").setLevel(logging.WARNING)


@contextlib.contextmanager
def abort_on_failure() -> Iterator[None]:
    """Ends this process at once if what it does fails while it is one of many.

    The usual way out waits minutes for all of them to say goodbye, and as long would
    those hang that need this one for their next step. That another is gone, and hence
    this one ends too, is told in one line.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        code = _report_failure(error)
        sys.stderr.flush()
        os._exit(code)


def sum_over_hosts(array: np.ndarray) -> np.ndarray:
    """Returns the elementwise sum over all hosts, exact for 64-bit integers.

    Args:
        array: This host's summand, of the same shape and dtype on every host.
    """
    if jax.process_count() == 1:
        return array
    # JAX truncates 64-bit dtypes to 32 bits; raw bytes pass through unchanged.
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(raw))
    return gathered.view(array.dtype).reshape(-1, *array.shape).sum(0)


def _warm_up_collectives() -> None:
    """Makes the connections of a run while all hosts are at the same place.

    CPUs that connect wait 30 s for each other and give up; later they wait for long.
    """
    mesh = create_mesh()
    ones = np.ones(len(mesh.local_devices), np.float32)
    of_all = jax.make_array_from_process_local_data(batch_sharded(mesh), ones)
    jax.block_until_ready(jax.jit(jnp.sum)(of_all))
    multihost_utils.sync_global_devices("connected")


def _report_failure(error: BaseException) -> int:
    """Says why this process ends, unless that is said; returns its exit code."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    text = str(error)
    # Of its own this host lacks memory; whatever else JAX says is of the network.
    if isinstance(error, jax.errors.JaxRuntimeError) and _NO_MEMORY not in text:
        print(
            "error: another host of the run is gone, or cannot be reached: "
            f"{text.splitlines()[0]}. The same command goes on from where the run "
            "stands",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
    return 1


def _by_hand(value: str) -> tuple[str, int, int]:
    address, count, number = value.split(",")
    if ":" not in address or not 0 <= int(number) < int(count):
        raise ValueError(f"{number} is not a process of {count} at {address}")
    return address, int(count), int(number)
