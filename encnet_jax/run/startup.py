"""What must be known of the machine before JAX starts; imports no JAX itself."""

import importlib.metadata
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

# XLA aborts while it compiles the training step for a GPU ("Check failed" in
# triton_tiling_propagation.cc): a matrix product after a reshape, fused by Triton.
# Without Triton's matrix products it compiles. Seen with jaxlib 0.11.2.
_ISSUE = "openxla/xla#47381"
_WORKAROUND = "--xla_gpu_enable_triton_gemm=false"
_FIRST_AFFECTED, _FIRST_FIXED = (0, 11), (0, 12)
_GPU_PLATFORMS = {"cuda", "gpu", "rocm"}
_GPU_PLUGINS = ("xla_cuda", "xla_rocm")
# NVIDIA's driver, also under WSL, and AMD's.
_GPU_DEVICES = ("nvidiactl", "nvidia[0-9]*", "dxg", "kfd")
_LARGE_PAGES = "glibc.malloc.hugetlb"
_log = logging.getLogger(__name__)


def set_xla_flags() -> None:
    """Adds to `XLA_FLAGS` what XLA needs on a GPU, before JAX is initialized.

    A setting of the same flag in the environment is kept.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _WORKAROUND.partition("=")[0] in flags:
        return
    jaxlib = importlib.metadata.version("jaxlib")
    if aborts(jaxlib) and uses_gpu(os.environ, installed_plugins(), Path("/dev")):
        os.environ["XLA_FLAGS"] = f"{flags} {_WORKAROUND}".strip()
        _log.info("XLA_FLAGS: added %s: jaxlib %s, %s", _WORKAROUND, jaxlib, _ISSUE)


def aborts(jaxlib: str) -> bool:
    """Returns whether this version of jaxlib has the bug of Triton's products."""
    version = tuple(map(int, re.findall(r"\d+", jaxlib)[:2]))
    return _FIRST_AFFECTED <= version < _FIRST_FIXED


def uses_gpu(environ: Mapping[str, str], plugins: set[str], devices: Path) -> bool:
    """Returns whether JAX will choose a GPU.

    Args:
        environ: The environment of the process.
        plugins: Names of the installed JAX plugins.
        devices: The folder of device files, `/dev`.
    """
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and _GPU_PLATFORMS.isdisjoint(platforms.split(",")):
        return False
    if environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    if not any(name.startswith(_GPU_PLUGINS) for name in plugins):
        return False
    return any(any(devices.glob(pattern)) for pattern in _GPU_DEVICES)


def installed_plugins() -> set[str]:
    """Returns the names of the installed JAX plugins, such as `xla_cuda13`."""
    return importlib.metadata.entry_points(group="jax_plugins").names


def log_missing_large_pages(platform: str) -> None:
    """Logs that training on a CPU is slower than it need be, if glibc can help that.

    Each call of a compiled program takes its temporary memory, gigabytes in training,
    from the kernel and returns it. glibc reads the variable only when a process starts.

    Args:
        platform: JAX's default backend.
    """
    glibc = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
    if platform != "cpu" or not glibc:
        return
    if _LARGE_PAGES not in os.environ.get("GLIBC_TUNABLES", ""):
        _log.info(
            "GLIBC_TUNABLES=%s=1 is not set: memory in small pages costs a tenth to a "
            "quarter of each training step on a CPU; put it before the command: "
            "GLIBC_TUNABLES=%s=1 python train.py ...",
            _LARGE_PAGES,
            _LARGE_PAGES,
        )
