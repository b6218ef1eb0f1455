"""Tests of how long models take to trace."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from encnet_jax.models import create_model
from encnet_jax.ops import winograd


@pytest.mark.parametrize("settings", [{}, dict(head_init="mmseg")], ids=str)
def test_shardings_asked_for_do_not_grow_with_the_depth(monkeypatch, settings):
    """JAX goes through the whole trace to say that a traced array has none."""
    asked = []

    def sharding(tracer):
        asked.append(tracer)
        raise AttributeError

    def count(backbone):
        asked.clear()
        model = nnx.eval_shape(
            lambda: create_model(
                "encnet", num_classes=5, backbone=backbone, width=8, **settings
            )
        )
        jax.make_jaxpr(
            lambda graph, state, x: nnx.merge(graph, state)(x).logits, static_argnums=0
        )(*nnx.split(model), jnp.zeros((1, 33, 33, 3)))
        return len(asked)

    monkeypatch.setattr(jax.core.Tracer, "sharding", property(sharding))
    assert count("resnet18") == count("tiny")


def test_convolutions_of_a_shape_are_traced_once(monkeypatch):
    traced = []
    transform = winograd._transform_kernel_taps
    monkeypatch.setattr(
        winograd,
        "_transform_kernel_taps",
        lambda kernel: traced.append(kernel.shape) or transform(kernel),
    )

    def loss(x, kernels):
        for kernel in kernels:
            x = winograd.winograd_conv(x, kernel)
        return x.sum()

    # Of a size of its own: no earlier test has traced it.
    shapes = jnp.zeros((1, 7, 11, 3)), [jnp.zeros((3, 3, 3, 3))] * 5
    jax.make_jaxpr(jax.grad(loss))(*shapes)
    # The kernel once forward; turned around and as it is backward.
    assert 1 <= len(traced) <= 3
