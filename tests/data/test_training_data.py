"""Tests of how configurations feed the training step."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from encnet_jax.config import default
from encnet_jax.data.prefetch import prefetched
from encnet_jax.models.layers import Conv, ConvBN
from encnet_jax.models.segmentation import SegmentationOutput
from encnet_jax.optimizer import create_optimizer
from encnet_jax.run.sharding import batch_sharded, create_mesh, replicated
from encnet_jax.run.state import create_train_state, split_model
from encnet_jax.train.input_pipeline import (
    create_augmentation,
    create_batches,
    resident_arrays,
)
from encnet_jax.train.step import make_train_step
from tests.data.test_loader import INFO, ListDataset, labeled_images

pytest.importorskip("tensorflow")


class OneLayer(nnx.Module):
    """The smallest network that the step accepts."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.backbone = ConvBN(3, 4, 3, rngs=rngs)
        self.head = Conv(4, 12, use_bias=True, rngs=rngs)

    def __call__(self, images):
        logits = self.head(self.backbone(images))
        return SegmentationOutput(logits, logits.mean((1, 2)))

    forward_low_res = __call__


def losses(resize, steps=3):
    """Trains for a few steps; returns the loss of each."""
    config = default()
    config.batch_size = 8
    config.data.update(base_size=44, crop_size=40, resize=resize)
    mesh = create_mesh(-1)
    model_def, params, batch_stats = split_model(OneLayer())
    tx = create_optimizer(lambda step: 0.01, head_lr_mult=1.0)
    state = create_train_state(params, batch_stats, tx)
    dataset = ListDataset(labeled_images(6))
    step_fn = make_train_step(
        model_def, tx, INFO, augmentation=create_augmentation(config)
    )
    arrays = resident_arrays(config, dataset)
    state, resident = jax.device_put((state, arrays), replicated(mesh))
    found, made = [], create_batches(config, dataset, 0)
    batches = prefetched(made, batch_sharded(mesh))
    for batch in itertools.islice(batches, steps):
        with jax.transfer_guard("disallow"):
            state, metrics = step_fn(state, resident, batch)
        found.append(float(metrics["loss"]))
    made.close()
    return found


def test_training_does_not_depend_on_where_crops_are_resized():
    host, device = losses("host"), losses("device")
    assert np.isfinite(host).all() and len(set(host)) == 3
    # Pixels differ by up to one level.
    np.testing.assert_allclose(host, device, rtol=2e-3)


@pytest.mark.parametrize("cache_on_device", [False, True])
def test_order_depends_neither_on_accumulation_nor_on_devices(cache_on_device):
    taken = []
    for grad_accum_steps, devices in ((1, 1), (4, 1), (2, 8)):
        config = default()
        config.batch_size, config.grad_accum_steps = 16, grad_accum_steps
        config.mesh.data = devices
        config.data.update(base_size=44, crop_size=40, cache_on_device=cache_on_device)
        made = create_batches(config, ListDataset(labeled_images(6)), 3)
        taken.append(list(itertools.islice(made, 4)))
        made.close()
    for other in taken[1:]:
        jax.tree.map(np.testing.assert_array_equal, taken[0], other)
