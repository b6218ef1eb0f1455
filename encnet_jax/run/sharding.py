"""The device mesh and where arrays live on it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from encnet_jax.errors import UserError


def create_mesh(data: int = -1) -> Mesh:
    """One axis, `data`, over all devices of all hosts, or over `data` of them.

    Those of a host lie next to each other: a pod may number them otherwise, and the
    rows of a batch would be in another order than on one device. Auto axis types: the
    compiler places every intermediate result, so that a mean over the batch is one
    over the global batch.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if not 1 <= count <= len(devices) or count % jax.process_count():
        raise UserError(
            f"mesh.data={data}: allowed are -1 (all) and multiples of "
            f"{jax.process_count()} up to the {len(devices)} devices present"
        )
    share = count // jax.process_count()
    chosen: list[jax.Device] = []
    for process in range(jax.process_count()):
        chosen += [d for d in devices if d.process_index == process][:share]
    return mesh_of(chosen)


def local_mesh(data: int = -1) -> Mesh:
    """This host's part of `create_mesh(data)`: for work that hosts share by images."""
    return mesh_of(create_mesh(data).local_devices)


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """One axis, `data`, over the given devices."""
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))
