"""The device mesh, and the placement of arrays on it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from encnet_jax.errors import UserError


def create_mesh(data: int = -1) -> Mesh:
    """Returns a mesh with one axis, `data`, over the devices of all hosts.

    Devices of a host are adjacent, so that the rows of a batch keep the order they have
    on one device; pods may number devices otherwise. With Auto axis types the compiler
    places intermediate results, and a mean over the batch is over the global batch.

    Args:
        data: Number of devices; -1: all.

    Raises:
        UserError: There are not so many devices, or hosts cannot share them equally.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if not 1 <= count <= len(devices) or count % jax.process_count():
        raise UserError(
            f"mesh.data={data}: allowed are -1 (all) and multiples of "
            f"{jax.process_count()} up to {len(devices)}, the number of devices"
        )
    share = count // jax.process_count()
    chosen: list[jax.Device] = []
    for process in range(jax.process_count()):
        chosen += [d for d in devices if d.process_index == process][:share]
    return mesh_of(chosen)


def local_mesh(data: int = -1) -> Mesh:
    """Returns this host's part of `create_mesh(data)`, to work on images of its own."""
    return mesh_of(create_mesh(data).local_devices)


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """Returns a mesh with one axis, `data`, over the given devices."""
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))
