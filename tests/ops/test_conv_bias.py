"""The bias of a convolution on every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encnet_jax.ops import conv_bias
from encnet_jax.ops.conv_bias import add_bias


def count_fused_convolutions(hlo: str) -> int:
    """Returns how many cuDNN calls take in a bias, in the text of a compiled program.

    Args:
        hlo: `jax.jit(f).lower(...).compile().as_text()`, for a GPU.
    """
    return hlo.count('custom_call_target="__cudnn$convBiasActivationForward"')


RNG = np.random.default_rng(0)


def drawn(dtype):
    y = jnp.asarray(RNG.standard_normal((2, 5, 4, 3)), dtype)
    return y, jnp.asarray(RNG.standard_normal(3), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bias_is_added_in_float32_on_cpu(dtype):
    y, bias = drawn(dtype)
    found = jax.jit(lambda y, bias: add_bias(y, bias, dtype))(y, bias)
    assert found.dtype == dtype
    expected = (y.astype(jnp.float32) + bias).astype(dtype)
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(found, expected)


def sums_for(platform, dtype):
    add = jax.jit(lambda y, bias: add_bias(y, bias, dtype))
    text = jax.export.export(add, platforms=(platform,))(*drawn(dtype)).mlir_module()
    return [line for line in text.splitlines() if "stablehlo.add" in line]


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
def test_bias_is_added_in_the_dtype_of_the_result_on_gpu(platform):
    (line,) = sums_for(platform, jnp.bfloat16)
    assert ("xbf16>" in line) == (platform in ("cuda", "rocm"))
    (line,) = sums_for(platform, jnp.float32)
    assert "xf32>" in line


def test_gradients_of_both_impls_are_the_same():
    y, bias = drawn(jnp.bfloat16)
    cotangent = jnp.ones((2, 40, 50, 3), jnp.bfloat16)
    y = jnp.broadcast_to(y[:, :1, :1], cotangent.shape)
    _, back = jax.vjp(conv_bias._add_in_its_dtype, y, bias)
    by_y, by_bias = back(cotangent)
    np.testing.assert_array_equal(by_y, cotangent)
    assert by_bias.dtype == jnp.float32
    np.testing.assert_array_equal(by_bias, 4000)  # bfloat16 has 4000 and not 3999
    _, back = jax.vjp(lambda y, bias: add_bias(y, bias, jnp.bfloat16), y, bias)
    np.testing.assert_array_equal(back(cotangent)[1], 4000)
    # 4000.0 would also come of a rounded sum; 4001 terms would not.
    odd = cotangent.at[0, 0, 0].set(2)
    np.testing.assert_array_equal(
        jax.vjp(conv_bias._add_in_its_dtype, y, bias)[1](odd)[1], 4001
    )


def test_fused_convolutions_are_counted():
    call = 'custom-call(...), custom_call_target="{}", metadata={{}}\n'
    fused = call.format("__cudnn$convBiasActivationForward")
    text = fused + call.format("__cudnn$convForward") + fused
    assert count_fused_convolutions(text) == 2
    assert count_fused_convolutions("") == 0


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
def test_convolution_bias_and_relu_are_one_call_on_gpu():
    def layer(x, kernel, bias):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )
        return jax.nn.relu(add_bias(y, bias, jnp.bfloat16))

    x = jnp.ones((4, 32, 32, 64), jnp.bfloat16)
    kernel = jnp.ones((3, 3, 64, 64), jnp.bfloat16)
    program = jax.jit(layer).lower(x, kernel, jnp.ones(64)).compile()
    assert count_fused_convolutions(program.as_text()) == 1
