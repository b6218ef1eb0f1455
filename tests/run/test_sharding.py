"""Tests of the mesh, and of sums over hosts."""

import jax
import numpy as np
import pytest

from encnet_jax.errors import UserError
from encnet_jax.run import distributed
from encnet_jax.run.sharding import create_mesh


class Chip:
    """A device of a pod, as far as a mesh looks at it."""

    def __init__(self, index, process_index):
        self.id = index
        self.process_index = process_index


@pytest.fixture
def pod(monkeypatch):
    """Two rows of four chips; a host has two columns, indices run along rows."""
    chips = [Chip(index, index // 2 % 2) for index in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: chips)
    monkeypatch.setattr(jax, "process_count", lambda: 2)


@pytest.mark.parametrize(
    ("data", "indices"),
    [(-1, [0, 1, 4, 5, 2, 3, 6, 7]), (4, [0, 1, 2, 3]), (2, [0, 2])],
)
def test_chips_of_a_host_are_adjacent(pod, data, indices):
    mesh = create_mesh(data)
    assert [chip.id for chip in mesh.devices] == indices
    assert mesh.axis_names == ("data",)


@pytest.mark.parametrize("data", [3, 10, 0])
def test_mesh_that_hosts_cannot_share_alike_is_refused(pod, data):
    with pytest.raises(UserError, match=f"mesh.data={data}: allowed are -1 .all. and"):
        create_mesh(data)


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0)])
def test_sum_over_hosts_keeps_the_shape(monkeypatch, shape):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gather = lambda raw: np.stack([raw, raw])  # noqa: E731
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)
    array = np.full(shape, 2**40 + 1)
    total = distributed.sum_over_hosts(array)
    assert total.shape == shape
    np.testing.assert_array_equal(total, 2 * array)
