"""Tests of the shared layers against values worked out by hand, NumPy, XLA and PIL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.models.layers import BatchNorm, ConvBN, max_pool, set_layer_options
from encnet_jax.run.sharding import batch_sharded, create_mesh
from tests.random_module import random_module

RNG = np.random.default_rng(0)


def normals(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def test_bfloat16_layer_keeps_float32_weights_and_statistics():
    layer = random_module(ConvBN, 3, 4, 3)
    set_layer_options(layer, dtype=jnp.bfloat16)
    assert layer(jnp.ones((1, 4, 4, 3))).dtype == jnp.bfloat16
    variables = nnx.state(layer, (nnx.Param, nnx.BatchStat))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("f4")}


def test_conv_norm_without_relu_keeps_negative_values():
    x = normals(2, 4, 4, 3)
    plain, rectified = (
        random_module(ConvBN, 3, 4, relu=relu)(x) for relu in (False, True)
    )
    assert plain.min() < -0.5
    np.testing.assert_array_equal(np.maximum(plain, 0), rectified)


@pytest.mark.parametrize(
    "unbiased, running_var",
    # Variances 1 and 4 of two values each; unbiased 2 and 8.
    [(False, [1.0, 1.3]), (True, [1.1, 1.7])],
)
def test_batch_norm_has_the_values_worked_out_by_hand(unbiased, running_var):
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    set_layer_options(norm, unbiased_running_var=unbiased)
    norm.scale[...], norm.bias[...] = jnp.array([1.0, 3.0]), jnp.array([0.0, 5.0])
    x = jnp.array([[1.0, 2.0], [3.0, 6.0]]).reshape(2, 1, 1, 2)
    normalized = norm(x).reshape(2, 2)
    np.testing.assert_allclose(normalized, [[-1, 2], [1, 8]], atol=2e-5)
    np.testing.assert_allclose(norm.mean[...], [0.2, 0.4], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], running_var, rtol=1e-6)

    norm.eval()
    mean, var = np.array([0.2, 0.4]), np.array(running_var)
    values = np.array([[1, 2], [3, 6]])
    expected = (values - mean) / np.sqrt(var + 1e-5) * [1, 3] + [0, 5]
    np.testing.assert_allclose(norm(x).reshape(2, 2), expected, rtol=1e-5)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-6)


def test_epsilon_is_that_of_torch():
    norm = BatchNorm(1, rngs=nnx.Rngs(0))
    x = jnp.array([-1e-3, 1e-3]).reshape(2, 1)  # variance 1e-6, epsilon 1e-5
    np.testing.assert_allclose(norm(x)[1, 0], 1e-3 / np.sqrt(1.1e-5), rtol=1e-4)


def test_no_gradient_flows_into_the_running_statistics():
    def statistics(x):
        norm = BatchNorm(2, rngs=nnx.Rngs(0))
        norm(x)
        return norm.mean[...].sum() + norm.var[...].sum()

    assert not jax.grad(statistics)(jnp.arange(6.0).reshape(3, 2)).any()


@pytest.mark.parametrize("axis", [-1, 1])
def test_variance_survives_a_mean_far_above_the_deviation(axis):
    # The mean of the squares is 1e6 and rounded to 0.06; the variance is 0.01.
    x = (1000 + 0.1 * RNG.standard_normal((4, 3, 500, 3))).astype(np.float32)
    norm = BatchNorm(3, axis=axis, rngs=nnx.Rngs(0))
    if axis == -1:  # once the running mean is near; the other axis at once
        norm.mean[...] = jnp.full(3, 999.7)
    reduced = tuple({0, 1, 2, 3} - {axis % 4})
    exact = x.astype(np.float64)
    mean = exact.mean(reduced, keepdims=True)
    var = exact.var(reduced, keepdims=True)
    normalized = norm(jnp.asarray(x))
    np.testing.assert_allclose(
        normalized, (exact - mean) / np.sqrt(var + 1e-5), atol=5e-3
    )
    np.testing.assert_allclose(
        (norm.var[...] - 0.9) / 0.1, var.ravel(), rtol=0.01, atol=2e-6
    )


@pytest.mark.parametrize("axis", [-1, 1])
def test_statistics_on_eight_devices_are_those_of_the_global_batch(axis):
    assert jax.device_count() == 8
    # Every device has another mean, so statistics of its own would differ much.
    x = np.asarray(normals(16, 3, 2, 3)) + np.arange(16, dtype=np.float32).reshape(
        16, 1, 1, 1
    )
    graphdef, state = nnx.split(BatchNorm(3, axis=axis, rngs=nnx.Rngs(0)))

    @jax.jit
    def apply(state, x):
        norm = nnx.merge(graphdef, state, copy=True)
        return norm(x), norm.mean[...], norm.var[...]

    sharded = jax.device_put(x, batch_sharded(create_mesh()))
    assert len(sharded.sharding.device_set) == 8
    y, running_mean, running_var = apply(state, sharded)
    reduced = tuple({0, 1, 2, 3} - {axis % 4})
    mean, var = x.mean(reduced, keepdims=True), x.var(reduced, keepdims=True)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(running_mean, 0.1 * mean.ravel(), rtol=1e-5)
    np.testing.assert_allclose(running_var, 0.9 + 0.1 * var.ravel(), rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (6, 1), (1, 1)])
def test_max_pool_equals_reduce_window(size):
    x = normals(2, *size, 3) - 3  # mostly negative: padding must not win
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    expected = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), expected)


def test_gradient_of_max_pool_goes_to_the_largest():
    x = jnp.asarray(RNG.permutation(16).reshape(1, 4, 4, 1), jnp.float32)
    image = np.asarray(x[0, :, :, 0])
    expected = np.zeros((4, 4))
    for row in (0, 2):
        for column in (0, 2):
            rows = slice(max(row - 1, 0), row + 2)
            columns = slice(max(column - 1, 0), column + 2)
            expected[image == image[rows, columns].max()] += 1
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)
