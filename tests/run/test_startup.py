"""What is decided before JAX starts; every environment is faked, no GPU is needed."""

import logging
import os
import subprocess
import sys

import pytest

from encnet_jax.run import startup
from tests.commands import ROOT, environment

FLAG = "--xla_gpu_enable_triton_gemm=false"
CUDA = {"xla_cuda13"}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.10.2", False),
        ("0.11.0", True),
        ("0.11.2", True),
        ("0.11.2.dev20260901", True),
        ("0.12.0", False),
        ("1.0", False),
    ],
)
def test_affected_versions_of_jaxlib(version, expected):
    assert startup.aborts(version) is expected


@pytest.mark.parametrize(
    ("environ", "plugins", "files", "expected"),
    [
        ({}, CUDA, ["nvidiactl"], True),
        ({}, CUDA, ["nvidia0"], True),
        ({}, CUDA, ["dxg"], True),  # WSL
        ({}, {"xla_rocm7"}, ["kfd"], True),
        ({"JAX_PLATFORMS": "cuda,cpu"}, CUDA, ["nvidia0"], True),
        ({"CUDA_VISIBLE_DEVICES": "1"}, CUDA, ["nvidia0"], True),
        ({"JAX_PLATFORMS": "cpu"}, CUDA, ["nvidia0"], False),
        ({"JAX_PLATFORMS": "tpu"}, CUDA, ["nvidia0"], False),
        ({"CUDA_VISIBLE_DEVICES": ""}, CUDA, ["nvidia0"], False),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, CUDA, ["nvidia0"], False),
        ({}, set(), ["nvidia0"], False),
        ({}, {"libtpu"}, ["nvidia0"], False),
        ({}, CUDA, [], False),
        ({}, CUDA, ["nvidia-caps", "null"], False),
    ],
)
def test_gpu_is_used(environ, plugins, files, expected, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    assert startup.uses_gpu(environ, plugins, tmp_path) is expected


@pytest.fixture
def machine(monkeypatch):
    """Returns a function that fakes jaxlib and GPU, and sets the flags."""

    def set_flags(*, jaxlib="0.11.2", gpu=True, given=None):
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        if given is not None:
            monkeypatch.setenv("XLA_FLAGS", given)
        monkeypatch.setattr(startup.importlib.metadata, "version", lambda name: jaxlib)
        monkeypatch.setattr(startup, "uses_gpu", lambda *arguments: gpu)
        startup.set_xla_flags()
        return os.environ.get("XLA_FLAGS")

    return set_flags


def test_flag_is_set_and_logged_on_an_affected_gpu(machine, caplog):
    with caplog.at_level(logging.INFO, "encnet_jax"):
        assert machine() == FLAG
    (message,) = caplog.messages
    assert FLAG in message and "0.11.2" in message and "47381" in message
    assert machine(given="--xla_other=1") == f"--xla_other=1 {FLAG}"


def test_other_machines_and_own_settings_are_left_as_they_are(machine, caplog):
    with caplog.at_level(logging.INFO, "encnet_jax"):
        assert machine(gpu=False) is None
        assert machine(jaxlib="0.10.2") is None
        given = "--xla_gpu_enable_triton_gemm=true"
        assert machine(given=given) == given
    assert not caplog.messages


def test_startup_imports_no_jax():
    program = (
        "import sys\n"
        "from encnet_jax.run.startup import set_xla_flags\n"
        "set_xla_flags()\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("tunables", "platform", "glibc", "logs"),
    [
        (None, "cpu", True, True),
        ("glibc.malloc.check=0", "cpu", True, True),
        ("glibc.malloc.hugetlb=1", "cpu", True, False),
        ("glibc.malloc.check=0:glibc.malloc.hugetlb=2", "cpu", True, False),
        (None, "gpu", True, False),
        (None, "cpu", False, False),
    ],
)
def test_missing_large_pages_are_logged(
    tunables, platform, glibc, logs, monkeypatch, caplog
):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if tunables is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    names = {"CS_GNU_LIBC_VERSION": 2} if glibc else {}
    monkeypatch.setattr(startup.os, "confstr_names", names, raising=False)
    with caplog.at_level(logging.INFO, "encnet_jax"):
        startup.log_missing_large_pages(platform)
    assert len(caplog.messages) == logs
    if logs:
        (message,) = caplog.messages
        assert "a tenth to a quarter" in message
        assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 encnet train" in message
