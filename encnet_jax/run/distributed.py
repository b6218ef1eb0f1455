"""Runs of several processes: connecting, sums over hosts, and ending on failure."""

import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from encnet_jax.errors import NO_DEVICE_MEMORY, UserError
from encnet_jax.run.sharding import batch_sharded, create_mesh

# Seconds without a heartbeat after which a host counts as dead, and the others stop.
_HEARTBEAT = 30
# In the texts of errors that come from the network, not from this host.
_SIGNS_OF_LOSS = (
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED"),
    *("Gloo", "NCCL", "heartbeat", "oordination service", "onnection"),
)
_HELP = (
    "allowed are auto (Cloud TPU, GKE, Slurm, Open MPI, Kubernetes) and "
    "ADDRESS:PORT,COUNT,ID (address of process 0, number of processes, own index)"
)


def connect_hosts(value: str | None, *, ended_by_sigterm: bool = False) -> None:
    """Connects this process to the others of its run, before JAX is initialized.

    Args:
        value: `auto`, `ADDRESS:PORT,COUNT,ID`, or None for a run of one process.
        ended_by_sigterm: Whether SIGTERM ends the process, as it does one that is not
            connected. Otherwise JAX takes it as the announcement of a preemption, for
            `SigtermHandler`.

    Raises:
        UserError: The value has another form, no cluster was found, or the port of
            process 0 is in use.
    """
    if value is None:
        return
    try:
        if value == "auto":
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)
        else:
            address, count, index = _parse_address(value)
            if index == 0:
                _check_port(value, address)
            jax.distributed.initialize(
                address, count, index, heartbeat_timeout_seconds=_HEARTBEAT
            )
    # JAX also raises it if it detects no cluster.
    except ValueError as error:
        raise UserError(f"--distributed={value}: {_HELP}: {error}") from error
    if ended_by_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _warm_up_collectives()
    if jax.process_index() > 0:  # log once for all
        logging.getLogger("encnet_jax").setLevel(logging.WARNING)


@contextlib.contextmanager
def abort_on_failure() -> Iterator[None]:
    """Ends this process at once if its work fails in a run of several processes.

    A regular exit would block for minutes on a shutdown barrier, and so would the
    processes that wait for this one in a collective. If the cause is the loss of
    another host, one line says so.
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
    hosts = jax.process_count(), *array.shape
    return gathered.view(array.dtype).reshape(hosts).sum(0)


def distinct_over_hosts(text: str) -> list[str]:
    """Returns the distinct values that the hosts have, sorted, the same on each.

    Args:
        text: This host's value, in ASCII and of the same length on every host.
    """
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode("ascii"), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(raw))
    return sorted({row.tobytes().decode("ascii") for row in gathered})


def _warm_up_collectives() -> None:
    """Opens the connections for collectives while all hosts are in step.

    On CPU, connecting times out after 30 s; collectives themselves wait far longer.
    """
    mesh = create_mesh()
    ones = np.ones(len(mesh.local_devices), np.float32)
    of_all = jax.make_array_from_process_local_data(batch_sharded(mesh), ones)
    jax.block_until_ready(jax.jit(jnp.sum)(of_all))
    multihost_utils.sync_global_devices("connected")


def _report_failure(error: BaseException) -> int:
    """Prints why this process ends, unless already printed; returns its exit code."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    text = str(error)
    runtime_error = isinstance(error, jax.errors.JaxRuntimeError)
    signs = any(sign in text for sign in _SIGNS_OF_LOSS)
    if runtime_error and signs and NO_DEVICE_MEMORY not in text:
        print(
            "error: another host of the run is gone, or cannot be reached: "
            f"{text.splitlines()[0]}. Rerun the command to resume",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
    return 1


def _parse_address(value: str) -> tuple[str, int, int]:
    address, count, index = value.split(",")
    port = address.rpartition(":")[2]
    if not (
        port.isascii() and port.isdecimal() and 0 < int(port) < 2**16 and ":" in address
    ):
        raise ValueError(f"{address} has no port from 1 to 65535")
    if not 0 <= int(index) < int(count):
        raise ValueError(f"{index} is not a process of {count} at {address}")
    return address, int(count), int(index)


def _check_port(value: str, address: str) -> None:
    """Raises `UserError` if process 0 cannot listen on its port, where JAX crashes."""
    options: dict[str, Any] = {}
    if socket.has_dualstack_ipv6():
        options = dict(family=socket.AF_INET6, dualstack_ipv6=True)
    port = int(address.rpartition(":")[2])
    try:
        socket.create_server(("", port), **options).close()
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            return  # let JAX try
        raise UserError(
            f"--distributed={value}: process 0 cannot listen on port {port}: "
            f"{os.strerror(error.errno)}; give a free one to all processes"
        ) from error
