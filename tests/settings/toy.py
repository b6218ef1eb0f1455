"""The smallest network that trains, for arithmetic by hand, and runs of it by `train`.

Its logits are the sum of two vectors, one of the backbone and one of the head, the same
at every pixel. With one class at a share s of the pixels the gradient of both is
softmax(logits) - (s, 1 - s).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from encnet_jax.config import default
from encnet_jax.data.array_dataset import ArrayDataset
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.models.segmentation import SegmentationModel, SegmentationOutput
from encnet_jax.train.step import augment

SIZE = 4
INFO = DatasetInfo("toy", ("zero", "one"), ((0, 0, 0), (255, 255, 255)), {})
MEAN = np.array(INFO.mean) * 255
STD = np.array(INFO.std) * 255


class ToyBackbone(nnx.Module):
    """A backbone whose features are the image; its one parameter is a bias."""

    checks = {}
    features = (3, 3, 3, 3)

    def __init__(self, *, in_channels=3, rngs):
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), (2,)))

    def __call__(self, images):
        return [images] * 4


class ToyModel(SegmentationModel):
    """Constant logits of 2x2 pixels.

    Attributes:
        ramp: Added to the logit of class 1 at the two right pixels.
        noisy: Whether a draw from the stream of dropout is added to that of class 0.
    """

    checks = {}
    ramp = 0.0
    noisy = False

    def __init__(self, num_classes, backbone, *, align_corners=True, rngs, **settings):
        self.backbone = backbone
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), (num_classes,)))
        self.se_bias = nnx.Param(jnp.array([0.5, -1.0]))
        self.aux_bias = nnx.Param(jnp.array([0.0, 2.0]))
        self.rows = nnx.BatchStat(jnp.zeros(()))  # seen in the last forward pass
        self.passes = nnx.BatchStat(jnp.zeros(()))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=rngs.dropout()))
        self.align_corners = align_corners

    def forward_low_res(self, images):
        self.rows[...] = jnp.float32(len(images))
        self.passes[...] += 1
        shape = (len(images), 2, 2, 2)
        logits = jnp.broadcast_to(self.backbone.bias[...] + self.bias[...], shape)
        logits += jnp.array([[0, 0], [0, self.ramp]])
        if self.noisy:
            logits += self.dropout(jnp.ones(2)) * jnp.array([1.0, 0.0])
        return SegmentationOutput(
            logits,
            jnp.broadcast_to(self.se_bias[...], (len(images), 2)),
            jnp.broadcast_to(self.aux_bias[...], shape),
        )


def toy_config(**changes):
    """Returns the configuration of a toy run, with changes by dotted name.

    A key that the test of another needs to have another value than its default is set
    here too.
    """
    config = default()
    config.total_steps = 100
    config.batch_size = 4
    config.model.name = config.model.backbone = "toy"
    config.data.name = "toy"
    config.data.update(base_size=SIZE, crop_size=SIZE, cache_on_device=True)
    config.data.update(scale_range=(1.0, 1.0), flip=False)
    config.loss.update(se_weight=0.0, aux_weight=0.0)
    config.mesh.data = 1
    config.update_from_flattened_dict(changes)
    return config


def toy_dataset(labels=None, images=None, count=4):
    """Returns images with a quarter of class 1, unless they are given."""
    if labels is None:
        labels = np.zeros((count, SIZE, SIZE), np.uint8)
        labels[:, :, 3] = 1
    if images is None:
        images = np.full((*labels.shape, 3), 100, np.uint8)
    return ArrayDataset(INFO, images, labels)


class Finished(Exception):
    """Ends a run once enough steps are recorded."""


class Recorded:
    """What a run did.

    Attributes:
        params: Parameters by name before the first step, and after each.
        metrics: Metrics of each step.
        inputs: Batch of the host of each step.
        batch_stats: Running statistics after each step.
    """

    def __init__(self):
        self.params, self.metrics, self.inputs = [], [], []
        self.batch_stats = []

    @property
    def loss(self):
        """The loss of the first step."""
        return float(self.metrics[0]["loss"])

    def batch(self, step=0):
        """Returns the images and labels of a step, augmented on the device."""
        apply = jax.jit(augment, static_argnums=2)
        return jax.device_get(
            apply(self.resident, self.inputs[step], self.augmentation)
        )


def flat(params):
    return {
        ".".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    }


def lines(workdir: Path):
    """Returns the lines of `metrics.jsonl`."""
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
