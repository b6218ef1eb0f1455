"""Tests of schedules and of the optimizer against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.models.registry import BACKBONES
from encnet_jax.optimizer import cosine_schedule, create_optimizer, poly_schedule
from encnet_jax.run.state import flatten_paths, split_model
from tests.small_vit import add_small_vit


@pytest.mark.parametrize(
    "step, expected",
    [(0, 0.01), (50, 0.01 * 0.5**0.9), (99, 0.01 * 0.01**0.9), (100, 0)],
)
def test_poly_schedule_has_the_values_worked_out_by_hand(step, expected):
    schedule = poly_schedule(0.01, 100)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(jax.jit(schedule)(step), expected, rtol=1e-5, atol=1e-9)


def test_poly_schedule_stays_at_its_end():
    assert poly_schedule(0.01, 100)(250) == 0
    np.testing.assert_allclose(
        poly_schedule(0.01, 100, min_learning_rate=1e-4)(250), 1e-4
    )


@pytest.mark.parametrize(
    "step, expected",
    [(0, 0.0), (5, 0.05), (10, 0.1), (60, 0.1 * 0.5**2), (110, 0.0)],
)
def test_warmup_rises_to_the_base_and_the_decay_spans_the_rest(step, expected):
    schedule = poly_schedule(0.1, 110, 2.0, warmup_steps=10)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "step, expected", [(0, 0.01), (50, 0.0099 * 0.5**0.9 + 1e-4), (100, 1e-4)]
)
def test_minimum_is_where_the_decay_ends(step, expected):
    schedule = poly_schedule(0.01, 100, min_learning_rate=1e-4)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


@pytest.mark.parametrize("total, warmup", [(0, 0), (10, 10), (10, 11), (10, -1)])
def test_steps_that_leave_no_decay_raise(total, warmup):
    with pytest.raises(ValueError, match=f"total_steps={total}, warmup_steps={warmup}"):
        poly_schedule(0.1, total, warmup_steps=warmup)


@pytest.mark.parametrize(
    "warmup, step, expected",
    [(0, 0, 0.1), (0, 50, 0.05), (0, 100, 0), (20, 10, 0.05), (20, 60, 0.05)],
)
def test_cosine_schedule_has_the_values_worked_out_by_hand(warmup, step, expected):
    schedule = cosine_schedule(0.1, 100, warmup_steps=warmup)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "warmup, step, expected", [(0, 50, 0.055), (0, 100, 0.01), (20, 60, 0.055)]
)
def test_cosine_ends_at_the_minimum(warmup, step, expected):
    schedule = cosine_schedule(0.1, 100, warmup_steps=warmup, min_learning_rate=0.01)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


def taken(steps, params, gradients, rate=0.1, **settings):
    """Returns the parameters after some steps with the same gradients."""
    tx = create_optimizer(lambda step: rate, **settings)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(gradients, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    return params


@pytest.mark.parametrize(
    "nesterov, factor, expected",
    [
        # d = 0.5 + 0.1 w; v = 0.9 v + d; w -= 0.1 * factor * v, twice from w = 1.
        # d = 0.6, 0.594; v = 0.6, 1.134.
        (False, 1.0, (0.94, 0.8266)),
        # d = 0.6, 0.54; v = 0.6, 1.08.
        (False, 10.0, (0.4, -0.68)),
        # d + 0.9 v: 1.14; then d = 0.5886, v = 1.1286.
        (True, 1.0, (0.886, 0.725566)),
    ],
)
def test_two_steps_have_the_values_worked_out_by_hand(nesterov, factor, expected):
    params = {"head": {"bias": np.float32(1)}}
    gradients = {"head": {"bias": np.float32(0.5)}}
    for steps, value in zip((1, 2), expected):
        moved = taken(
            steps,
            params,
            gradients,
            momentum=0.9,
            weight_decay=0.1,
            head_lr_mult=factor,
            nesterov=nesterov,
        )
        np.testing.assert_allclose(moved["head"]["bias"], value, rtol=1e-5)


def test_head_factor_holds_outside_the_backbone_only():
    ones = np.ones(2, np.float32)
    params = {
        "auxiliary": {"backbone": {"scale": ones}},
        "backbone": {"head": {"kernel": ones}, "stem": {0: {"bias": ones}}},
        "head": {"codewords": ones},
    }
    moved = taken(1, params, params, rate=0.01, weight_decay=0.0)
    np.testing.assert_allclose(moved["backbone"]["head"]["kernel"], 0.99)
    np.testing.assert_allclose(moved["backbone"]["stem"][0]["bias"], 0.99)
    np.testing.assert_allclose(moved["auxiliary"]["backbone"]["scale"], 0.9)
    np.testing.assert_allclose(moved["head"]["codewords"], 0.9)


def test_weight_decay_holds_for_every_parameter():
    names = ("kernel", "bias", "scale", "codewords")
    params = {"backbone": {name: np.float32([2.0]) for name in names}}
    zeros = jax.tree.map(np.zeros_like, params)
    moved = taken(1, params, zeros, weight_decay=0.5)
    for name in names:
        np.testing.assert_allclose(moved["backbone"][name], 2 - 0.1 * 0.5 * 2)


def test_schedule_is_followed_step_by_step():
    params, one = {"backbone": np.float32(0)}, {"backbone": np.float32(1)}
    tx = create_optimizer(poly_schedule(1.0, 4, 1.0), momentum=0.0, weight_decay=0.0)
    state, found = tx.init(params), []
    for _ in range(5):
        updates, state = tx.update(one, state, params)
        found.append(float(updates["backbone"]))
    np.testing.assert_allclose(found, [-1, -0.75, -0.5, -0.25, 0])


def test_adamw_takes_the_steps_worked_out_by_hand():
    # From a constant gradient g both moments, their bias corrected, give g / |g| = 1 at
    # every step; a matrix also decays: w - 0.1 (1 + 0.5 w), twice from w = 2.
    params = {"head": {"kernel": np.full((1, 1), 2, np.float32), "bias": np.ones(1)}}
    gradients = jax.tree.map(lambda p: np.full_like(p, 3.0), params)
    settings = dict(name="adamw", weight_decay=0.5, head_lr_mult=1.0)
    for steps, kernel, bias in ((1, 1.8, 0.9), (2, 1.61, 0.8)):
        moved = taken(steps, params, gradients, **settings)["head"]
        np.testing.assert_allclose(moved["kernel"], [[kernel]], rtol=1e-5)
        np.testing.assert_allclose(moved["bias"], [bias], rtol=1e-5)


def test_adamw_decays_the_matrices_alone_of_a_vision_transformer(monkeypatch):
    # What timm 1.0 decays of vit_small_patch14_dinov2: the weights of the linear layers
    # and of the embedding. Zero gradients: a step from 2 goes to 2 - 0.1 * 0.5 * 2.
    model = BACKBONES[add_small_vit(monkeypatch)](rngs=nnx.Rngs(0))
    twos = jax.tree.map(lambda p: jnp.full(p.shape, 2.0), split_model(model)[1])
    params = {"backbone": twos}
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved = taken(1, params, zeros, name="adamw", weight_decay=0.5)
    decayed = {path for path, value in flatten_paths(moved).items() if value.min() < 2}
    block = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    names = [f"blocks.{i}.{name}" for i in range(4) for name in block]
    assert decayed == {f"backbone.{name}.kernel" for name in [*names, "patch_embed"]}
    np.testing.assert_allclose(moved["backbone"]["patch_embed"]["kernel"], 1.9)


def test_adamw_forgets_its_moments_at_their_rates():
    # Gradients 1, 0: m = (1 - b1) b1 / (1 - b1^2), v = (1 - b2) b2 / (1 - b2^2).
    params = {"backbone": np.float32(0)}
    tx = create_optimizer(
        lambda step: 1.0, name="adamw", momentum=0.5, beta2=0.75, weight_decay=0.0
    )
    state = tx.init(params)
    _, state = tx.update({"backbone": np.float32(1)}, state, params)
    updates, _ = tx.update({"backbone": np.float32(0)}, state, params)
    expected = -(0.25 / 0.75) / (0.1875 / 0.4375) ** 0.5
    np.testing.assert_allclose(updates["backbone"], expected, rtol=1e-5)


@pytest.mark.parametrize("limit, scale", [(0.0, 1.0), (10.0, 1.0), (2.5, 0.5)])
def test_gradients_are_clipped_by_their_global_norm(limit, scale):
    params = {"backbone": np.float32(0), "head": np.float32(0)}
    gradients = {"backbone": np.float32(3), "head": np.float32(4)}  # of norm 5
    moved = taken(
        *(1, params, gradients), rate=1.0, max_grad_norm=limit, head_lr_mult=1.0
    )
    np.testing.assert_allclose(moved["backbone"], -3 * scale, rtol=1e-6)
    np.testing.assert_allclose(moved["head"], -4 * scale, rtol=1e-6)


@pytest.mark.parametrize("name", ["AdamW", "adam", ""])
def test_other_name_is_refused(name):
    with pytest.raises(ValueError, match="allowed are 'sgd', 'adamw'"):
        create_optimizer(lambda step: 0.1, name=name)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_clipping_and_freezing_change_nothing_about_the_state(name):
    # So that a run resumes with another `max_grad_norm`, 0 included, or frozen; with
    # SGD also unfrozen.
    params = {"backbone": np.ones((2, 2), np.float32), "head": np.ones(2, np.float32)}
    plain, *others = (
        create_optimizer(lambda step: 0.1, name=name, **settings).init(params)
        for settings in ({}, {"max_grad_norm": 1.0}, {"freeze_backbone": True})
    )
    for other in others:
        assert jax.tree.structure(plain) == jax.tree.structure(other)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_backbone_stays_and_does_not_decay(name):
    params = {"backbone": np.ones((2, 2), np.float32), "head": np.ones(2, np.float32)}
    moved = taken(3, params, params, name=name, weight_decay=0.5, freeze_backbone=True)
    np.testing.assert_array_equal(moved["backbone"], params["backbone"])
    assert (moved["head"] < 1).all()


@pytest.mark.parametrize("frozen", [1000.0, np.nan, np.inf])
@pytest.mark.parametrize("name, step", [("sgd", 0.3), ("adamw", 1.0)])
def test_gradients_of_a_frozen_backbone_play_no_part(name, step, frozen):
    # Clipped to norm 0.3; AdamW's first step is that of the sign.
    params = {"backbone": np.ones(2, np.float32), "head": np.ones(1, np.float32)}
    gradients = {"backbone": np.full(2, frozen), "head": np.ones(1, np.float32)}
    settings = dict(name=name, max_grad_norm=0.3, freeze_backbone=True)
    moved = taken(
        *(1, params, gradients), rate=0.5, weight_decay=0.0, head_lr_mult=1, **settings
    )
    np.testing.assert_array_equal(moved["backbone"], params["backbone"])
    np.testing.assert_allclose(moved["head"], 1 - 0.5 * step, rtol=1e-5)
