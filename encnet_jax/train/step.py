"""The training step: one compiled function, state and batch to state and metrics."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.ops.normalize import normalize
from encnet_jax.run.state import (
    ModelDef,
    PureDict,
    TrainState,
    pure_batch_stats,
)

Batch = dict[str, jax.Array]
# (arrays that stay on the device, batch) -> images float or uint8 0-255, labels
PrepareFn = Callable[[Batch, Batch], tuple[jax.Array, jax.Array]]
# (model, normalized images) -> output
ForwardFn = Callable[[Any, jax.Array], Any]
# (output, labels) -> loss, parts
LossFn = Callable[[Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
StepFn = Callable[[TrainState, Batch, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    model_def: ModelDef,
    tx: optax.GradientTransformation,
    *,
    prepare: PrepareFn,
    loss: LossFn,
    info: DatasetInfo,
    forward: ForwardFn = lambda model, images: model(images),
    grad_accum_steps: int = 1,
) -> StepFn:
    """Returns the jitted step: state, resident arrays, batch -> state, metrics.

    The resident arrays hold the `seed` of dropout, so that runs of other seeds share
    the compiled program. The state is donated. With `grad_accum_steps` above 1 the
    batch passes the network in so many parts, one after the other; their gradients are
    averaged, and the running statistics see each part.
    """

    def compute(params: PureDict, batch_stats: PureDict, images, labels, key):
        model = model_def.merge(params, batch_stats)
        nnx.reseed(model, dropout=key)
        inputs = normalize(images, info.mean, info.std)
        total, parts = loss(forward(model, inputs), labels)
        return total, (pure_batch_stats(model), {"loss": total, **parts})

    gradient = jax.grad(compute, has_aux=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, resident: Batch, batch: Batch):
        images, labels = prepare(resident, batch)
        key = jax.random.fold_in(jax.random.key(resident["seed"]), state.step)
        if grad_accum_steps == 1:
            grads, (batch_stats, metrics) = gradient(
                state.params, state.batch_stats, images, labels, key
            )
        else:
            grads, batch_stats, metrics = _accumulated(
                gradient, state, images, labels, key, grad_accum_steps
            )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step


def _accumulated(gradient, state: TrainState, images, labels, key, parts: int):
    """Averages gradients and metrics over parts of a batch: every parts-th row each."""

    def split(x):  # rows stay on their devices
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def one(carry, part):
        batch_stats, total = carry
        images, labels, number = part
        grads, (batch_stats, metrics) = gradient(
            state.params, batch_stats, images, labels, jax.random.fold_in(key, number)
        )
        return (batch_stats, jax.tree.map(jnp.add, total, grads)), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (batch_stats, total), metrics = jax.lax.scan(
        one,
        (state.batch_stats, zeros),
        (split(images), split(labels), jnp.arange(parts)),
    )
    grads = jax.tree.map(lambda g: g / parts, total)
    return grads, batch_stats, jax.tree.map(lambda m: m.mean(0), metrics)
