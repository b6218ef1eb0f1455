"""Lovász-softmax against values worked out by hand, float64, and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from encnet_jax.ops.lovasz import lovasz_gradient, resized_lovasz_softmax
from encnet_jax.ops.resize import resize_bilinear
from tests.ops.exact import resize, weights_of

SIZES = [(40, 56), (37, 9), (3, 4), (5, 7)]


def drawn(size, dtype=jnp.float32, scale=3.0):
    """Returns logits of 7 classes and labels; no pixel is of class 4, some of none."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(scale * rng.standard_normal((2, 5, 7, 7)), dtype)
    labels = rng.integers(0, 7, (2, *size))
    labels[labels == 4] = 5
    labels[0, :1] = labels[1, :, -1:] = -1
    return logits, jnp.asarray(labels)


def jaccard_weights(own):
    """Returns the differences of 1 - IoU as sorted pixels are mispredicted in turn."""
    missed, wrong = np.cumsum(own), np.cumsum(1 - own)
    loss = 1 - (own.sum() - missed) / (own.sum() + wrong)
    return np.diff(loss, prepend=0)


def exact(logits, labels, align_corners):
    """Returns the loss and its gradient, all pixels and classes at once, in float64."""
    size = labels.shape[1:]
    x = resize(logits, size, align_corners)
    x = np.exp(x - x.max(-1, keepdims=True))
    probability = x / x.sum(-1, keepdims=True)
    labels = np.asarray(labels)
    known, slope, losses = labels >= 0, np.zeros_like(probability), []
    for index in np.unique(labels[known]):
        own = labels[known] == index
        errors = np.abs(own - probability[known][:, index])
        order = np.argsort(-errors, kind="stable")
        weights = np.zeros(len(order))
        weights[order] = jaccard_weights(own[order].astype(int))
        losses.append((errors * weights).sum())
        slope[known, index] = np.where(own, -weights, weights)
    mean = (slope * probability).sum(-1, keepdims=True)
    slope = probability * (slope - mean) / len(losses)
    rows, columns = (
        weights_of(*sizes, align_corners) for sizes in zip(logits.shape[1:3], size)
    )
    return np.mean(losses), np.einsum("Hh,Ww,bHWn->bhwn", rows, columns, slope)


def plain(logits, labels, align_corners):
    """The loss as published (github.com/bermanmaxim/LovaszSoftmax), by autodiff."""
    probability = jax.nn.softmax(
        resize_bilinear(logits, labels.shape[1:], align_corners=align_corners)
    )
    known = np.asarray(labels) >= 0
    probability, labels = probability[known], labels[known]
    losses = []
    for index in np.unique(labels):
        own = (labels == index).astype(probability.dtype)
        errors = jnp.abs(own - probability[:, index])
        order = jax.lax.stop_gradient(jnp.argsort(-errors))
        own = own[order]
        union = own.sum() + jnp.cumsum(1 - own)
        loss = 1 - (own.sum() - jnp.cumsum(own)) / union
        losses.append(jnp.dot(errors[order], jnp.diff(loss, prepend=0)))
    return jnp.stack(losses).mean()


def error(found, expected):
    found = np.asarray(found).astype(np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def loss_and_gradient(logits, labels, align_corners=True):
    @jax.jit
    @jax.value_and_grad
    def tripled(x):
        return 3 * resized_lovasz_softmax(x, labels, align_corners)

    loss, gradient = tripled(logits)
    return loss / 3, gradient / 3


def test_weights_have_the_values_worked_out_by_hand():
    # Descending: other, own, other, own. 1 - IoU of the first k pixels mispredicted:
    # 1 - 2/3, 1 - 1/3, 1 - 1/4, 1.
    errors = jnp.array([0.2, 0.9, 0.5, 0.7])
    own = jnp.array([True, False, False, True])
    weights = lovasz_gradient(errors, own)
    np.testing.assert_allclose(weights, [1 / 4, 1 / 3, 1 / 12, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_errors_of_0_and_1_cost_one_less_the_iou(seed):
    rng = np.random.default_rng(seed)
    own, said = rng.random((2, 50)) < 0.4
    weights = lovasz_gradient(jnp.float32(own != said), jnp.asarray(own))
    iou = (own & said).sum() / (own | said).sum()
    np.testing.assert_allclose(weights[own != said].sum(), 1 - iou, rtol=1e-6)


def test_loss_has_the_value_worked_out_by_hand():
    # Errors of class 0: 0.4 (own), 0.3 (own), 0.8; in descending order they weigh
    # 1 - 2/3, 1/3, 1/3. Those of class 1 are the same, of one pixel: 1, 0, 0. There is
    # none of class 2.
    share = jnp.array([[0.6, 0.3, 0.1], [0.7, 0.3, 0.0], [0.8, 0.2, 0.0], [0, 0, 1]])
    logits = jnp.log(share + 1e-30).reshape(1, 1, 4, 3)
    labels = jnp.array([[[0, 0, 1, 255]]])
    loss, gradient = loss_and_gradient(logits, labels)
    np.testing.assert_allclose(loss, ((0.8 + 0.4 + 0.3) / 3 + 0.8) / 2, rtol=1e-6)
    # Slopes by probability of the last labeled pixel: 1/3 and -1, over two classes.
    mean = 0.8 / 3 - 0.2
    expected = np.array([0.8 * (1 / 3 - mean), 0.2 * (-1 - mean), 0]) / 2
    np.testing.assert_allclose(gradient[0, 0, 2], expected, atol=1e-7)
    np.testing.assert_array_equal(gradient[0, 0, 3], 0)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradient_are_those_of_float64(size, align_corners):
    logits, labels = drawn(size)
    expected, slope = exact(logits, labels, align_corners)
    loss, gradient = loss_and_gradient(logits, labels, align_corners)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert error(gradient, slope) < 2e-6


@pytest.mark.parametrize("align_corners", [True, False])
def test_loss_and_gradient_are_those_of_autodiff(align_corners):
    logits, labels = drawn((33, 20))
    with jax.enable_x64(True):
        double = logits.astype(jnp.float64)
        expected, slope = jax.device_get(
            jax.value_and_grad(plain)(double, labels, align_corners)
        )
    assert slope.dtype == np.float64
    loss, gradient = loss_and_gradient(logits, labels, align_corners)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert error(gradient, slope) < 2e-6


def test_bfloat16_logits_cost_what_they_do_in_float64():
    logits, labels = drawn((40, 56), jnp.bfloat16)
    expected, slope = exact(logits, labels, True)
    loss, gradient = loss_and_gradient(logits, labels)
    assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert error(gradient, slope) < 6e-3


def test_logits_of_hundreds_cost_what_they_do_in_float64():
    logits, labels = drawn((40, 56), scale=300.0)
    expected, slope = exact(logits, labels, True)
    loss, gradient = loss_and_gradient(logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert np.isfinite(gradient).all() and error(gradient, slope) < 1e-3


@pytest.mark.parametrize("size", [(5, 7), (12, 9)])
def test_nothing_labeled_costs_nothing(size):
    logits, labels = drawn(size)
    loss, gradient = loss_and_gradient(logits, jnp.full_like(labels, -1))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_pixels_left_out_may_have_any_logits():
    logits, labels = drawn((5, 7))
    logits = logits.at[0, :1].set(jnp.array([np.inf, np.nan, -np.inf, 0, 0, 0, 0]))
    loss, gradient = loss_and_gradient(logits, labels)
    clean, _ = loss_and_gradient(drawn((5, 7))[0], labels)
    np.testing.assert_allclose(loss, clean, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_batch_on_eight_devices_is_one_image():
    logits, labels = (jnp.tile(x, (4,) + (1,) * (x.ndim - 1)) for x in drawn((24, 16)))
    logits += jnp.arange(8.0)[:, None, None, None] * jnp.array([0, 0, 0, 1, 0, 0, 0])
    expected, slope = exact(logits, labels, True)
    split = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec("data"))
    logits, labels = jax.device_put((logits, labels), split)

    @jax.jit
    def both(x, labels):
        return jax.value_and_grad(resized_lovasz_softmax)(x, labels)

    loss, gradient = both(logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert error(gradient, slope) < 1e-5
    assert gradient.sharding.is_equivalent_to(split, gradient.ndim)


def test_resized_logits_are_never_held():
    logits = jax.ShapeDtypeStruct((2, 20, 20, 150), jnp.float32)
    labels = jax.ShapeDtypeStruct((2, 160, 160), jnp.int32)
    gradient = jax.jit(jax.grad(resized_lovasz_softmax))
    memory = gradient.lower(logits, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.3 * 2 * 160 * 160 * 150 * 4
