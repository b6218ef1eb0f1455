"""Before JAX starts: eight CPU devices in this process, shape checks, a shared cache.

Commands that the tests start as processes of their own see one device.
"""

import gc
import os

import jax
import jaxtyping
import pytest

# Must precede every import of these packages: checks the shapes in their signatures.
CHECKED = ["encnet_jax.ops", "encnet_jax.models", "encnet_jax.losses"]
jaxtyping.install_import_hook([*CHECKED, "encnet_jax.metrics"], "beartype.beartype")

from tests.commands import make_camvid  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
# Tests compile much and compute little: LLVM optimizes less in this process. What XLA
# makes of a program before that is the same.
_FLAG = "--xla_backend_optimization_level=1"
_flags = os.environ.get("XLA_FLAGS", "")
if _FLAG not in _flags:  # as workers inherit it; the flags are part of the cache's keys
    os.environ["XLA_FLAGS"] = f"{_flags} {_FLAG}".strip()
# Compiled programs are shared between the workers of a run, and between runs.
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    cache = os.path.expanduser("~/.cache/encnet_jax/tests")
    jax.config.update("jax_compilation_cache_dir", cache)
# Also the many small ones of tests that compute step by step.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# Traced programs stay in JAX's caches: at the usual thresholds a tenth of the time goes
# into looking for garbage among them.
gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """A small synthetic data set in the layout of CamVid."""
    return make_camvid(tmp_path_factory.mktemp("camvid"))
