"""Which classes an image has, by every implementation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encnet_jax.ops.class_presence import class_presence

IMPLS = ("auto", "scatter", "compare_pixels", "compare_rows")


@pytest.mark.parametrize("impl", IMPLS)
def test_single_pixels_are_found_and_ignored_ones_are_not(impl):
    pixels = np.array([[[0, 0], [0, 3]], [[255, 255], [2, 1]], [[255] * 2] * 2])
    expected = [[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    for dtype in (np.uint8, np.int32):
        found = class_presence(pixels.astype(dtype), 4, impl)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_labels_outside_are_no_class(impl):
    # Not the last class, as an index from the end would be.
    pixels = np.array([[[-1, -4, 4, 2]], [[-100, 1000, 5, 0]]])
    found = class_presence(pixels, 4, impl)
    np.testing.assert_array_equal(found, [[0, 0, 1, 0], [1, 0, 0, 0]])


@pytest.mark.parametrize("impl", IMPLS)
def test_more_classes_than_the_labels_can_name(impl):
    found = class_presence(np.array([[[0, 255, 7]]], np.uint8), 300, impl)
    np.testing.assert_array_equal(np.flatnonzero(found), [0, 7, 255])


def test_platforms_agree_on_the_dtype_with_64_bits():
    with jax.enable_x64(True):
        labels = jnp.asarray([[[1, 2]]])
        exported = jax.export.export(
            jax.jit(lambda labels: class_presence(labels, 4)),
            platforms=("cpu", "cuda", "tpu"),
        )(labels)
        assert exported.out_avals[0].dtype == jnp.float32
        np.testing.assert_array_equal(exported.call(labels), [[0, 1, 1, 0]])


def test_gpu_compares_other_arrays_than_the_pixel_loss():
    # The same ones would be shared with it, and kept.
    labels = jnp.zeros((2, 5, 7), jnp.int32)
    traced = jax.jit(lambda labels: class_presence(labels, 3)).trace(labels)
    for platform, shape in (("cuda", "2x35x3x"), ("tpu", "2x5x7x3x")):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        (compared,) = re.findall(r"stablehlo.compare +EQ.*tensor<(.*?)i1>", program)
        assert compared == shape


def test_unknown_impl_raises():
    with pytest.raises(ValueError, match="impl='sort': allowed are 'auto', 'scatter'"):
        class_presence(np.zeros((1, 2, 2), np.int32), 4, "sort")
