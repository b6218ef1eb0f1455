"""Resizing by hand, against PIL, and against itself in other orders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from encnet_jax.ops.resize import (
    interpolation_matrix,
    resize_bilinear,
)
from encnet_jax.ops.resize_argmax import resize_argmax

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "values, size, align_corners, expected",
    [
        ([0, 3], 4, True, [0, 1, 2, 3]),
        ([0, 4, 2], 5, True, [0, 2, 4, 3, 2]),
        ([0, 1, 2, 3, 4], 3, True, [0, 2, 4]),
        ([1, 5], 1, True, [1]),
        ([7], 3, True, [7, 7, 7]),
        ([0, 4], 4, False, [0, 1, 3, 4]),
        ([0, 1, 2, 3], 2, False, [0.5, 2.5]),
        ([0, 6, 3], 2, False, [1.5, 3.75]),
        ([7], 3, False, [7, 7, 7]),
    ],
)
def test_resize_bilinear_has_the_values_worked_out_by_hand(
    values, size, align_corners, expected
):
    x = jnp.asarray(values, jnp.float32)
    rows = resize_bilinear(
        x.reshape(1, -1, 1, 1), (size, 1), align_corners=align_corners
    )
    columns = resize_bilinear(
        x.reshape(1, 1, -1, 1), (1, size), align_corners=align_corners
    )
    np.testing.assert_allclose(rows.ravel(), expected, atol=1e-6)
    np.testing.assert_allclose(columns.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(11, 20), (30, 31), (50, 9)])
def test_antialiased_resize_equals_that_of_pil(size):
    image = RNG.integers(0, 256, (37, 29, 3), np.uint8)
    expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    actual = resize_bilinear(
        jnp.asarray(image[None], jnp.float32),
        size,
        align_corners=False,
        antialias=True,
    )[0]
    # PIL rounds between its two passes.
    assert np.abs(actual - np.asarray(expected, np.float32)).max() <= 1


def test_antialias_with_align_corners_raises():
    with pytest.raises(ValueError, match="align_corners=False"):
        resize_bilinear(jnp.ones((1, 4, 4, 1)), (2, 2), antialias=True)


@pytest.mark.parametrize(
    "align_corners, antialias", [(True, False), (False, False), (False, True)]
)
@pytest.mark.parametrize("sizes", [(7, 23), (23, 7), (1, 5), (5, 1), (4, 4)])
def test_weights_of_interpolation_sum_to_one(sizes, align_corners, antialias):
    weights = np.asarray(interpolation_matrix(*sizes, align_corners, antialias))
    assert weights.shape == sizes[::-1] and weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    # Left and right are treated alike, unless a single pixel stands for the corner.
    if sizes[1] > 1 or not align_corners:
        np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)


@pytest.mark.parametrize("aligned", list(itertools.product([True, False], repeat=2)))
def test_argmax_of_resized_channels(aligned):
    x = RNG.standard_normal((2, 5, 7, 9)).astype(np.float32)
    sizes = [(40, 56), (33, 71)]
    resized = x
    for size, align in zip(sizes, aligned):
        resized = resize_bilinear(resized, size, align_corners=align)
    second, first = np.moveaxis(np.partition(resized, -2)[..., -2:], -1, 0)
    labels = jax.jit(lambda x: resize_argmax(x, sizes, aligned))(x)
    assert labels.shape == (2, 33, 71) and labels.dtype == np.uint8
    clear = first - second > 1e-5
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(labels[clear], resized.argmax(-1)[clear])


def test_first_of_equal_channels_is_taken():
    x = jnp.asarray([0.0, 2.0, 1.0, 2.0]).reshape(1, 1, 1, 4)
    np.testing.assert_array_equal(resize_argmax(x, [(3, 2)], [True]), 1)


def test_argmax_never_holds_the_resized_channels():
    x = jax.ShapeDtypeStruct((1, 60, 60, 150), jnp.float32)
    resized = jax.jit(lambda x: resize_argmax(x, [(480, 480)], [True]))
    memory = resized.lower(x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.3 * 480 * 480 * 150 * 4
