"""Convolution by hand, against XLA's own, and in all implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.models import create_model
from encnet_jax.models.layers import Conv, ConvBN, FoldedConv, set_conv_impl
from encnet_jax.ops import chunks
from encnet_jax.ops import conv as conv_module
from encnet_jax.ops import winograd as winograd_module
from encnet_jax.ops.conv import batch_to_space, conv2d, space_to_batch
from encnet_jax.ops.winograd import transform_kernel, winograd_transformed
from tests.random_module import random_module

RNG = np.random.default_rng(0)


def normals(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def ones_convolution(image, **settings):
    """Returns what a 3x3 kernel of ones makes of an image (h, w)."""
    conv = Conv(1, 1, 3, rngs=nnx.Rngs(0), **settings)
    conv.kernel[...] = jnp.ones((3, 3, 1, 1))
    return conv(jnp.asarray(image, jnp.float32)[None, :, :, None])[0, :, :, 0]


@pytest.mark.parametrize("stride", [1, 2])
def test_1x1_convolution_equals_that_of_lax(stride):
    x = normals(2, 5, 6, 3)
    conv = random_module(Conv, 3, 4, stride=stride, use_bias=True)
    conv.bias[...] = jnp.arange(4.0)
    expected = jax.lax.conv_general_dilated(
        x,
        conv.kernel[...],
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    actual = conv(x)
    assert actual.shape == (2, -(-5 // stride), -(-6 // stride), 4)
    np.testing.assert_allclose(actual, expected + np.arange(4), atol=1e-6)


def test_strided_convolution_pads_both_sides_alike():
    # Centered on pixels 0 and 2. TensorFlow's "SAME" would center on 1 and 3.
    result = ones_convolution(np.arange(16).reshape(4, 4), stride=2)
    np.testing.assert_array_equal(result, [[10, 24], [51, 90]])


def test_dilated_convolution_keeps_the_size():
    result = ones_convolution(np.arange(25).reshape(5, 5), dilation=2)
    assert result.shape == (5, 5)
    assert result[0, 0] == 0 + 2 + 10 + 12
    assert result[2, 2] == np.arange(25).reshape(5, 5)[::2, ::2].sum()


def conv_with(impl, features=(32, 33), **settings):
    """Returns a 3x3 convolution; with these features every implementation applies."""
    conv = random_module(Conv, *features, 3, **settings)
    set_conv_impl(conv, impl)
    return conv


def result_and_gradients(conv, x):
    """Returns the result of a convolution and the gradients of x and the kernel."""
    graphdef, state = nnx.split(conv)

    @jax.jit
    def run(state, x):
        y, pull = jax.vjp(lambda s, x: nnx.merge(graphdef, s)(x), state, x)
        return y, pull(jnp.cos(y))

    return jax.tree.leaves(run(state, x))


@pytest.mark.parametrize("size", [(8, 12), (7, 10), (3, 1)])
@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("impl", ["space_to_batch", "winograd"])
def test_every_impl_agrees_with_lax(impl, dilation, size):
    x = normals(2, *size, 32)
    conv = conv_with(impl, dilation=dilation)
    assert conv.impl == ("lax" if (impl, dilation) == ("space_to_batch", 1) else impl)
    direct = result_and_gradients(conv_with("lax", dilation=dilation), x)
    for expected, actual in zip(direct, result_and_gradients(conv, x)):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("tile, factor", [(2, 3), (3, 15)])
def test_winograd_rounds_about_as_a_direct_convolution(tile, factor):
    x, kernel = (jnp.asarray(normals(*s)) for s in [(1, 12, 12, 256), (3, 3, 256, 128)])
    dimensions = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))
    with jax.enable_x64(True):
        exact = jax.lax.conv_general_dilated(
            np.float64(x), np.float64(kernel), (1, 1), "SAME", **dimensions
        )
    direct = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **dimensions)
    exact = np.asarray(exact)
    ours = winograd_transformed(x, transform_kernel(kernel, tile))
    errors = [abs(np.float64(y) - exact).max() for y in (direct, ours)]
    assert errors[1] < factor * errors[0] < 1e-4 * abs(exact).max()


@pytest.mark.parametrize("tile", [2, 3])
@pytest.mark.parametrize("size", [(6, 12), (7, 10), (3, 1)])
def test_winograd_of_every_tile_is_the_convolution(size, tile):
    x, kernel = normals(2, *size, 3), normals(3, 3, 3, 4)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    actual = winograd_transformed(jnp.asarray(x), transform_kernel(kernel, tile))
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_kernel_is_transformed_alike_by_numpy():
    kernel = normals(3, 3, 5, 4)
    by_numpy = transform_kernel(kernel, 3)
    assert isinstance(by_numpy, np.ndarray) and by_numpy.dtype == np.float32
    by_jax = transform_kernel(jnp.asarray(kernel), 3)
    np.testing.assert_allclose(by_numpy, by_jax, atol=1e-6)


@pytest.mark.parametrize("impl", ["lax", "space_to_batch", "winograd"])
def test_folded_layer_gives_the_numbers_of_its_parts(impl):
    x = normals(2, 9, 7, 128)
    layer = random_module(ConvBN, 128, 128, 3, dilation=2)
    layer.norm.mean[...], layer.norm.var[...] = normals(128), normals(128) ** 2 + 0.1
    layer.norm.scale[...], layer.norm.bias[...] = normals(128), normals(128)
    layer.eval()
    expected = layer(x)
    set_conv_impl(layer, impl)
    layer.fold()
    assert layer.norm is None and isinstance(layer.conv, FoldedConv)
    # Only Winograd's convolution is faster forward.
    assert layer.conv.impl == ("winograd" if impl == "winograd" else "lax")
    assert layer.conv.kernel.shape[0] == (5 if impl == "winograd" else 3)
    np.testing.assert_allclose(layer(x), expected, atol=2e-5 * abs(expected).max())


def test_winograd_of_an_impulse_is_the_turned_kernel():
    x = jnp.zeros((1, 5, 5, 1)).at[0, 2, 3].set(1)
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    expected = np.zeros((5, 5))
    expected[1:4, 2:5] = np.arange(9.0).reshape(3, 3)[::-1, ::-1]
    result = winograd_transformed(x, transform_kernel(kernel, 2))
    np.testing.assert_array_equal(result[0, :, :, 0], expected)


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 2)])
def test_im2col_agrees_with_lax(size):
    x = normals(2, *size, 32)
    direct = result_and_gradients(conv_with("lax", stride=2), x)
    conv = conv_with("winograd", stride=2)
    assert conv.impl == "im2col"
    im2col = result_and_gradients(conv, x)
    for expected, actual in zip(direct, im2col):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * abs(expected).max())


def test_chunked_batch_gives_the_numbers_of_the_whole(monkeypatch):
    x, conv = normals(6, 5, 4, 32), conv_with("winograd")
    for limit in (chunks.FORWARD_CHUNK_ELEMENTS, chunks.BACKWARD_CHUNK_ELEMENTS):
        assert chunks.chunk_size(jnp.asarray(x), conv.kernel[...], limit) == 6
    whole = result_and_gradients(conv, x)
    monkeypatch.setattr(winograd_module, "chunk_size", lambda x, kernel, limit: 2)
    for expected, actual in zip(whole, result_and_gradients(conv, x)):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    "shape, channels, expected",
    [((128, 32, 32, 64), 64, 4), ((4, 120, 120, 64), 64, 1), ((6, 8, 8, 64), 64, 6)]
    + [((64, 15, 15, 512), 512, 8), ((7, 32, 32, 64), 64, 1)],
)
def test_chunk_fits_the_cache_and_is_worth_the_kernel(shape, channels, expected):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, shape[-1], channels), jnp.float32)
    assert chunks.chunk_size(x, kernel, 2**18) == expected


@pytest.mark.parametrize(
    "settings",
    [dict(features=(31, 32)), dict(features=(32, 16)), dict(stride=2, dilation=2)]
    + [dict(dtype=jnp.bfloat16)],
)
def test_winograd_is_left_out_where_it_is_slower_or_less_exact(settings):
    assert conv_with("winograd", **settings).impl == "lax"


def test_unknown_impl_raises():
    x, kernel = jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1))
    with pytest.raises(ValueError, match="impl='fast': allowed are 'auto', 'lax'"):
        conv2d(x, kernel, impl="fast")


@pytest.mark.parametrize(
    ("impl", "size", "stride", "dilation"),
    [
        ("gemm", 3, 1, 1),
        ("im2col", 3, 1, 2),
        ("im2col", 5, 1, 1),
        ("winograd", 3, 2, 1),
        ("winograd", 5, 1, 1),
        ("space_to_batch", 3, 2, 2),
    ],
)
def test_impl_for_other_convolutions_raises(impl, size, stride, dilation):
    x, kernel = jnp.zeros((1, 8, 8, 1)), jnp.zeros((size, size, 1, 1))
    message = f"{impl}.*: not for .* size {size}, stride {stride}, and dilation"
    with pytest.raises(ValueError, match=message):
        conv2d(x, kernel, stride=stride, dilation=dilation, impl=impl)


def test_conv2d_selects_by_itself(monkeypatch):
    x, kernel = jnp.asarray(normals(1, 6, 5, 32)), jnp.asarray(normals(3, 3, 32, 32))
    winograd, calls = conv_module._IMPLS["winograd"], []

    def spied(*arguments):
        calls.append(arguments[2:])
        return winograd(*arguments)

    monkeypatch.setitem(conv_module._IMPLS, "winograd", spied)
    expected = conv2d(x, kernel, dilation=2, impl="lax")
    actual = conv2d(x, kernel, dilation=2)
    assert calls == [(1, 2)]  # stride and dilation
    np.testing.assert_allclose(actual, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    "platform, expected",
    [("cpu", "winograd"), ("gpu", "space_to_batch"), ("tpu", "lax")],
)
def test_auto_is_the_fastest_impl_of_the_platform(monkeypatch, platform, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert conv_with("auto", dilation=2).impl == expected


def test_phases_are_every_other_row_and_column():
    image = jnp.arange(12.0).reshape(1, 3, 4, 1)
    phases = space_to_batch(image, 2)
    np.testing.assert_array_equal(
        phases[..., 0],
        [[[0, 2], [8, 10]], [[1, 3], [9, 11]], [[4, 6], [0, 0]], [[5, 7], [0, 0]]],
    )
    np.testing.assert_array_equal(batch_to_space(phases, 2, (3, 4)), image)


@pytest.mark.parametrize(
    "impl, dtype, expected",
    [
        ("lax", "float32", {"gemm", "lax"}),
        ("space_to_batch", "float32", {"gemm", "lax", "space_to_batch"}),
        ("auto", "float32", {"gemm", "im2col", "lax", "winograd"}),  # tests run on CPU
        ("auto", "bfloat16", {"gemm", "lax"}),
    ],
)
def test_impls_are_those_of_the_setting(impl, dtype, expected):
    settings = dict(num_classes=2, conv_impl=impl, dtype=jnp.dtype(dtype))
    model = nnx.eval_shape(lambda: create_model("encnet", **settings))
    convs = [m for _, m in nnx.iter_modules(model) if isinstance(m, Conv)]
    assert {conv.impl for conv in convs} == expected
    for conv in convs:
        if conv.impl == "space_to_batch":
            assert conv.dilation > 1
        if conv.impl in ("im2col", "winograd"):
            assert conv.kernel_size == 3 and conv.kernel.shape[2] >= 32
    # Two of the stem, 16 of the stages (one strided), both heads.
    counts = [sum(c.impl == name for c in convs) for name in ("winograd", "im2col")]
    assert counts == ([19, 1] if "winograd" in expected else [0, 0])
