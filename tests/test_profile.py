"""Tests of the profile: every operation of a program is attributed to a layer."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

import encnet_jax
from benchmarks.profile import (
    _GEMM_OPERATIONS,
    GROUPS,
    group_of,
    operations,
    seconds_by_group,
)
from encnet_jax.inference.folding import fold_model
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


def test_functions_of_the_groups_are_there():
    names = set()

    def collect(node, prefix):
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + child.name)
                inside = "." if isinstance(child, ast.ClassDef) else ".<locals>."
                name = prefix + child.name + inside
            collect(child, name)

    for path in Path(encnet_jax.__file__).parent.rglob("*.py"):
        collect(ast.parse(path.read_text()), "")
    ours = {n for group, found in GROUPS.items() if group != "optimizer" for n in found}
    assert not ours - names


def test_products_of_a_folded_network_are_gemms():
    layer = random_module(ConvBN, 8, 8, 3)
    arguments = jnp.ones((1, 16, 16, 8)), *fold_model(layer)[1:]
    model_def = fold_model(layer)[0]
    program = jax.jit(lambda x, *arrays: model_def.merge(*arrays)(x))
    groups = operations(program.lower(*arguments).compile().as_text())
    products = [g for name, g in groups.items() if name.startswith(_GEMM_OPERATIONS)]
    assert set(products) == {"convolution GEMMs"}


def test_innermost_function_determines_the_group():
    stack = [
        "winograd_transformed",
        "Conv.__call__",
        "ConvBN.__call__",
        "Block.__call__",
    ]
    assert (
        group_of("add.1", "add", stack) == "Winograd transforms, im2col, space-to-batch"
    )
    assert group_of("dot.1", "dot_general", stack) == "convolution GEMMs"
    assert group_of("add.1", "add", stack[2:]) == "batch norm, ReLU, residual additions"
    assert group_of("add.1", "add", ["main"]) == "rest"
    assert group_of("dot.2", "", []) == "convolution GEMMs"
