"""Tests of the training state and step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.models import create_model
from encnet_jax.models.layers import Conv, ConvBN
from encnet_jax.models.segmentation import SegmentationOutput
from encnet_jax.optimizer import create_optimizer
from encnet_jax.run.state import create_train_state, pure_batch_stats, split_model
from encnet_jax.train.step import make_train_step
from tests.random_module import random_module

INFO = DatasetInfo("two", ("dark", "light"), ((0, 0, 0), (255, 255, 255)), {})
RNG = np.random.default_rng(0)


def small_model(**settings):
    return random_module(
        create_model,
        "encnet",
        num_classes=2,
        backbone="tiny",
        stem="plain",
        width=2,
        head_channels=4,
        num_codes=2,
        aux_head=False,
        **settings,
    )


def two_images():
    """Returns images whose labels are where they are light, with a void corner."""
    labels = RNG.integers(0, 2, (2, 4, 4)).repeat(8, 1).repeat(8, 2)
    images = (labels[..., None] * 150 + RNG.integers(0, 100, (2, 32, 32, 3))).astype(
        "u1"
    )
    labels[:, :4, :4] = IGNORE_LABEL
    return {"images": images, "labels": labels.astype(np.uint8)}


class OneLayer(nnx.Module):
    """The smallest network with batch statistics and both losses."""

    def __init__(self, rngs):
        self.backbone = ConvBN(3, 4, 3, stride=2, rngs=rngs)
        self.head = Conv(4, 2, use_bias=True, rngs=rngs)

    def __call__(self, images):
        logits = self.head(self.backbone(images))
        presence = logits.mean((1, 2))
        return SegmentationOutput(logits.repeat(2, 1).repeat(2, 2), presence)

    forward_low_res = __call__


class CountedModelDef:
    """A model definition that counts how often the step is traced."""

    def __init__(self, model_def):
        self.model_def = model_def
        self.merges = 0

    def merge(self, params, batch_stats):
        self.merges += 1
        return self.model_def.merge(params, batch_stats)


class Run:
    """A training step and its state on the device; counts traces."""

    def __init__(self, model, rates, **settings):
        model_def, params, batch_stats = split_model(model)
        self.model_def = CountedModelDef(model_def)
        tx = create_optimizer(lambda step: rates(step), head_lr_mult=1.0)
        self.state = create_train_state(params, batch_stats, tx)
        self.resident = {"seed": jnp.uint32(0)}
        self.step_fn = make_train_step(self.model_def, tx, INFO, **settings)

    def step(self, batch):
        batch = jax.device_put(batch)
        with jax.transfer_guard("disallow"):
            self.state, metrics = self.step_fn(self.state, self.resident, batch)
        return {key: float(value) for key, value in metrics.items()}


def leaves(tree):
    # Copies: arrays that NumPy looks at are not donated.
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def test_merge_of_a_split_model_restores_it():
    model = small_model()
    model_def, params, batch_stats = split_model(model)
    restored = model_def.merge(params, batch_stats)
    for kind, expected in ((nnx.Param, params), (nnx.BatchStat, batch_stats)):
        actual = nnx.to_pure_dict(nnx.state(restored, kind))
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert not restored.head.context.norm.use_running_average


def test_merged_model_shares_no_variable():
    model_def, params, batch_stats = split_model(small_model())
    first, second = (
        model_def.merge(params, batch_stats),
        model_def.merge(params, batch_stats),
    )
    first.head.reduce.norm.mean[...] += 1
    first.head.reduce.conv.kernel[...] += 1
    assert not second.head.reduce.norm.mean[...].any()
    for before, after in (
        (params, nnx.to_pure_dict(nnx.state(second, nnx.Param))),
        (batch_stats, pure_batch_stats(second)),
    ):
        jax.tree.map(np.testing.assert_array_equal, before, after)


def test_definition_keeps_the_mode_and_no_arrays():
    model = small_model()
    model.eval()
    model_def, params, batch_stats = split_model(model)
    assert model_def.merge(params, batch_stats).head.context.norm.use_running_average
    for part in model_def[1:]:
        for leaf in jax.tree.leaves(part):
            assert isinstance(leaf, jax.ShapeDtypeStruct)


def test_missing_parameter_raises():
    model_def, params, batch_stats = split_model(small_model())
    del params["head"]["classifier"]["conv"]["bias"]
    model = model_def.merge(params, batch_stats)
    with pytest.raises((AttributeError, TypeError, ValueError)):
        model.head.classifier.conv(jnp.ones((1, 2, 2, 4)))


def test_pure_batch_stats_are_those_after_the_call():
    model = small_model().head.context.norm
    model(jnp.full((2, 2, 4), 3.0))
    batch_stats = pure_batch_stats(model)
    np.testing.assert_allclose(batch_stats["mean"], 0.3, rtol=1e-6)
    np.testing.assert_allclose(batch_stats["var"], 0.9, rtol=1e-6)


@pytest.fixture(scope="module")
def overfitted():
    """Returns a run over two images, rate 0 in the first two steps, and its losses."""
    batch = two_images()
    run = Run(small_model(dropout=0.3), lambda step: jnp.where(step < 2, 0.0, 0.05))
    first = run.state
    before = leaves(first.params)
    losses = [run.step(batch)["loss"] for _ in range(2)]
    unmoved = leaves(run.state.params)
    losses += [run.step(batch)["loss"] for _ in range(58)]
    return dict(run=run, first=first, before=before, unmoved=unmoved, losses=losses)


def test_step_is_traced_once(overfitted):
    assert overfitted["run"].model_def.merges == 1
    assert int(overfitted["run"].state.step) == 60


def test_state_is_donated(overfitted):
    assert all(
        leaf.is_deleted() for leaf in jax.tree.leaves(overfitted["first"].params)
    )


def test_rate_of_zero_moves_no_weight(overfitted):
    for before, after in zip(overfitted["before"], overfitted["unmoved"]):
        np.testing.assert_array_equal(before, after)


def test_dropout_is_another_in_every_step(overfitted):
    # Weights and images of the first two steps are the same; only dropout differs, and
    # the running mean, which the variance is taken around, in the last digits.
    first, second = overfitted["losses"][:2]
    assert abs(first - second) > 1e-4 * first


def test_loss_falls_when_overfitting_two_images(overfitted):
    losses = overfitted["losses"]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_every_weight_moves_and_every_statistic_is_updated(overfitted):
    run = overfitted["run"]
    for before, after in zip(overfitted["before"], leaves(run.state.params)):
        assert (before != after).any()
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.state.batch_stats):
        fresh = 0.0 if path[-1].key == "mean" else 1.0
        assert (np.asarray(leaf) != fresh).all(), path


def test_accumulated_gradient_is_that_of_the_batch():
    # Each micro-batch takes every second row: both get the same two images, so that
    # gradients, batch statistics and losses equal those of these two.
    batch = two_images()
    twice = {key: value.repeat(2, 0) for key, value in batch.items()}
    whole = Run(random_module(OneLayer), lambda step: 0.05)
    parts = Run(random_module(OneLayer), lambda step: 0.05, grad_accum_steps=2)
    expected, actual = whole.step(batch), parts.step(twice)
    for key in ("loss", "pixel_loss", "se_loss"):
        assert actual[key] == pytest.approx(expected[key], rel=1e-5)
    assert int(parts.state.step) == 1
    for one, other in zip(leaves(whole.state.params), leaves(parts.state.params)):
        np.testing.assert_allclose(one, other, atol=1e-5)
    # The running statistics see both micro-batches: 0.1 of each in turn.
    batch_stats = zip(
        jax.tree_util.tree_leaves_with_path(whole.state.batch_stats),
        leaves(parts.state.batch_stats),
    )
    for (path, once), two in batch_stats:
        fresh = 0.0 if path[-1].key == "mean" else 1.0
        np.testing.assert_allclose(
            two - fresh, 1.9 * (np.asarray(once) - fresh), rtol=1e-3, atol=1e-5
        )
