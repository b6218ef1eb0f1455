"""Tests of the whole networks: what they return, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.errors import UserError
from encnet_jax.inference.folding import fold_model
from encnet_jax.models import create_model
from encnet_jax.models.layers import BatchNorm
from encnet_jax.models.registry import check_model_settings
from encnet_jax.ops.resize import resize_bilinear
from encnet_jax.run.state import pure_batch_stats, split_model
from tests.random_module import random_module

TINY = dict(
    num_classes=5, backbone="tiny", stem="plain", width=2, head_channels=4, num_codes=2
)
BRANCHES = ("se_logits", "aux_logits", "stage3_se_logits")


def abstract_outputs(*arguments, size=(33, 49), **settings):
    """Returns the shapes of the results for two images, without computing them."""

    def outputs(images):
        model = create_model(*arguments, **{**TINY, **settings})
        return model(images)

    return jax.eval_shape(outputs, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))


@pytest.mark.parametrize(
    "name, settings, branches",
    [
        ("encnet", {}, {"se_logits", "aux_logits"}),
        ("encnet", dict(lateral=True), {"se_logits", "aux_logits"}),
        ("encnet", dict(aux_head=False), {"se_logits"}),
        ("encnet", dict(se_loss=False), {"aux_logits"}),
        ("encnet", dict(se_stages=(3, 4)), set(BRANCHES)),
        ("encnet", dict(se_stages=(3,)), {"aux_logits", "stage3_se_logits"}),
        ("encnet", dict(se_stages=(3, 4), se_loss=False), {"aux_logits"}),
        ("encnet", dict(num_codes=0), {"se_logits", "aux_logits"}),
        ("encnet", dict(lateral=True, output_stride=32), {"se_logits", "aux_logits"}),
        ("encnet", dict(decoder_stride=4), {"se_logits", "aux_logits"}),
        ("fcn", dict(decoder_stride=4, output_stride=16), {"aux_logits"}),
        ("fcn", {}, {"aux_logits"}),
        ("fcn", dict(aux_head=False, se_stages=(3, 4), lateral=True), set()),
    ],
    ids=lambda value: str(value).replace(" ", "") if isinstance(value, dict) else "",
)
def test_outputs_are_those_asked_for(name, settings, branches):
    output = abstract_outputs(name, **settings)
    assert output.logits.shape == (2, 33, 49, 5)
    assert {b for b in BRANCHES if getattr(output, b) is not None} == branches
    for branch in branches:
        expected = (2, 33, 49, 5) if branch == "aux_logits" else (2, 5)
        assert getattr(output, branch).shape == expected


def test_bfloat16_keeps_presence_in_float32():
    output = abstract_outputs("encnet", dtype=jnp.bfloat16)
    assert output.logits.dtype == output.aux_logits.dtype == jnp.bfloat16
    assert output.se_logits.dtype == jnp.float32


@pytest.fixture(scope="module")
def encnet():
    """Returns a function of the mode and the key of dropout: logits, presence."""
    settings = {**TINY, "aux_head": False, "dropout": 0.5}
    model = random_module(create_model, "encnet", **settings)
    images = np.random.default_rng(0).standard_normal((2, 24, 40, 3), np.float32)
    images = jnp.asarray(images)

    def run(training, key):
        model.train() if training else model.eval()
        graphdef, state = nnx.split(model)

        @jax.jit
        def apply(state, key):
            copy = nnx.merge(graphdef, state, copy=True)
            # As the training step does.
            nnx.reseed(copy, dropout=key)
            return copy(images)

        keys = [jax.random.key(k) for k in key]
        return [apply(state, key) for key in keys]

    return run


def test_eval_mode_is_deterministic(encnet):
    first, second = encnet(False, (0, 1))
    np.testing.assert_array_equal(first.logits, second.logits)
    assert np.ptp(first.logits) > 0.1


def test_dropout_in_train_mode_follows_the_key(encnet):
    first, second, again = encnet(True, (0, 1, 0))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert np.abs(first.logits - second.logits).max() > 0.01
    # Dropout comes after the encoding.
    np.testing.assert_array_equal(first.se_logits, second.se_logits)


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("name", "unet", "encnet, fcn, pspnet"),
        ("backbone", "resnet51", "resnet50"),
        ("stem", "wide", "plain, deep"),
        ("stem_width", 48, "32, 64"),
        ("output_stride", 4, "8, 16, 32"),
        ("se_stages", (2,), r"\(3, 4\)"),
        ("num_classes", 1, "at least 2"),
        ("num_classes", 5.0, "at least 2"),
        ("width", 0, "at least 1"),
        ("head_channels", 0, "at least 1"),
        ("num_codes", -1, "at least 0"),
        ("num_codes", True, "at least 0"),
        ("num_classes", 256, "at least 2 and at most 255"),
        ("dropout", 1.0, "at least 0 and below 1"),
        ("dropout", -0.1, "at least 0 and below 1"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(key, value, allowed):
    settings = {"name": "encnet", **TINY, key: value}
    # The tests hold the annotation of `create_model`, which has no float there.
    refuse = check_model_settings if value == 5.0 else create_model
    with pytest.raises(UserError, match=allowed) as raised:
        refuse(**settings)
    assert f"model.{key}={value!r}" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_backbone_is_fixed_after_an_evaluation_too(frozen):
    model = create_model("encnet", freeze_backbone=frozen, **TINY)
    for _ in range(2):
        for part, fixed in ((model.backbone, frozen), (model.head, False)):
            norms = [m for _, m in nnx.iter_modules(part) if isinstance(m, BatchNorm)]
            assert {norm.use_running_average for norm in norms} == {fixed}
        model.eval()
        model.train()


def test_frozen_backbone_gets_no_gradient_and_keeps_its_statistics():
    model = random_module(
        lambda **kwargs: create_model("encnet", freeze_backbone=True, **TINY, **kwargs)
    )
    model_def, params, batch_stats = split_model(model)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 33, 33, 3)))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        network = model_def.merge(params, batch_stats)
        logits = network(images.astype(jnp.float32)).logits
        return jnp.square(logits).sum(), pure_batch_stats(network)

    gradients, statistics = gradient(params)
    for leaf in jax.tree.leaves(gradients["backbone"]):
        assert not leaf.any()
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients["head"]["reduce"]))
    for same, old, new in (
        (True, batch_stats["backbone"], statistics["backbone"]),
        (False, batch_stats["head"]["reduce"], statistics["head"]["reduce"]),
    ):
        pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
        assert all(bool((a == b).all()) is same for a, b in pairs)


@pytest.mark.parametrize("settings", [{}, dict(lateral=True, decoder_stride=4)])
def test_context_comes_with_the_same_logits(settings):
    model = create_model("encnet", **TINY, **settings)
    model.eval()
    images = jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    output, context = model.forward_with_context(images)
    expected = model.forward_low_res(images)
    np.testing.assert_array_equal(output.logits, expected.logits)
    np.testing.assert_array_equal(output.se_logits, expected.se_logits)
    assert context.assignment.shape == (2, 4, 6, 2)

    same, _ = model.forward_with_context(images, context.gate)
    np.testing.assert_array_equal(same.logits, output.logits)
    other, _ = model.forward_with_context(images, context.gate[::-1])
    assert np.abs(other.logits - output.logits).max() > 1e-6
    np.testing.assert_array_equal(other.se_logits, output.se_logits)


@pytest.mark.parametrize("align_corners", [True, False])
def test_lateral_links_are_resized_as_the_logits_are(align_corners):
    settings = dict(lateral=True, output_stride=16, align_corners=align_corners)
    model = create_model("encnet", **TINY, **settings)
    model.eval()
    stages = model.backbone(jax.random.normal(jax.random.key(0), (1, 32, 48, 3)))
    head = model.head
    features, size = [head.reduce(stages[3])], stages[3].shape[1:3]
    for link, stage in zip(head.lateral, stages[1:3]):
        resized = resize_bilinear(link(stage), size, align_corners=align_corners)
        features.append(resized)
    assert stages[1].shape[1:3] != size
    expected = head.fuse(jnp.concatenate(features, -1))
    _, context = model.forward_with_context(
        jax.random.normal(jax.random.key(0), (1, 32, 48, 3))
    )
    np.testing.assert_allclose(context.features, expected, atol=1e-6)


def test_folded_network_has_the_context():
    model = create_model("encnet", **TINY)
    model.eval()
    images = jax.random.normal(jax.random.key(0), (1, 32, 48, 3))
    _, context = model.forward_with_context(images)
    model_def, *arrays = fold_model(model)
    arrays = jax.device_put(arrays)
    _, folded = model_def.merge(*arrays).forward_with_context(images)
    np.testing.assert_allclose(folded.gate, context.gate, rtol=1e-5)
    np.testing.assert_allclose(folded.assignment, context.assignment, rtol=1e-4)
