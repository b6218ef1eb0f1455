"""Tests of the profile: every operation of a program is attributed to a layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.profile import group_of, operations, seconds_by_group
from encnet_jax.losses import pixel_cross_entropy
from encnet_jax.models.layers import ConvBN, max_pool
from tests.random_module import random_module


def compiled_gradient():
    """Returns a compiled step of two layers and the loss, and its arguments."""
    layer = random_module(ConvBN, 3, 4, 3)
    graphdef, state = nnx.split(layer)

    def cost(state, images, labels):
        logits = max_pool(nnx.merge(graphdef, state, copy=True)(images))
        return pixel_cross_entropy(logits, labels)

    arguments = state, jnp.ones((1, 16, 16, 3)), jnp.zeros((1, 16, 16), jnp.uint8)
    step = jax.jit(jax.grad(cost, allow_int=True))
    return step.lower(*arguments).compile(), arguments


def test_time_is_attributed_to_the_layers_that_ran():
    step, arguments = compiled_gradient()
    groups = operations(step.as_text())
    assert {
        "convolution GEMMs",
        "batch norm, ReLU, residual additions",
        "max pooling",
        "resizing and loss",
    } <= set(groups.values())
    found = seconds_by_group(lambda: jax.block_until_ready(step(*arguments)), groups)
    assert sum(found.values()) > 0
    assert found.keys() <= set(groups.values()) | {"rest"}


def test_innermost_function_determines_the_group():
    stack = ["winograd", "Conv.__call__", "ConvBN.__call__", "Block.__call__"]
    assert (
        group_of("add.1", "add", stack) == "Winograd transforms, im2col, space-to-batch"
    )
    assert group_of("dot.1", "dot_general", stack) == "convolution GEMMs"
    assert group_of("add.1", "add", stack[2:]) == "batch norm, ReLU, residual additions"
    assert group_of("add.1", "add", ["main"]) == "rest"
    assert group_of("dot.2", "", []) == "convolution GEMMs"
