"""Tests of the backbones: strides, sizes, parameters, receptive field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.data import scenes
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.models.resnet import ResNet, Shortcut, stage_strides_and_dilations
from tests.random_module import random_module


def shapes(module, size):
    """Returns the heights and widths of the four stages, without computing them."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    graphdef, state = nnx.split(module)
    outputs = jax.eval_shape(
        lambda s, x: nnx.merge(graphdef, s, copy=True)(x), state, images
    )
    return [output.shape[1:3] for output in outputs]


def count(create):
    """Returns the number of parameters of a module without creating it."""
    module = nnx.eval_shape(lambda: create(rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize(
    "output_stride, dilated, expected",
    [
        (8, True, [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]),
        (16, True, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]),
        (32, True, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        (8, False, [(1, 1, 1), (2, 1, 1), (1, 1, 1), (1, 1, 1)]),
    ],
)
def test_stage_layout_is_that_of_the_original(output_stride, dilated, expected):
    assert stage_strides_and_dilations(output_stride, dilated) == expected


def test_blocks_have_the_strides_and_dilations_of_the_layout():
    backbone = nnx.eval_shape(lambda: ResNet("resnet34", width=2, rngs=nnx.Rngs(0)))
    found = [
        [(layer.conv.stride, layer.conv.dilation) for layer in block.layers]
        for block in backbone.stages[3]
    ]
    # The first convolution with the dilation of stage 3, all others with 4.
    assert found == [[(1, 2), (1, 4)], [(1, 4), (1, 4)], [(1, 4), (1, 4)]]
    strided = backbone.stages[1][0].layers
    assert [layer.conv.stride for layer in strided] == [2, 1]


@pytest.mark.parametrize(
    "output_stride, last",
    [(8, [(9, 13)] * 2), (16, [(5, 7)] * 2), (32, [(5, 7), (3, 4)])],
)
@pytest.mark.parametrize("stem, avg_down", [("plain", False), ("deep", True)])
def test_odd_sizes_round_up_at_every_stride(output_stride, last, stem, avg_down):
    backbone = nnx.eval_shape(
        lambda: ResNet(
            "tiny",
            stem=stem,
            avg_down=avg_down,
            output_stride=output_stride,
            width=2,
            rngs=nnx.Rngs(0),
        )
    )
    assert shapes(backbone, (65, 97)) == [(17, 25), (9, 13), *last]
    assert backbone.features == (8, 16, 32, 64)


@pytest.mark.parametrize(
    "backbone, expected",
    # torchvision's, less the fully connected layer for 1000 classes.
    [
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnet101", 44_549_160 - 2_049_000),
    ],
)
def test_backbones_have_as_many_weights_as_those_of_torchvision(backbone, expected):
    assert count(lambda rngs: ResNet(backbone, stem="plain", rngs=rngs)) == expected


@pytest.mark.parametrize(
    "settings, millions",
    # Computed independently of this code for 11 classes of CamVid and for the
    # configuration of PyTorch-Encoding for PASCAL-Context.
    [
        (dict(num_classes=11, backbone="resnet18", stem="plain"), 14.1),
        (dict(num_classes=11, backbone="resnet50", stem="plain"), 33.5),
        (dict(num_classes=59, backbone="resnet50", lateral=True), 41.5),
    ],
)
def test_encnet_has_as_many_weights_as_the_original(settings, millions):
    weights = count(
        lambda rngs: create_model("encnet", aux_head=False, rngs=rngs, **settings)
    )
    assert weights / 1e6 == pytest.approx(millions, abs=0.05)


def backbone_loss(remat):
    """Returns the loss of a backbone with its statistics, and its parameters."""
    backbone = random_module(ResNet, "tiny", stem="plain", width=4, remat=remat)
    graphdef, params, rest = nnx.split(backbone, nnx.Param, ...)

    def loss(params, images):
        network = nnx.merge(graphdef, params, rest, copy=True)
        outputs = network(images)
        total = sum(jnp.square(output).mean() for output in outputs)
        return total, nnx.state(network, nnx.BatchStat)

    return loss, params


def kept_bytes(loss, params, images):
    """Returns the size of what the forward pass keeps for the backward one."""
    backward = jax.eval_shape(
        lambda params, images: jax.vjp(loss, params, images, has_aux=True)[1],
        params,
        images,
    )
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


def test_remat_changes_neither_loss_nor_gradients_nor_statistics():
    images = np.random.default_rng(0).standard_normal((2, 33, 49, 3), np.float32)
    results = []
    for remat in ((), (1, 2, 3, 4)):
        loss, params = backbone_loss(remat)
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        results.append(gradient(params, images))
    (kept, kept_gradients), (again, again_gradients) = results
    for expected, actual in zip(*map(jax.tree.leaves, (kept, again))):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    for expected, actual in zip(
        *map(jax.tree.leaves, (kept_gradients, again_gradients))
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-4 * abs(expected).max())


def test_remat_keeps_less_for_each_stage():
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    stages = ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))
    kept = [kept_bytes(*backbone_loss(remat), images) for remat in stages]
    assert kept == sorted(set(kept), reverse=True)
    assert kept[-1] < 0.5 * kept[0]


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(conv_impl="fast"), "conv_impl='fast': allowed are auto, lax"),
        (
            dict(remat=(0, 5)),
            r"remat=\(0, 5\): must be a tuple of the stages 1, 2, 3, 4",
        ),
    ],
)
def test_unknown_conv_impl_and_stages_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        create_model("encnet", num_classes=2, **settings)


def test_average_of_a_strided_shortcut_leaves_out_what_is_outside():
    shortcut = Shortcut(1, 1, 2, True, rngs=nnx.Rngs(0))
    shortcut.projection.conv.kernel[...] = jnp.ones((1, 1, 1, 1))
    shortcut.eval()  # Mean 0 and variance 1: normalizing changes nothing.
    image = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_allclose(
        shortcut(image)[0, :, :, 0], [[2, 3.5], [6.5, 8]], rtol=1e-4
    )


@pytest.fixture(scope="module")
def seen_rows():
    """Returns, for each row of logits, the rows of the image with a gradient.

    Weights and images are positive, so every rectifier lets its gradient pass; of the
    pixels in a pooling window one of many in a row wins by chance.
    """
    size = scenes.IMAGE_SIZE
    model = random_module(
        create_model,
        "fcn",
        num_classes=2,
        backbone="tiny",
        stem="plain",
        width=2,
        head_channels=4,
        aux_head=False,
    )
    model.eval()
    graphdef, state = nnx.split(model)
    state = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.abs(x) if "kernel" in str(path) else x, state
    )
    images = np.random.default_rng(0).random((1, size, size, 3), np.float32)

    @jax.jit
    def gradients(rows):
        def row(number):
            def logits(images):
                outputs = nnx.merge(graphdef, state, copy=True)(images).logits
                return outputs[0, number].sum()

            return jax.grad(logits)(images)[0]

        return jax.lax.map(row, rows)

    rows = np.arange(size // 2, size // 2 + 16)
    return rows, (np.asarray(gradients(rows)) != 0).any((2, 3))


def test_tiny_fcn_sees_about_79_pixels(seen_rows):
    _, seen = seen_rows
    sizes = seen.sum(1)
    assert sizes.max() <= 84
    assert sizes.mean() == pytest.approx(79, abs=4)


def test_tiny_fcn_cannot_see_the_cue_of_scenes_from_an_ambiguous_pixel(seen_rows):
    rows, seen = seen_rows
    for row, visible in zip(rows, seen):
        if row >= scenes.AMBIGUOUS_ROW:
            assert visible.argmax() >= scenes.CUE_ROWS, row
