"""The largest channels of resized logits, in every implementation, against float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encnet_jax.ops.resize_argmax import resize_argmax, resize_logits
from tests.ops.exact import resize

IMPLS = ["matmul", "scan", "lerp"]
ULP = 2.0**-23


def logits(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


ONCE = [
    [(40, 56)],
    [(33, 71)],
    [(3, 4)],
    [(1, 20)],
    [(5, 7)],
]
TWICE = [
    [(40, 56), (33, 71)],
    [(40, 56), (40, 56)],
    [(3, 3), (20, 21)],  # neighbors of neighbors, which lie apart
]
RESIZES = [
    (sizes, aligned)
    for group in (ONCE, TWICE)
    for sizes in group
    for aligned in itertools.product([True, False], repeat=len(sizes))
]


def check_labels(impl, x, sizes, aligned):
    expected = x
    for size, align in zip(sizes, aligned):
        expected = resize(expected, size, align)
    labels = jax.jit(lambda x: resize_argmax(x, sizes, aligned, impl))(x)
    assert labels.shape == (len(x), *sizes[-1]) and labels.dtype == np.uint8
    chosen = np.take_along_axis(expected, labels[..., None].astype(int), -1)[..., 0]
    # Weights are float32, so are those of two resizes before they are multiplied.
    limit = 4 * len(sizes) * ULP * np.abs(x).max().astype(float)
    assert (expected.max(-1) - chosen).max() <= limit
    assert (labels == expected.argmax(-1)).mean() > 0.99


@pytest.mark.parametrize("sizes, aligned", RESIZES)
@pytest.mark.parametrize("impl", IMPLS)
def test_labels_are_those_of_float64(impl, sizes, aligned):
    check_labels(impl, logits(2, 5, 7, 9), sizes, aligned)


@pytest.mark.parametrize("channels", [30, 31, 150])
def test_channels_in_groups_are_all_compared(channels):
    # Of every group the first and the last channel win somewhere, padding nowhere.
    x = -1e30 * jnp.ones((1, 1, channels, channels)) + 1e30 * jnp.eye(channels)
    labels = resize_argmax(x, [(1, channels)], [True], "lerp")
    np.testing.assert_array_equal(labels[0, 0], np.arange(channels))


@pytest.mark.parametrize("impl", IMPLS)
def test_bfloat16_logits_are_resized_in_float32(impl):
    x = 1 + logits(2, 5, 7, 9, dtype=jnp.bfloat16) / 128  # labels hang on few digits
    check_labels(impl, x.astype(jnp.bfloat16), [(40, 56)], [True])


@pytest.mark.parametrize("impl", ["auto", *IMPLS])
def test_labels_have_the_values_worked_out_by_hand(impl):
    # 0 1 2 3 against 2.25 1.75 1.25 0.75.
    x = jnp.asarray([[[[0.0, 2.25], [3.0, 0.75]]]])
    labels = resize_argmax(x, [(2, 4)], [True], impl)
    np.testing.assert_array_equal(labels, [[[1, 1, 0, 0]] * 2])


@pytest.mark.parametrize("impl", IMPLS)
def test_first_of_equal_channels_is_taken(impl):
    x = logits(1, 4, 3, 5)
    alone = resize_argmax(x, [(13, 17)], [False], impl)
    doubled = jnp.concatenate([x, x], -1)
    labels = resize_argmax(doubled, [(13, 17)], [False], impl)
    np.testing.assert_array_equal(labels, alone)
    everywhere = resize_argmax(jnp.zeros((1, 4, 3, 5)), [(13, 17)], [True], impl)
    np.testing.assert_array_equal(everywhere, 0)


@pytest.mark.parametrize("impl", IMPLS)
def test_last_of_256_channels_is_found(impl):
    x = jnp.zeros((1, 2, 2, 256)).at[..., 255].set(1)
    np.testing.assert_array_equal(resize_argmax(x, [(3, 3)], [True], impl), 255)


@pytest.mark.parametrize("impl", ["scan", "lerp"])
def test_resized_channels_are_never_held(impl):
    x = jax.ShapeDtypeStruct((1, 60, 60, 150), jnp.float32)
    resized = jax.jit(lambda x: resize_argmax(x, [(480, 480)], [True], impl))
    memory = resized.lower(x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.3 * 480 * 480 * 150 * 4


@pytest.mark.parametrize("impl", ["auto", *IMPLS])
def test_sizes_may_be_free(impl):
    def labels(x):
        larger = (3 * x.shape[1] + 1, 2 * x.shape[2])
        return resize_argmax(x, [larger, (x.shape[1], 9)], [True, False], impl)

    h, w = jax.export.symbolic_shape("h, w", constraints=["h >= 2", "w >= 2"])
    free = jax.ShapeDtypeStruct((2, h, w, 4), jnp.float32)
    exported = jax.export.export(jax.jit(labels), platforms=("cpu", "cuda", "tpu"))
    program = exported(free)
    for size in ((7, 10), (20, 4)):
        x = logits(2, *size, 4)
        # Weights of free sizes are float32 throughout, of known ones float64 first.
        same = np.asarray(program.call(x)) == labels(x)
        assert same.shape == (2, size[0], 9) and same.mean() > 0.98


def program_for(platform):
    x = jax.ShapeDtypeStruct((2, 6, 7, 5), jnp.bfloat16)
    labels = jax.jit(lambda x: resize_argmax(x, [(48, 50)], [True]))
    return jax.export.export(labels, platforms=(platform,))(x).mlir_module()


def test_each_platform_has_its_impl():
    tpu, cuda, cpu = (program_for(name) for name in ("tpu", "cuda", "cpu"))
    assert tpu.count("stablehlo.dot_general") == 2 and "stablehlo.gather" not in tpu
    assert "stablehlo.dot_general" not in cuda and cuda.count('"stablehlo.gather"') == 4
    assert "stablehlo.while" in cpu and "stablehlo.while" not in tpu + cuda
    assert "stablehlo.dot_general" not in program_for("rocm")


def test_unknown_impl_raises():
    with pytest.raises(ValueError, match="impl='fast': allowed are 'auto', 'matmul'"):
        resize_argmax(logits(1, 2, 2, 2), [(3, 3)], [True], "fast")


@pytest.mark.parametrize("sizes, aligned", RESIZES[::3])
@pytest.mark.parametrize("impl", ["matmul", "lerp"])
def test_logits_are_those_of_float64(impl, sizes, aligned):
    x = logits(2, 5, 7, 9)
    expected = x
    for size, align in zip(sizes, aligned):
        expected = resize(expected, size, align)
    actual = jax.jit(lambda x: resize_logits(x, sizes, aligned, impl))(x)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_more_classes_than_labels_count_are_refused():
    with pytest.raises(ValueError, match="257 channels: allowed are up to 256"):
        resize_argmax(logits(1, 2, 2, 257), [(3, 3)], [True])
