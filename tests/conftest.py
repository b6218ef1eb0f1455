"""Eight devices for every test, before JAX starts; commands run with one."""

import os

import jax
import jaxtyping
import pytest

# Before anything imports them: the shapes in the signatures of these are checked.
CHECKED = ["encnet_jax.ops", "encnet_jax.models", "encnet_jax.losses"]
jaxtyping.install_import_hook([*CHECKED, "encnet_jax.metrics"], "beartype.beartype")

from tests.commands import make_camvid  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
# What takes long to compile is kept: workers of one run share it, and so do runs.
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    cache = os.path.expanduser("~/.cache/encnet_jax/tests")
    jax.config.update("jax_compilation_cache_dir", cache)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """A fake CamVid."""
    return make_camvid(tmp_path_factory.mktemp("camvid"))
