"""Tests of the training step in bfloat16: what stays float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.models import cifar, create_model, dinov2
from encnet_jax.models.encoding import Encoding
from encnet_jax.models.layers import Conv
from encnet_jax.optimizer import create_optimizer, poly_schedule
from encnet_jax.run.state import create_train_state, split_model
from encnet_jax.train.step import make_train_step
from tests.random_module import random_module

INFO = DatasetInfo("two", ("dark", "light"), ((0, 0, 0), (255, 255, 255)), {})


@pytest.fixture(scope="module")
def traced():
    """Returns the traced step in bfloat16, and the dtypes of all that it returns."""
    settings = dict(backbone="tiny", width=4, head_channels=8, num_codes=4)
    model = nnx.eval_shape(
        lambda: create_model("encnet", num_classes=2, dtype=jnp.bfloat16, **settings)
    )
    model_def, params, batch_stats = split_model(model)
    tx = create_optimizer(poly_schedule(0.01, 10))
    step = make_train_step(model_def, tx, INFO)
    state = jax.eval_shape(
        lambda p, s: create_train_state(p, s, tx), params, batch_stats
    )
    batch = {
        "images": jax.ShapeDtypeStruct((2, 32, 48, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((2, 32, 48), jnp.int32),
    }
    seed = {"seed": jax.ShapeDtypeStruct((), jnp.uint32)}
    jaxpr, outputs = jax.make_jaxpr(step, return_shape=True)(state, seed, batch)
    return jaxpr.jaxpr, outputs


def operations(jaxpr):
    """Yields (name, dtypes of the operands) of every operation of a program."""
    for equation in jaxpr.eqns:
        dtypes = {v.aval.dtype for v in equation.invars if hasattr(v.aval, "dtype")}
        yield equation.primitive.name, dtypes
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))
        ):
            if isinstance(inner, (ClosedJaxpr, Jaxpr)):
                yield from operations(getattr(inner, "jaxpr", inner))


def test_state_and_losses_are_float32(traced):
    state, metrics = traced[1]
    kept = (state.params, state.batch_stats, metrics)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.float32)}
    # The optimizer also counts its steps.
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state)} == {
        "float32",
        "int32",
    }
    assert {"loss", "pixel_loss", "se_loss", "aux_loss"} <= metrics.keys()


def test_convolutions_are_in_bfloat16_forward_and_backward(traced):
    found = [d for name, d in operations(traced[0]) if name == "conv_general_dilated"]
    # Nine 3x3 convolutions (stem 3, stages 4, heads 2), each with the gradients of both
    # operands, but that of the images.
    assert len(found) == 26
    assert all(dtypes == {jnp.dtype(jnp.bfloat16)} for dtypes in found)


def test_logarithms_exponentials_and_roots_are_in_float32(traced):
    found = {
        (name, dtype.name)
        for name, dtypes in operations(traced[0])
        for dtype in dtypes
        if name in ("exp", "log", "log1p", "logistic", "rsqrt")
    }
    assert {name for name, _ in found} >= {"exp", "log", "rsqrt"}
    assert {dtype for _, dtype in found} == {"float32"}


def test_encoding_of_bfloat16_features_is_computed_in_float32():
    layer = random_module(Encoding, 8, 4)
    features = jax.ShapeDtypeStruct((2, 6, 8), jnp.bfloat16)
    traced = jax.make_jaxpr(layer)(features)
    assert traced.out_avals[0].dtype == jnp.float32
    in_bfloat16 = {
        name
        for name, dtypes in operations(traced.jaxpr)
        if jnp.dtype(jnp.bfloat16) in dtypes
    }
    assert in_bfloat16 <= {"reshape", "convert_element_type"}


def test_gradient_of_a_bias_is_summed_in_float32():
    # 8192 pixels of 1: in bfloat16 a sum of ones ends at 256.
    conv = random_module(Conv, 1, 1, use_bias=True, dtype=jnp.bfloat16)
    graphdef, state = nnx.split(conv)

    @jax.jit
    def gradient(state, x, change):
        pull = jax.vjp(lambda s: nnx.merge(graphdef, s)(x), state)[1]
        return pull(change)[0]

    x = jnp.ones((2, 64, 64, 1), jnp.bfloat16)
    bias = gradient(state, x, x)["bias"][...]
    assert bias.dtype == jnp.float32
    np.testing.assert_allclose(bias, [8192])


@pytest.mark.parametrize(
    ("create", "name"),
    [
        (lambda rngs: dinov2.LayerScale(1), "gamma"),
        (lambda rngs: dinov2._linear(1, 1, rngs), "bias"),
    ],
)
def test_gradients_over_tokens_are_summed_in_float32(create, name):
    module = create(nnx.Rngs(0))
    module.set_attributes(nnx.Linear, dtype=jnp.bfloat16, raise_if_not_found=False)
    graphdef, state = nnx.split(module)
    x = jnp.ones((1, 8192, 1), jnp.bfloat16)

    @jax.jit
    def gradient(state):
        return jax.vjp(lambda s: nnx.merge(graphdef, s)(x), state)[1](x)[0]

    found = gradient(state)[name][...]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [8192])


def test_gradient_of_a_gate_is_summed_in_float32():
    x = jnp.ones((1, 64, 128, 1), jnp.bfloat16)
    gate = jnp.full((1, 1), 0.5)
    found = jax.jit(lambda g: jax.vjp(lambda g: cifar._gated(x, g), g)[1](x)[0])(gate)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [[8192]])
