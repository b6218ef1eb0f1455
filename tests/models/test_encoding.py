"""Tests of the encoding layer and the Context Encoding Module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.models.encoding import ContextEncoding, Encoding
from encnet_jax.models.layers import set_layer_options
from tests.random_module import random_module

RNG = np.random.default_rng(0)


def naive_reference(x, codewords, scale):
    """Returns the encoding by its formula, in float64, residual by residual."""
    residuals = x[:, :, None, :] - codewords
    logits = scale * np.square(residuals).sum(-1)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights[..., None] * residuals).sum(1)


def applied(x, codewords, scale):
    """Returns the encoding of float32 features by the layer."""
    layer = nnx.eval_shape(lambda: Encoding(*codewords.shape[::-1], rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(layer)
    nnx.replace_by_pure_dict(state, {"codewords": codewords, "scale": scale})
    return nnx.merge(graphdef, state)(x)


def features(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def test_two_pixels_and_two_codewords_have_the_values_worked_out_by_hand():
    x = jnp.array([[[1.0, 0.0], [0.0, 2.0]]])
    codewords, scale = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([-1.0, -0.5])
    # Squared distances 1, 1 and 4, 2; logits -1, -1/2 and -4, -1.
    first, second = 1 / (1 + np.exp(0.5)), 1 / (1 + np.exp(3))
    expected = [
        [first, 2 * second],
        [-(1 - second), -(1 - first) + (1 - second)],
    ]
    np.testing.assert_allclose(applied(x, codewords, scale)[0], expected, atol=1e-6)


def test_encoding_equals_the_literal_form():
    x, codewords, scale = features(2, 4, 6, 8), features(5, 8), -RNG.random(5)
    pixels = np.asarray(x, np.float64).reshape(2, 24, 8)
    expected = naive_reference(pixels, np.asarray(codewords), scale)
    actual = applied(x, codewords, jnp.asarray(scale, jnp.float32))
    assert actual.shape == (2, 5, 8) and actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=5e-5)


def test_order_of_the_pixels_does_not_matter():
    x, codewords, scale = features(1, 24, 4), features(3, 4), -jnp.ones(3)
    shuffled = x[:, RNG.permutation(24)].reshape(1, 6, 4, 4)
    np.testing.assert_allclose(
        applied(shuffled, codewords, scale), applied(x, codewords, scale), atol=1e-5
    )


def test_gradients_equal_differences_of_the_literal_form():
    arguments = features(1, 5, 3), features(2, 3), -RNG.random(2).astype(np.float32)
    cotangent = RNG.standard_normal((1, 2, 3))

    def objective(*arguments):
        return (applied(*arguments) * cotangent).sum()

    gradients = jax.jit(jax.grad(objective, argnums=(0, 1, 2)))(*arguments)
    exact = [np.asarray(a, np.float64) for a in arguments]
    for number, gradient in enumerate(gradients):
        for place in np.ndindex(gradient.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [a.copy() for a in exact]
                moved[number][place] += step
                values.append((naive_reference(*moved) * cotangent).sum())
            expected = (values[0] - values[1]) / 2e-5
            np.testing.assert_allclose(gradient[place], expected, rtol=1e-3, atol=1e-4)


def test_codewords_start_within_their_bounds():
    layer = Encoding(20, 5, rngs=nnx.Rngs(0))
    codewords, scale = np.asarray(layer.codewords), np.asarray(layer.scale)
    assert codewords.shape == (5, 20) and scale.shape == (5,)
    assert 0.09 < np.abs(codewords).max() <= 0.1  # 1 / sqrt(5 * 20)
    assert codewords.min() < 0 < codewords.max()
    assert -1 <= scale.min() and scale.max() <= 0


@pytest.mark.parametrize(
    "scale_init, lowest, share", [("original", -1.0, 0.8), ("scaled", -1 / 512, 0.1)]
)
def test_start_of_the_scales_decides_how_many_codewords_get_pixels(
    scale_init, lowest, share
):
    layer = Encoding(512, 32, scale_init=scale_init, rngs=nnx.Rngs(0))
    scale = np.asarray(layer.scale)
    assert lowest <= scale.min() < 0.9 * lowest and 0.1 * lowest < scale.max() <= 0
    # Features as behind batch norm and ReLU.
    x = np.maximum(RNG.standard_normal((300, 1, 512)), 0)
    logits = scale * np.square(x - np.asarray(layer.codewords)).sum(-1)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mean = (weights / weights.sum(-1, keepdims=True)).mean(0)
    assert (mean.max() > share) == (scale_init == "original")


def test_less_than_one_codeword_raises():
    with pytest.raises(ValueError, match="num_codes=0"):
        Encoding(4, 0, rngs=nnx.Rngs(0))


def test_context_without_codewords_is_average_pooling():
    module = random_module(ContextEncoding, 4, num_codes=0, num_classes=3)
    module.eval()
    x = features(2, 3, 5, 4)
    kernel = np.asarray(module.reduce.conv.kernel[...])[0, 0]
    expected = np.maximum(x @ kernel / np.sqrt(1 + 1e-5), 0).mean((1, 2))
    np.testing.assert_allclose(module.encode(x)[0], expected, atol=1e-5)
    state = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    assert sorted(state) == ["gate", "reduce", "se_head"]


@pytest.mark.parametrize("code_reduction", ["mean", "sum"])
def test_context_reduces_the_rectified_codewords(code_reduction):
    module = random_module(
        ContextEncoding,
        4,
        num_codes=3,
        code_reduction=code_reduction,
        num_classes=None,
    )
    module.eval()
    module.norm.bias[...] = jnp.array([0.0, 0.5, -0.5])
    x = features(2, 3, 5, 4)
    kernel = np.asarray(module.reduce.conv.kernel[...])[0, 0]
    pixels = np.maximum(x @ kernel / np.sqrt(1 + 1e-5), 0).reshape(2, 15, 4)
    codes = naive_reference(
        np.asarray(pixels, np.float64),
        np.asarray(module.encoding.codewords),
        np.asarray(module.encoding.scale),
    )
    normalized = codes / np.sqrt(1 + 1e-5) + [[[0.0], [0.5], [-0.5]]]
    expected = getattr(np.maximum(normalized, 0), code_reduction)(1)
    np.testing.assert_allclose(module.encode(x)[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    "gate, factors", [("residual", [1.5, 1.75]), ("plain", [0.5, 0.75])]
)
def test_attention_multiplies_by_the_gate(gate, factors):
    module = random_module(ContextEncoding, 2, num_codes=0, gate=gate, num_classes=3)
    module.gate.kernel[...] = jnp.zeros((2, 2))
    module.gate.bias[...] = jnp.array([0.0, np.log(3.0)])  # Gates of 1/2 and 3/4.
    module.se_head.kernel[...] = jnp.zeros((2, 3))
    module.se_head.bias[...] = jnp.array([1.0, -2.0, 3.0])
    x = jax.nn.relu(features(2, 3, 5, 2))
    attended, presence = module(x)
    np.testing.assert_allclose(attended, x * np.array(factors), rtol=1e-5)
    np.testing.assert_allclose(presence, [[1, -2, 3]] * 2)


@pytest.mark.parametrize("num_classes", [None, 7])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_context_returns_features_like_its_own_and_presence_if_wanted(
    num_classes, dtype
):
    module = nnx.eval_shape(
        lambda: ContextEncoding(
            4, num_codes=3, num_classes=num_classes, rngs=nnx.Rngs(0)
        )
    )
    set_layer_options(module, dtype=dtype)
    graphdef, state = nnx.split(module)
    attended, presence = jax.eval_shape(
        lambda state, x: nnx.merge(graphdef, state, copy=True)(x),
        state,
        jax.ShapeDtypeStruct((2, 5, 6, 4), dtype),
    )
    assert attended.shape == (2, 5, 6, 4) and attended.dtype == dtype
    if num_classes is None:
        assert presence is None
    else:
        assert presence.shape == (2, 7) and presence.dtype == jnp.float32


def test_activations_are_those_of_the_call():
    module = ContextEncoding(8, num_codes=3, num_classes=5, rngs=nnx.Rngs(0))
    module.eval()
    x = jax.random.normal(jax.random.key(1), (2, 4, 5, 8))
    found, se_logits = module.with_activations(x)
    features, expected = module(x)
    np.testing.assert_array_equal(found.gated, features)
    np.testing.assert_array_equal(se_logits, expected)
    np.testing.assert_array_equal(found.features, x)
    np.testing.assert_allclose(
        found.gate, jax.nn.sigmoid(module.gate(module.encode(x)[0]))
    )
    # Of the pixel in row 2, column 3, not that of the transposed map.
    reduced = module.reduce(x)
    flat = module.encoding.assignment(reduced)
    np.testing.assert_allclose(found.assignment[:, 2, 3], flat[:, 2 * 5 + 3], rtol=1e-6)
    np.testing.assert_allclose(found.assignment.sum(-1), 1, rtol=1e-6)


def test_given_gate_takes_the_place_of_the_computed_one():
    settings = dict(num_codes=3, gate="plain", num_classes=5, rngs=nnx.Rngs(0))
    module = ContextEncoding(8, **settings)
    module.eval()
    x = jax.random.normal(jax.random.key(1), (2, 4, 5, 8))
    gate = jnp.linspace(0, 1, 16).reshape(2, 8)
    features, se_logits = module(x, gate)
    np.testing.assert_allclose(features, x * gate[:, None, None], rtol=1e-6)
    np.testing.assert_array_equal(se_logits, module(x)[1])
    np.testing.assert_array_equal(module.with_activations(x, gate)[0].gate, gate)


def test_activations_without_codewords_has_no_assignment():
    module = ContextEncoding(8, num_codes=0, num_classes=None, rngs=nnx.Rngs(0))
    found, se_logits = module.with_activations(jnp.ones((1, 2, 2, 8)))
    assert found.assignment is None and se_logits is None
    assert found.gate.shape == (1, 8)
