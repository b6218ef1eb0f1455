"""Accelerators that programs are compiled for on a machine that has none.

The compilers of GPUs and TPUs come with the packages `jax[cuda13]` and `jax[tpu]`. To
plan a program, its memory and what devices send each other, they need only the
description of a device. Without one kernels are neither timed nor tuned.
"""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from encnet_jax.errors import UserError
from encnet_jax.run import startup
from encnet_jax.run.sharding import mesh_of

# Of an H100 SXM, as its driver reports them; what the compiler plans with.
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84978434048
  l2_cache_size: 52428800
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


class Target(NamedTuple):
    """An accelerator.

    Attributes:
        platform: As `jax.default_backend` names it.
        package: What brings its compiler.
        memory: Of one device, bytes, as its data sheet has it.
        topologies: Number of devices -> how they are arranged.
    """

    platform: str
    package: str
    memory: float
    topologies: dict[int, str]


_SLICES = {1: "1x1x1", 4: "2x2", 8: "2x4", 16: "4x4"}
TARGETS = {
    "h100": Target("gpu", "jax[cuda13]", 80e9, {n: f"1x1x{n}" for n in (1, 2, 4, 8)}),
    "v5e": Target("tpu", "jax[tpu]", 16e9, _SLICES),
    "v6e": Target("tpu", "jax[tpu]", 32e9, _SLICES),
}


@contextlib.contextmanager
def compiling_for(name: str, devices: int = 1) -> Iterator[Mesh]:
    """Gives a mesh of devices that need not be there, to lower and compile for.

    Inside, what depends on the platform when a model is built or traced is chosen for
    these devices. Arrays cannot be made on them.

    Args:
        name: A key of `TARGETS`.
        devices: How many.

    Raises:
        UserError: The compiler is not installed, or there is no such number of devices.
    """
    target = TARGETS[name]
    if devices not in target.topologies:
        allowed = ", ".join(map(str, target.topologies))
        raise UserError(f"--devices={devices}: allowed with --target={name}: {allowed}")
    try:
        found = _topology(name, target.topologies[devices]).devices
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"--target={name}: its compiler cannot be used ({error}); it comes with "
            f"pip install '{target.package}=={jax.__version__}'"
        ) from error
    caches = jax.config.jax_enable_compilation_cache
    # A program that was not tuned must not be found where there is such a device.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with (
            mock.patch.object(jax, "default_backend", lambda: target.platform),
            mock.patch.object(jax, "device_count", lambda: devices),
        ):
            yield mesh_of(found)
    finally:
        jax.config.update("jax_enable_compilation_cache", caches)


def compiler_options(name: str) -> dict[str, Any]:
    """Returns the flags with which a program is compiled for a target.

    Args:
        name: A key of `TARGETS`.
    """
    triton_aborts = startup.aborts(importlib.metadata.version("jaxlib"))
    if TARGETS[name].platform == "gpu" and triton_aborts:
        return {"xla_gpu_enable_triton_gemm": False}
    return {}


def _topology(name: str, arrangement: str) -> topologies.TopologyDescription:
    if TARGETS[name].platform == "gpu":
        return topologies.get_topology_desc(
            "", "cuda", target_config=_H100, topology=arrangement
        )
    # Otherwise its library asks the network which TPU this machine is, and lets one
    # process at a time use it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    hosts = {"chips_per_host_bounds": (1, 1, 1)} if arrangement == "1x1x1" else {}
    return topologies.get_topology_desc(f"{name}:{arrangement}", "tpu", **hosts)
