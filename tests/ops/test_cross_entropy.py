"""Cross-entropy of resized logits, in both implementations, against float64."""

import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from encnet_jax.ops import cross_entropy_scan
from encnet_jax.ops.cross_entropy import (
    resized_cross_entropy,
    resized_cross_entropy_sum,
)
from encnet_jax.ops.resize import resize_bilinear
from tests.ops.exact import resize, weights_of

IMPLS = ["scan", "one_pass"]
BOTH = pytest.mark.parametrize("impl", IMPLS)
# Largest relative errors of the sum, and of the gradient against its norm. In bfloat16
# the gradient is rounded when it is returned, and in one pass also the rows before it,
# the gradient of the resized logits, and the weights that pull it back.
LIMITS = {jnp.float32: (1e-6, 1e-6), jnp.bfloat16: (1e-3, 6e-3)}


class Exact:
    """Costs (b, H, W) in float64, and their gradient."""

    def __init__(self, logits, labels, align_corners, smoothing=0.0):
        self.rows, self.columns = (
            weights_of(*sizes, align_corners)
            for sizes in zip(logits.shape[1:3], labels.shape[1:3])
        )
        x = resize(logits, labels.shape[1:], align_corners)
        x -= x.max(-1, keepdims=True)
        norm = np.log(np.exp(x).sum(-1, keepdims=True))
        truth = labels[..., None] == np.arange(x.shape[-1])
        self.truth = (1 - smoothing) * truth + smoothing / x.shape[-1]
        self.probability = np.exp(x - norm)
        known = np.asarray(labels) < x.shape[-1]
        self.costs = np.where(known, (self.truth * (norm - x)).sum(-1), 0)

    def gradient(self, cotangent):
        """Returns the gradient of costs whose cotangent is (b, H, W)."""
        slope = (self.probability - self.truth) * cotangent[..., None]
        return np.einsum("Hh,Ww,bHWn->bhwn", self.rows, self.columns, slope)


def drawn(size, dtype=jnp.float32, scale=3.0):
    """Returns logits, labels of which some are none, and weights, 0 for those."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(scale * rng.standard_normal((2, 5, 7, 7)), dtype)
    labels = rng.integers(0, 7, (2, *size), np.uint8)
    labels[0, :2] = labels[1, :, -1:] = 255
    classes = np.array([1, 0, 2, 0.5, 3, 1, 1], np.float32)
    weights = np.where(labels < 7, classes[labels % 7], 0)
    return logits, jnp.asarray(labels), jnp.asarray(weights)


def error(found, expected):
    found = np.asarray(found).astype(np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(40, 56), (37, 9), (3, 4), (5, 7)])
@BOTH
def test_sum_and_gradient_are_those_of_float64(impl, size, align_corners, dtype):
    logits, labels, weights = drawn(size, dtype)
    exact = Exact(logits, labels, align_corners)

    @jax.jit
    @jax.value_and_grad
    def total(x):
        return 3 * resized_cross_entropy_sum(x, labels, weights, align_corners, impl)

    found, gradient = total(logits)
    assert found.dtype == jnp.float32 and gradient.dtype == dtype
    limit, slope_limit = LIMITS[dtype]
    np.testing.assert_allclose(found, 3 * (exact.costs * weights).sum(), rtol=limit)
    assert error(gradient, 3 * exact.gradient(weights)) < slope_limit


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(40, 56), (37, 9), (3, 4)])
@BOTH
def test_costs_of_pixels_and_gradient_are_those_of_float64(
    impl, size, align_corners, dtype
):
    logits, labels, weights = drawn(size, dtype)
    exact = Exact(logits, labels, align_corners)

    @jax.jit
    def squares(x):  # another number comes back to each pixel
        costs = resized_cross_entropy(x, labels, align_corners, impl)
        return (weights * costs**2).sum(), costs

    (_, costs), gradient = jax.value_and_grad(squares, has_aux=True)(logits)
    assert costs.dtype == jnp.float32 and gradient.dtype == dtype
    _, limit = LIMITS[dtype]
    assert error(costs, exact.costs) < limit
    assert error(gradient, exact.gradient(2 * exact.costs * weights)) < 2 * limit


@BOTH
def test_smoothed_costs_and_gradients_are_those_of_float64(impl):
    logits, labels, weights = drawn((37, 9))
    exact = Exact(logits, labels, True, smoothing=0.2)

    def total(x):
        return resized_cross_entropy_sum(x, labels, weights, True, impl, 0.2)

    def costs(x):
        costs = resized_cross_entropy(x, labels, True, impl, 0.2)
        return (costs * weights).sum(), costs

    expected, slope = (exact.costs * weights).sum(), exact.gradient(weights)
    found, gradient = jax.value_and_grad(total)(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert error(gradient, slope) < 1e-6
    (found, each), gradient = jax.value_and_grad(costs, has_aux=True)(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert error(each, exact.costs) < 1e-6 and error(gradient, slope) < 1e-6


@BOTH
def test_gradient_is_that_of_the_plain_way(impl):
    logits, labels, weights = drawn((33, 20))

    def plain(x):
        resized = resize_bilinear(x, (33, 20))
        chosen = labels[..., None] == jnp.arange(7)
        costs = jax.nn.logsumexp(resized, axis=-1) - jnp.where(chosen, resized, 0).sum(
            -1
        )
        return (costs * weights).sum()

    def total(x):
        return resized_cross_entropy_sum(x, labels, weights, True, impl)

    expected, slope = jax.value_and_grad(plain)(logits)
    found, gradient = jax.value_and_grad(total)(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, atol=2e-6 * abs(slope).max())


@BOTH
def test_costs_have_the_values_worked_out_by_hand(impl):
    # Between (0, 0) and (0, log 3): a third of the way 3 ** (1/3).
    logits = jnp.log(jnp.asarray([[[[1.0, 1.0], [1.0, 3.0]]]]))
    labels = jnp.asarray([[[0, 0, 1, 1]]])
    costs = resized_cross_entropy(logits, labels, True, impl)
    third = 3 ** (1 / 3)
    shares = [1 / 2, 1 / (1 + third), third**2 / (1 + third**2), 3 / 4]
    np.testing.assert_allclose(costs, [[-np.log(shares)]], rtol=1e-6)


@pytest.mark.parametrize("dtype", list(LIMITS))
@BOTH
def test_neighbors_may_differ_by_hundreds(impl, dtype):
    # In the middle all are 0, as far below both neighbors' largest as can be.
    height = 500.0
    logits = jnp.asarray([[[[height, -height], [-height, height]]]], dtype)
    labels = jnp.zeros((1, 1, 3), int)
    costs, back = jax.vjp(
        lambda x: resized_cross_entropy(x, labels, True, impl), logits
    )
    np.testing.assert_allclose(costs, [[[0, np.log(2), 2 * height]]], rtol=1e-6)
    (gradient,) = back(jnp.asarray([[[0.0, 1.0, 0.0]]]))
    np.testing.assert_allclose(gradient[0, 0], [[-0.25, 0.25]] * 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", list(LIMITS))
@BOTH
def test_logits_of_hundreds_cost_what_they_do_in_float64(impl, dtype):
    logits, labels, weights = drawn((40, 56), dtype, scale=300.0)
    exact = Exact(logits, labels, True)

    @jax.jit
    @jax.value_and_grad
    def total(x):
        return resized_cross_entropy_sum(x, labels, weights, True, impl)

    found, gradient = total(logits)
    limit, slope_limit = LIMITS[dtype]
    np.testing.assert_allclose(found, (exact.costs * weights).sum(), rtol=limit)
    # Powers of what float32 leaves of hundreds; in bfloat16 what the rows lose counts.
    assert error(gradient, exact.gradient(weights)) < 10 * slope_limit


@pytest.mark.parametrize("none", [255, -1, 7])
@BOTH
def test_pixels_without_a_class_cost_nothing(impl, none):
    logits, labels, _ = drawn((12, 9))
    labels = jnp.full(labels.shape, none, np.int32)
    weights = jnp.ones(labels.shape)

    def pixels(x):
        return resized_cross_entropy(x, labels, True, impl).sum()

    def total(x):
        return resized_cross_entropy_sum(x, labels, weights, True, impl)

    for function in (pixels, total):
        cost, gradient = jax.jit(jax.value_and_grad(function))(logits)
        assert cost == 0
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("images", [1, 3])
@BOTH
def test_other_numbers_of_images_are_refused(impl, images, monkeypatch):
    # Users do not have the checks of tests/conftest.py.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    logits, labels, weights = drawn((12, 9))
    others = jnp.zeros((images, 12, 9), jnp.uint8)
    message = r"labels of .* for logits of \(2, 5, 7, 7\): must be \(b, H, W\)"
    for call in (
        lambda x: resized_cross_entropy(x, others, True, impl).sum(),
        lambda x: resized_cross_entropy_sum(x, others, weights, True, impl),
    ):
        for function in (call, jax.grad(call)):
            with pytest.raises(ValueError, match=message):
                function(logits)
    with pytest.raises(ValueError, match=r"weights of .*: must be those of the labels"):
        resized_cross_entropy_sum(logits, labels, weights[:1], True, impl)


@BOTH
def test_costs_can_be_chosen_by_their_size(impl):
    logits, labels, weights = drawn((24, 24))
    exact = Exact(logits, labels, True)
    hard = exact.costs >= np.sort(exact.costs.ravel())[-100]

    def hardest(x):
        costs = resized_cross_entropy(x, labels, True, impl)
        return jax.lax.top_k(costs.ravel(), 100)[0].sum()

    cost, gradient = jax.jit(jax.value_and_grad(hardest))(logits)
    np.testing.assert_allclose(cost, exact.costs[hard].sum(), rtol=1e-6)
    assert error(gradient, exact.gradient(hard.astype(float))) < 1e-6


@pytest.mark.parametrize("each", [True, False])
def test_scan_never_holds_the_resized_logits(each):
    def cost(x, labels, weights):
        if each:
            return (weights * resized_cross_entropy(x, labels, True, "scan")).sum()
        return resized_cross_entropy_sum(x, labels, weights, True, "scan")

    shapes = (
        jax.ShapeDtypeStruct((2, 20, 20, 150), jnp.bfloat16),
        jax.ShapeDtypeStruct((2, 160, 160), jnp.int32),
        jax.ShapeDtypeStruct((2, 160, 160), jnp.float32),
    )
    memory = jax.jit(jax.grad(cost)).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.7 * 2 * 160 * 160 * 150 * 4


def products_for(platform, each, dtype):
    """Returns precision and operands of each product that computes the gradient."""
    logits, labels, weights = drawn((48, 50), dtype)

    def cost(x):
        if each:
            return (weights * resized_cross_entropy(x, labels)).sum()
        return resized_cross_entropy_sum(x, labels, weights)

    exported = jax.export.export(jax.jit(jax.grad(cost)), platforms=(platform,))
    text = exported(logits).mlir_module()
    return re.findall(r"stablehlo\.dot_general(.*\)) ->", text)


@pytest.mark.parametrize("each", [True, False])
def test_each_platform_has_its_impl(each):
    tpu = products_for("tpu", each, jnp.bfloat16)
    assert tpu and not any("bf16" in operands for operands in tpu)
    for platform in ("cuda", "rocm"):
        products = products_for(platform, each, jnp.bfloat16)
        # Nothing but what pulls the gradient back, by tensor cores.
        assert len(products) == 2
        assert not any("f32" in operands for operands in products)
        assert "2x48x50x7xbf16" in products[0]
        assert not any("HIGHEST" in operands for operands in products)
        for operands in products_for(platform, each, jnp.float32):
            assert "bf16" not in operands and "[HIGHEST, HIGHEST]" in operands


@pytest.mark.parametrize("function", [resized_cross_entropy_sum, resized_cross_entropy])
def test_unknown_impl_raises(function):
    arrays = drawn((6, 6))[: 3 if function is resized_cross_entropy_sum else 2]
    with pytest.raises(ValueError, match="impl='plain': allowed are 'auto', 'scan'"):
        function(*arrays, True, "plain")


def test_rows_are_spread_evenly_over_the_blocks(monkeypatch):
    monkeypatch.setattr(cross_entropy_scan, "_block_rows", lambda row_bytes: 25)
    logits, labels = jnp.zeros((2, 16, 4, 3)), jnp.zeros((2, 128, 8), int)
    rows, _, (blocks,) = cross_entropy_scan._blocks(True, logits, labels)
    # Six blocks of 22, so 4 rows are filled up; six of 25 would be 22 too many.
    assert rows.shape == (6, 22, 16)
    assert blocks.shape == (6, 2, 22, 8)
