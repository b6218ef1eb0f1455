"""Tests of the order of the examples."""

import itertools

import numpy as np
import pytest

from encnet_jax.data.sampler import batch_indices, index_batches, process_rows


def indices_and_epochs(seed, size, batch_size, steps):
    batches = [batch_indices(seed, size, batch_size, step) for step in range(steps)]
    return (np.concatenate(part) for part in zip(*batches))


@pytest.mark.parametrize("size, batch_size", [(7, 3), (7, 7), (5, 16), (12, 4), (1, 2)])
def test_every_example_comes_exactly_once_an_epoch(size, batch_size):
    steps = -(-4 * size // batch_size)
    indices, epochs = indices_and_epochs(3, size, batch_size, steps)
    assert len(indices) == steps * batch_size
    np.testing.assert_array_equal(epochs, np.arange(len(epochs)) // size)
    for epoch in range(4):
        assert sorted(indices[epochs == epoch]) == list(range(size))


def test_order_differs_by_seed_and_epoch_and_from_that_of_the_files():
    indices, _ = indices_and_epochs(0, 50, 50, 3)
    others, _ = indices_and_epochs(1, 50, 50, 3)
    orders = [*indices.reshape(3, 50), *others.reshape(3, 50), np.arange(50)]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).mean() < 0.2


def test_batches_are_a_function_of_their_step():
    indices, epochs = indices_and_epochs(5, 7, 3, 30)
    for step in (29, 4, 17, 0, 4):
        batch = batch_indices(5, 7, 3, step)
        np.testing.assert_array_equal(batch[0], indices[3 * step : 3 * step + 3])
        np.testing.assert_array_equal(batch[1], epochs[3 * step : 3 * step + 3])


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_hosts_divide_the_rows_of_a_batch(count):
    rows = np.arange(6)
    shares = [rows[process_rows(6, index, count)] for index in range(count)]
    assert {len(share) for share in shares} == {6 // count}
    np.testing.assert_array_equal(np.concatenate(shares), rows)


def test_batch_that_does_not_divide_among_the_hosts_raises():
    with pytest.raises(ValueError, match="batch_size=6 does not divide among 4 hosts"):
        process_rows(6, 0, 4)


def taken(count, **settings):
    batches = index_batches(7, batch_size=4, seed=2, **settings)
    return list(itertools.islice(batches, count))


def test_index_batches_resume_at_a_step():
    whole, resumed = taken(9), taken(4, start_step=5)
    for one, other in zip(whole[5:], resumed):
        assert one.keys() == {"index", "epoch"}
        for key, value in one.items():
            assert value.dtype == np.int32
            np.testing.assert_array_equal(value, other[key])


def test_index_batches_of_two_hosts_make_the_global_batch():
    shares = [taken(5, process_index=i, process_count=2) for i in range(2)]
    for whole, *parts in zip(taken(5), *shares):
        for key, value in whole.items():
            joined = np.concatenate([part[key] for part in parts])
            np.testing.assert_array_equal(joined, value)
