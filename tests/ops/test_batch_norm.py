"""Batch normalization and its gradients against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encnet_jax.ops.batch_norm import batch_norm

RNG = np.random.default_rng(0)
SHAPE = (3, 7, 5, 6)
EPSILON = 1e-5


def problem(dtype=jnp.float32, offset=3.0):
    x = jnp.asarray(RNG.standard_normal(SHAPE) * 2 + offset, dtype)
    scale, bias, shift = (jnp.asarray(RNG.standard_normal(6), "float32") for _ in "abc")
    return (x, scale, bias, shift + offset), RNG.standard_normal(SHAPE)


def naive_reference(arguments, cotangent):
    """Returns the result, the statistics and the gradients, by float64."""
    with jax.enable_x64(True):
        x, scale, bias, _ = (jnp.asarray(np.float64(a)) for a in arguments)

        def normalize(x, scale, bias):
            pixels = (0, 1, 2)
            var = x.var(pixels)
            return (x - x.mean(pixels)) / jnp.sqrt(var + EPSILON) * scale + bias

        y, pull = jax.vjp(normalize, x, scale, bias)
        gradients = pull(jnp.asarray(cotangent))
        statistics = (x.mean((0, 1, 2)), x.var((0, 1, 2)))
        return [np.asarray(a) for a in (y, *statistics, *gradients)]


def ours(arguments, cotangent, impl, dtype=jnp.float32):
    def normalize(*arguments):
        options = dict(epsilon=EPSILON, dtype=dtype, impl=impl)
        y, mean, var = batch_norm(*arguments, **options)
        return y, (mean, var)

    y, pull, statistics = jax.vjp(normalize, *arguments, has_aux=True)
    *gradients, of_shift = pull(jnp.asarray(cotangent, dtype))
    return [y, *statistics, *gradients], of_shift


@pytest.mark.parametrize("impl", ["auto", "autodiff", "fused_grad", "sharded_grad"])
def test_result_and_gradients_are_those_of_float64(impl):
    arguments, cotangent = problem()
    found, of_shift = ours(arguments, cotangent, impl)
    for actual, expected in zip(found, naive_reference(arguments, cotangent)):
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, atol=2e-6 * abs(expected).max())
    # The result does not depend on the shift, but for rounding.
    assert abs(of_shift).max() < 1e-4


@pytest.mark.parametrize("impl", ["auto", "autodiff", "fused_grad", "sharded_grad"])
def test_features_of_16_bits_are_summed_in_float32(impl):
    arguments, cotangent = problem(jnp.bfloat16)
    cotangent = np.asarray(jnp.asarray(cotangent, jnp.bfloat16), np.float64)
    found, _ = ours(arguments, cotangent, impl, jnp.bfloat16)
    y, mean, var, x_grad, scale_grad, bias_grad = naive_reference(arguments, cotangent)
    assert found[0].dtype == found[3].dtype == jnp.bfloat16
    for actual, expected in zip(found, (y, mean, var, x_grad, scale_grad, bias_grad)):
        limit = 1e-2 if actual.dtype == jnp.bfloat16 else 1e-5
        error = np.float64(actual) - expected
        np.testing.assert_array_less(abs(error), limit * abs(expected).max())


@pytest.mark.parametrize(
    "dtype, devices, expected",
    [
        (jnp.bfloat16, 1, "fused_grad"),
        (jnp.bfloat16, 8, "sharded_grad"),
        (jnp.float32, 1, "autodiff"),
    ],
)
def test_auto_depends_on_dtype_and_devices(monkeypatch, dtype, devices, expected):
    arguments, cotangent = problem(dtype)

    def program(impl):
        run = jax.jit(lambda *a: ours(a, cotangent, impl, dtype)[0])
        return run.lower(*arguments).as_text()

    each = [program(impl) for impl in ("autodiff", "fused_grad", "sharded_grad")]
    assert len(set(each)) == 3
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert program("auto") == program(expected)


def test_unknown_impl_raises():
    arguments, cotangent = problem()
    with pytest.raises(ValueError, match="impl='one': allowed are 'auto', 'autodiff'"):
        ours(arguments, cotangent, "one")
