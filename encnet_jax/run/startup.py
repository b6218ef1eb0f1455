"""Environment variables that must be set before JAX starts; does not import JAX."""

import importlib.metadata
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

# XLA aborts while it compiles the training step for a GPU ("Check failed" in
# triton_tiling_propagation.cc): Triton fuses a matrix product with the reshape before
# it. Without Triton's GEMMs it compiles. Seen with jaxlib 0.11.2; the issue is open.
_ISSUE = "openxla/xla#47381"
_WORKAROUND = "--xla_gpu_enable_triton_gemm=false"
_FIRST_AFFECTED, _FIRST_UNAFFECTED = (0, 11), (0, 12)
_GPU_PLATFORMS = {"cuda", "gpu", "rocm"}
_GPU_PLUGINS = ("xla_cuda", "xla_rocm")
# NVIDIA's driver, also under WSL, and AMD's.
_GPU_DEVICES = ("nvidiactl", "nvidia[0-9]*", "dxg", "kfd")
_LARGE_PAGES = "glibc.malloc.hugetlb"
_log = logging.getLogger(__name__)


def set_xla_flags() -> None:
    """Adds the workaround to `XLA_FLAGS` where a GPU will be used and XLA aborts.

    Must run before `import jax`. The user's own setting of the flag is kept.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _WORKAROUND.partition("=")[0] in flags:
        return
    jaxlib = importlib.metadata.version("jaxlib")
    if aborts(jaxlib) and uses_gpu(os.environ, installed_plugins(), Path("/dev")):
        os.environ["XLA_FLAGS"] = f"{flags} {_WORKAROUND}".strip()
        _log.info("XLA_FLAGS: added %s: jaxlib %s, %s", _WORKAROUND, jaxlib, _ISSUE)


def aborts(jaxlib: str) -> bool:
    """Returns whether this version of jaxlib is affected by the issue."""
    version = tuple(map(int, re.findall(r"\d+", jaxlib)[:2]))
    return _FIRST_AFFECTED <= version < _FIRST_UNAFFECTED


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
    plugin = any(name.startswith(_GPU_PLUGINS) for name in plugins)
    return plugin and any(any(devices.glob(name)) for name in _GPU_DEVICES)


def installed_plugins() -> set[str]:
    """Returns the names of the installed JAX plugins, such as `xla_cuda13`."""
    return importlib.metadata.entry_points(group="jax_plugins").names


def log_missing_large_pages(platform: str) -> None:
    """Logs what training on a CPU loses without large pages, where glibc offers them.

    Each call of a compiled program takes its temporary memory, gigabytes in training,
    from the kernel and returns it. glibc reads the variable only when a process starts.

    Args:
        platform: JAX's default backend.
    """
    glibc = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if platform == "cpu" and glibc and _LARGE_PAGES not in tunables:
        _log.info(
            "memory in small pages takes a tenth to a quarter of a training step on "
            "CPU; for large ones: GLIBC_TUNABLES=%s=1 encnet train ...",
            _LARGE_PAGES,
        )
