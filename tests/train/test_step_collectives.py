"""What the devices send each other in a training step: sums, nothing gathered."""

import re

import jax
import pytest

from benchmarks import compiled
from encnet_jax.run.sharding import create_mesh

SIZES = dict(backbone="tiny", width=4, head_channels=8, num_codes=4)


def collectives(text):
    """Returns the names of the collectives in a compiled program."""
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return re.findall(rf" ({names})(?:-start)?\(", text)


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_devices_only_add_up(grad_accum_steps):
    program = compiled.training(
        size=(32, 48),
        batch=16,
        dtype="bfloat16",
        grad_accum_steps=grad_accum_steps,
        **SIZES,
    )
    mesh = create_mesh()
    assert mesh.size == jax.device_count() == 8
    found = collectives(program.spread(mesh).compile().as_text())
    assert set(found) == {"all-reduce"}
