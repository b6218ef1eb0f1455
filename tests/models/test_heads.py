"""Tests of PSPNet, DeepLabV3 and the FCN: what they cost, return and learn.

Their arithmetic is compared with torch in tests/golden/test_baseline_heads.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.model_costs import model_costs, table
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.models.heads import Decoder, DeepLabV3Head, PSPHead
from encnet_jax.ops.resize import adaptive_average_pool
from tests.random_module import random_module

BASELINES = ("fcn", "pspnet", "deeplabv3")
TINY = dict(num_classes=5, backbone="tiny", stem="plain", width=2, head_channels=4)


@pytest.mark.parametrize(
    "name, backbone, parameters, giga",
    # torchvision's `num_params` and `_ops` of its weights for 21 classes: with the
    # auxiliary head, on images of 520x520.
    [
        ("fcn", "resnet50", 35_322_218, 152.717),
        ("fcn", "resnet101", 54_314_346, 232.738),
        ("deeplabv3", "resnet50", 42_004_074, 178.722),
        ("deeplabv3", "resnet101", 60_996_202, 258.743),
    ],
)
def test_costs_are_those_that_torchvision_publishes(name, backbone, parameters, giga):
    settings = dict(num_classes=21, backbone=backbone, stem="plain")
    costs = model_costs(name, size=520, **settings)
    assert costs.parameters == parameters
    assert round(costs.layers / 1e9, 3) == giga


def test_parameters_of_pspnet_are_those_of_its_layers():
    # Convolution, scale and bias of each batch norm, classifier with bias.
    pyramid = 4 * (2048 * 512 + 2 * 512)
    reduce = 9 * 4096 * 512 + 2 * 512
    head = pyramid + reduce + 512 * 150 + 150
    aux_head = 9 * 1024 * 256 + 2 * 256 + 256 * 150 + 150
    backbone = 25_557_032 - (
        2048 * 1000 + 1000
    )  # torchvision's, but for its classifier
    settings = dict(num_classes=150, backbone="resnet50", stem="plain")
    costs = model_costs("pspnet", size=64, **settings)
    assert costs.parameters == backbone + head + aux_head == 49_057_132


def test_table_of_costs_has_a_row_for_each_model_and_decoder():
    lines = table(size=32, num_classes=5, backbones=["tiny"]).splitlines()
    titles = [line.split("|")[2].strip() for line in lines[2:]]
    decoders = [f"{name}, `decoder_stride=4`" for name in ("encnet", "fcn")]
    assert sorted(titles) == sorted(["encnet", *BASELINES, *decoders])


def test_costs_of_a_decoder_are_those_of_its_layers():
    settings = dict(size=64, num_classes=5, backbone="resnet50", aux_head=False)
    plain = model_costs("fcn", **settings)
    decoder = model_costs("fcn", decoder_stride=4, **settings)
    # Link from 256 to 48 channels, fusion of 512 + 48 to 256, each with batch norm; the
    # classifier reads 256 channels at 16x16 in place of 512 at 8x8.
    link, fuse = 256 * 48, 9 * 560 * 256
    assert decoder.parameters - plain.parameters == (
        link + 2 * 48 + fuse + 2 * 256 - 256 * 5
    )
    assert decoder.layers - plain.layers == (
        256 * (link + fuse + 256 * 5) - 64 * 512 * 5
    )


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("size", [(1, 1), (16, 24), (33, 49), (128, 96)])
@pytest.mark.parametrize("output_stride", [8, 32])
def test_logits_have_the_size_of_the_image(name, size, output_stride):
    def outputs(images):
        return create_model(name, output_stride=output_stride, **TINY)(images)

    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    output = jax.eval_shape(outputs, images)
    assert output.logits.shape == output.aux_logits.shape == (2, *size, 5)
    assert output.se_logits is None and output.stage3_se_logits is None


@pytest.mark.parametrize("name", ["pspnet", "deeplabv3"])
def test_settings_reach_the_head(name):
    def build(images):
        model = create_model(
            name, aux_head=False, align_corners=False, dtype=jnp.bfloat16, **TINY
        )
        return model(images), model

    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    output, model = nnx.eval_shape(build, images)
    assert output.logits.dtype == jnp.bfloat16 and output.aux_logits is None
    weights = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert {leaf.dtype for leaf in weights} == {np.dtype("f4")}
    if name == "pspnet":
        assert model.head.align_corners is False


@pytest.mark.parametrize(
    "output_stride, rates", [(8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))]
)
def test_dilations_cover_the_same_part_of_the_image(output_stride, rates):
    settings = {**TINY, "head_channels": 64, "output_stride": output_stride}
    model = nnx.eval_shape(lambda: create_model("deeplabv3", **settings))
    convolutions = [view.conv for view in model.head.views]
    assert tuple(conv.dilation for conv in convolutions[1:]) == rates
    # Half of `head_channels`, which makes the published 256 of the default.
    assert {conv.kernel.shape[-1] for conv in convolutions} == {32}


def test_output_stride_of_deeplab_is_checked_by_its_backbone():
    with pytest.raises(UserError, match="model.output_stride=4: allowed are 8, 16, 32"):
        create_model("deeplabv3", output_stride=4, **TINY)


def test_narrowest_deeplab_is_named():
    with pytest.raises(UserError, match="model.head_channels=1: .* at least 2"):
        create_model("deeplabv3", **{**TINY, "head_channels": 1})


@pytest.mark.parametrize("head", [PSPHead, DeepLabV3Head])
def test_every_weight_of_a_head_learns(head):
    model = random_module(head, 16, 8, 3, dropout=0.0)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 15, 13, 16)))

    @jax.jit
    @jax.grad
    def gradients(params):
        return jnp.square(nnx.merge(graphdef, params, rest, copy=True)(x)).mean()

    for path, gradient in nnx.to_flat_state(gradients(params)):
        assert np.isfinite(gradient[...]).all(), path
        assert np.abs(gradient[...]).max() > 0, path


def test_dropout_of_deeplab_is_off_with_that_of_the_classifier():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 5, 8)))
    on, off = (
        random_module(DeepLabV3Head, 8, 16, 3, dropout=rate) for rate in (1e-6, 0.0)
    )
    assert np.abs(on(x) - on(x)).max() > 0.01
    np.testing.assert_allclose(off(x), off(x), atol=1e-5)  # of other running means
    on.eval()
    np.testing.assert_array_equal(on(x), on(x))


@pytest.mark.parametrize(
    "values, bins, expected",
    [
        ([1, 2, 3, 4, 5], 1, [3]),
        ([1, 2, 3, 4, 5], 2, [2, 4]),  # the middle one is in both
        ([1, 2, 3, 4, 5], 3, [1.5, 3, 4.5]),
        ([1, 2, 3, 4, 5, 6], 3, [1.5, 3.5, 5.5]),
        ([1, 2], 3, [1, 1.5, 2]),
        ([7], 6, [7] * 6),
    ],
)
def test_adaptive_pooling_has_the_values_worked_out_by_hand(values, bins, expected):
    line = jnp.asarray(values, jnp.float32)
    # The same line in every column, then in every row.
    rows = adaptive_average_pool(line.reshape(1, -1, 1, 1), bins)[0, :, :, 0]
    columns = adaptive_average_pool(line.reshape(1, 1, -1, 1), bins)[0, :, :, 0]
    np.testing.assert_allclose(rows, np.tile(expected, (bins, 1)).T, rtol=1e-6)
    np.testing.assert_allclose(columns, np.tile(expected, (bins, 1)), rtol=1e-6)


@pytest.mark.parametrize("size", [(7, 11), (4, 13), (60, 3)])
@pytest.mark.parametrize("bins", [2, 3, 6])
def test_adaptive_pooling_averages_each_cell(size, bins):
    x = np.random.default_rng(0).standard_normal((2, *size, 3), np.float32)
    actual = adaptive_average_pool(jnp.asarray(x), bins)
    assert actual.shape == (2, bins, bins, 3)
    h, w = size
    for i in range(bins):
        rows = slice(i * h // bins, int(np.ceil((i + 1) * h / bins)))
        for j in range(bins):
            columns = slice(j * w // bins, int(np.ceil((j + 1) * w / bins)))
            cell = x[:, rows, columns].mean((1, 2))
            np.testing.assert_allclose(actual[:, i, j], cell, atol=1e-6)


def test_adaptive_pooling_of_bfloat16_sums_in_float32():
    # In bfloat16 a running sum of ones stops at 256.
    x = jnp.ones((1, 70, 70, 1), jnp.bfloat16)
    assert adaptive_average_pool(x, 3).dtype == jnp.bfloat16
    np.testing.assert_array_equal(adaptive_average_pool(x, 3), np.ones((1, 3, 3, 1)))
    gradient = jax.grad(lambda x: adaptive_average_pool(x, 1).sum())(x)
    np.testing.assert_allclose(gradient.astype(jnp.float32), 1 / 4900, rtol=0.01)


def test_adaptive_pooling_can_be_exported_for_any_size():
    shape = jax.export.symbolic_shape("b, h, w, 2")
    exported = jax.export.export(jax.jit(lambda x: adaptive_average_pool(x, 6)))(
        jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    x = np.random.default_rng(0).standard_normal((1, 7, 5, 2), np.float32)
    expected = adaptive_average_pool(jnp.asarray(x), 6)
    np.testing.assert_allclose(exported.call(x), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["encnet", "fcn"])
@pytest.mark.parametrize("size", [(33, 49), (32, 40)])
def test_decoder_gives_logits_at_stride_4(name, size):
    def outputs(images):
        model = create_model(name, decoder_stride=4, **TINY)
        return model.forward_low_res(images), model.head

    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    output, head = nnx.eval_shape(outputs, images)
    assert output.logits.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 5)
    assert head.decoder.link.conv.kernel.shape == (1, 1, 8, 48)
    assert head.decoder.fuse.conv.kernel.shape == (3, 3, 4 + 48, 2)
    assert head.classifier.conv.kernel.shape == (1, 1, 2, 5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_decoder_joins_resized_features_with_stage_1(align_corners):
    decoder = random_module(Decoder, 2, 4, align_corners=align_corners)
    decoder.eval()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 1, 2, 4)), jnp.float32)
    stage1 = jnp.asarray(rng.standard_normal((1, 1, 4, 2)), jnp.float32)
    # Two pixels to four: at thirds between them, or at quarters around them.
    weights = [0, 1 / 3, 2 / 3, 1] if align_corners else [0, 1 / 4, 3 / 4, 1]
    resized = [x[0, 0, 0] * (1 - w) + x[0, 0, 1] * w for w in weights]
    link = jax.nn.relu(decoder.link(stage1))
    joined = jnp.concatenate([jnp.stack(resized)[None, None], link], -1)
    np.testing.assert_allclose(decoder(x, stage1), decoder.fuse(joined), atol=1e-5)
