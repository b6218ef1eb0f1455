"""Tests of the CIFAR classifiers against independent counts and arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.models.cifar import (
    AttentionBlock,
    DropEncoding,
    EncodingAttention,
    PreActivationBlock,
    SqueezeExcitation,
)
from encnet_jax.models.encoding import Encoding
from encnet_jax.run.state import split_model
from tests.random_module import random_module

RNG = np.random.default_rng(0)
TINY = dict(num_classes=3, width=8, num_codes=2)


def normals(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def size_of(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def expected_size(width, post_activation, attention):
    """Returns the number of parameters, layer by layer."""
    total = 9 * 3 * width + width + 2 * width  # 3x3 convolution with bias, norm
    features_in = width
    for features in (width, width, 2 * width, 2 * width, 4 * width, 4 * width):
        total += 9 * features_in * features + 9 * features * features
        total += 2 * (features if post_activation else features_in) + 2 * features
        if features_in != features:
            total += features_in * features + features  # 1x1 with bias, no norm
        total += attention(features)
        features_in = features
    return total + 2 * features_in + features_in * 10 + 10  # norm, linear


def encoding_size(num_codes, scales):
    def size(c):
        d = c // 4
        reduce = c * d + d + 2 * d  # 1x1 with bias, norm
        return reduce + num_codes * (d + scales) + num_codes * d * c + c

    return size


def squeeze_size(c):
    return c * (c // 16) + c // 16 + (c // 16) * c + c


@pytest.mark.parametrize(
    "name, settings, expected, published",
    # The paper's table has 2.7, 2.8, 3.5 and 16.8 M.
    [
        ("resnet14", {}, expected_size(64, False, lambda c: 0), 2.78),
        ("se_resnet14", {}, expected_size(64, True, squeeze_size), 2.80),
        (
            "encnet14",
            dict(num_codes=16),
            expected_size(64, True, encoding_size(16, 1)),
            3.51,
        ),
        (
            "encnet14",
            dict(num_codes=16, scale_drop=True),
            expected_size(64, True, encoding_size(16, 0)),
            3.51,
        ),
        (
            "encnet14",
            dict(num_codes=32, width=128),
            expected_size(128, True, encoding_size(32, 1)),
            16.79,
        ),
    ],
)
def test_parameters_are_those_of_the_layers_and_the_paper(
    name, settings, expected, published
):
    model = nnx.eval_shape(lambda: create_model(name, num_classes=10, **settings))
    assert size_of(model) == expected
    assert round(expected / 1e6, 2) == published


@pytest.mark.parametrize("name", ["resnet14", "se_resnet14", "encnet14"])
@pytest.mark.parametrize("size", [(32, 32), (33, 20), (1, 1)])
def test_any_size_gives_float32_logits(name, size):
    def outputs(images):
        settings = {**TINY, "width": 16}
        return create_model(name, dtype=jnp.bfloat16, **settings)(images)

    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    logits = jax.eval_shape(outputs, images).logits
    assert logits.shape == (2, 3) and logits.dtype == jnp.float32


def test_stages_halve_the_size_twice():
    model = random_module(create_model, "resnet14", **TINY)
    x, shapes = normals(1, 12, 12, 8), []
    for block in model.blocks:
        x = block(x)
        shapes.append(x.shape[1:])
    assert shapes == [(12, 12, 8)] * 2 + [(6, 6, 16)] * 2 + [(3, 3, 32)] * 2


# A reference in NumPy, with batch statistics.


def norm(x):
    mean = x.mean((0, 1, 2))
    return (x - mean) / np.sqrt(x.var((0, 1, 2)) + 1e-5)


def convolve(x, kernel, stride=1):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel)


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_baseline_block_norms_before_it_convolves():
    block = random_module(PreActivationBlock, 3, 4, 2)
    block.shortcut.bias[...] = jnp.arange(4.0)
    x = normals(2, 6, 6, 3)
    y = convolve(relu(norm(x)), block.conv1.kernel[...], stride=2)
    y = convolve(relu(norm(y)), block.conv2.kernel[...])
    # The shortcut takes the input as it came, and nothing follows the sum.
    shortcut = x[:, ::2, ::2] @ np.asarray(block.shortcut.kernel[0, 0]) + np.arange(4)
    np.testing.assert_allclose(block(x), y + shortcut, atol=1e-5)


def test_shortcut_is_the_identity_where_the_shape_stays():
    assert random_module(PreActivationBlock, 4, 4, 1).shortcut is None
    assert random_module(PreActivationBlock, 4, 4, 2).shortcut is not None


def test_attention_block_attends_before_the_sum_and_ends_with_relu():
    block = random_module(
        lambda rngs: AttentionBlock(4, 4, 1, Half(), rngs=rngs),
    )
    x = normals(2, 6, 6, 4)
    y = relu(norm(convolve(x, block.conv1.kernel[...])))
    y = norm(convolve(y, block.conv2.kernel[...]))
    np.testing.assert_allclose(block(x), relu(0.5 * y + x), atol=1e-5)


class Half(nnx.Module):
    def __call__(self, x):
        return 0.5 * x


def test_squeeze_excitation_gates_by_the_mean():
    module = random_module(SqueezeExcitation, 16)
    module.squeeze.bias[...] = jnp.ones(1)
    x = normals(2, 3, 5, 16)
    hidden = relu(x.mean((1, 2)) @ np.asarray(module.squeeze.kernel[...]) + 1)
    gate = sigmoid(hidden @ np.asarray(module.excite.kernel[...]))
    np.testing.assert_allclose(module(x), x * gate[:, None, None], atol=1e-5)


def test_gate_has_the_value_worked_out_by_hand():
    # Two pixels of 8 channels, which the convolution maps to the features (3, 1) and
    # (0, 2); batch norm is set to leave them as they are.
    module = random_module(EncodingAttention, 8, num_codes=2, drop=False)
    module.eval()
    kernel = np.zeros((1, 1, 8, 2), np.float32)
    kernel[0, 0, 0], kernel[0, 0, 1] = [3, 0], [0, 1]
    module.conv.kernel[...] = jnp.asarray(kernel)
    module.conv.bias[...] = jnp.array([0.0, 1.0])
    module.norm.var[...] = jnp.full(2, 1 - 1e-5)
    module.encoding.codewords[...] = jnp.array([[0.0, 0.0], [3.0, 1.0]])
    # Equal scales of 0 assign each pixel half to each codeword.
    module.encoding.scale[...] = jnp.zeros(2)
    weights = np.zeros((4, 8), np.float32)
    weights[:, 5] = [1, 2, 3, 4]
    module.linear.kernel[...] = jnp.asarray(weights)
    x = np.zeros((1, 1, 2, 8), np.float32)
    x[0, 0, 0, 0] = x[0, 0, 1, 1] = 1
    x = jnp.asarray(x)
    # Half the sums of the residuals to (0, 0), and to (3, 1).
    vector = np.array([1.5, 1.5, -1.5, 0.5]) / np.sqrt(7)
    expected = np.full(8, 0.5)
    expected[5] = sigmoid(vector @ [1, 2, 3, 4])
    np.testing.assert_allclose(module.gate(x)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(module(x), x * expected, rtol=1e-6)


def test_encoding_enters_the_gate_with_length_one():
    module = random_module(EncodingAttention, 8, num_codes=3, drop=False)
    x = 30 * normals(4, 5, 5, 8)
    # The linear layer shows its input, as six of the eight channels.
    module.linear.kernel[...] = jnp.eye(6, 8)
    gate = np.asarray(module.gate(x), np.float64)[:, :6]
    vector = np.log(gate / (1 - gate))
    np.testing.assert_allclose((vector**2).sum(1), 1, rtol=1e-4)


def test_gradient_of_an_encoding_that_is_zero_is_finite():
    # All features and the only codeword are zero, and so are the residuals.
    module = random_module(EncodingAttention, 4, num_codes=1, drop=False)
    module.encoding.codewords[...] = jnp.zeros((1, 1))
    module.eval()
    gradient = jax.grad(lambda x: module.gate(x).sum())(jnp.zeros((1, 2, 2, 4)))
    assert np.isfinite(gradient).all()


def test_drawn_scales_are_minus_one_half_in_eval_mode():
    drop = random_module(DropEncoding, 5, 3)
    fixed = random_module(Encoding, 5, 3)
    fixed.codewords[...] = drop.codewords[...]
    fixed.scale[...] = jnp.full(3, -0.5)
    assert "scale" not in nnx.to_pure_dict(nnx.state(drop, nnx.Param))
    x = normals(2, 7, 5)
    viewed = nnx.view(drop, deterministic=True)
    drop.eval()
    for module in (viewed, drop):
        np.testing.assert_array_equal(module(x), fixed(x))
        np.testing.assert_array_equal(module(x), module(x))


def test_drawn_scales_are_uniform_and_one_for_each_codeword():
    scales = np.asarray(random_module(DropEncoding, 1, 4000)._scales())
    assert -1 <= scales.min() < -0.99 and -0.01 < scales.max() < 0
    np.testing.assert_allclose(np.histogram(scales, 4)[0], 1000, atol=120)


def test_each_step_and_each_layer_draws_its_own_scales():
    model = random_module(create_model, "encnet14", scale_drop=True, **TINY)
    model_def, params, batch_stats = split_model(model)
    images = normals(4, 8, 8, 3)

    @jax.jit
    def apply(key):
        copy = model_def.merge(params, batch_stats)
        nnx.reseed(copy, dropout=key)  # as the training step does
        scales = [block.attention.encoding._scales() for block in copy.blocks]
        nnx.reseed(copy, dropout=key)
        return copy(images).logits, jnp.concatenate(scales)

    results = [apply(jax.random.key(k)) for k in (0, 1, 0)]
    (first, scales), (second, others), (again, _) = results
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-6
    assert len(np.unique([scales, others])) == 2 * 6 * 2


def test_every_weight_of_an_attention_block_learns_with_drawn_scales():
    def create(rngs):
        attention = EncodingAttention(8, num_codes=2, drop=True, rngs=rngs)
        return AttentionBlock(4, 8, 2, attention, rngs=rngs)

    graphdef, params, rest = nnx.split(random_module(create), nnx.Param, ...)
    x = normals(3, 6, 6, 4)

    @jax.jit
    @jax.grad
    def gradients(params):
        return jnp.square(nnx.merge(graphdef, params, rest, copy=True)(x)).mean()

    for path, gradient in nnx.to_flat_state(gradients(params)):
        assert np.isfinite(gradient[...]).all(), path
        # A bias before a batch norm has no effect beyond rounding.
        before_norm = path == ("attention", "conv", "bias")
        assert before_norm or np.abs(gradient[...]).max() > 1e-6, path


@pytest.mark.parametrize(
    "name, key, value, allowed",
    [
        ("encnet14", "num_codes", 0, "at least 1"),
        ("encnet14", "width", 3, "at least 4"),
        ("se_resnet14", "width", 15, "at least 16"),
        ("resnet14", "width", 0, "at least 1"),
        ("resnet14", "num_classes", 1, "at least 2"),
        ("resnet14", "backbone", "resnet18", "has no such setting"),
        ("encnet14", "se_stages", (3, 4), "has no such setting"),
        ("encnet14", "lateral", True, "has no such setting"),
        ("se_resnet14", "aux_head", False, "has no such setting"),
        ("encnet14", "dropout", 0.5, "has no such setting"),
        ("encnet", "scale_drop", True, "has no such setting"),
        ("pspnet", "scale_drop", True, "has no such setting"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(name, key, value, allowed):
    with pytest.raises(UserError, match=allowed) as raised:
        create_model(name, **{"num_classes": 10, key: value})
    assert f"model.{key}={value!r}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_word_changes_the_classifier():
    settings = dict(num_classes=10, width=16, num_codes=16, scale_drop=True)
    sizes = [
        size_of(nnx.eval_shape(lambda name=name: create_model(name, **settings)))
        for name in ("resnet14", "se_resnet14", "encnet14")
    ]
    assert sizes == sorted(set(sizes))
