"""Stochastic gradient descent as the originals do it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def poly_schedule(
    base: float,
    total_steps: int,
    power: float = 0.9,
    *,
    warmup_steps: int = 0,
    min_learning_rate: float = 0.0,
) -> optax.Schedule:
    """Learning rate (base - m) * (1 - step / total_steps)^power + m, m the minimum.

    Stepped every iteration (PyTorch-Encoding and the paper). With `warmup_steps` the
    rate first rises linearly from 0 to `base`, and the decay spans the steps left.
    mmsegmentation reaches `min_learning_rate` 1e-4 in its last step: pass its steps
    less one.
    """
    if total_steps < 1 or not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"total_steps={total_steps}, warmup_steps={warmup_steps}: "
            "0 <= warmup_steps < total_steps is needed"
        )
    length = total_steps - warmup_steps

    def schedule(step):
        left = 1.0 - jnp.clip((step - warmup_steps) / length, 0.0, 1.0)
        decay = (base - min_learning_rate) * left**power + min_learning_rate
        if not warmup_steps:
            return decay
        return jnp.where(step < warmup_steps, base * step / warmup_steps, decay)

    return schedule


def cosine_schedule(
    base: float, total_steps: int, *, warmup_steps: int = 0
) -> optax.Schedule:
    """Learning rate that falls from base to 0 along half a cosine."""
    if not warmup_steps:
        return optax.cosine_decay_schedule(base, total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, base, warmup_steps, total_steps)


def create_optimizer(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    head_lr_mult: float = 10.0,
) -> optax.GradientTransformation:
    """SGD with PyTorch's momentum, decay on every parameter, a faster head.

    For a weight w: d = gradient + weight_decay * w; v = momentum * v + d;
    w = w - rate * v, where the rate is `head_lr_mult` times the schedule's for all that
    is not under the top-level key `backbone`.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum, nesterov=nesterov),
        scale_by_path(lambda path: 1.0 if path[0].key == "backbone" else head_lr_mult),
        optax.scale_by_learning_rate(schedule),
    )


def scale_by_path(
    factor: Callable[[tuple[Any, ...]], float],
) -> optax.GradientTransformation:
    """Multiplies each update by a factor that depends on its place in the tree."""

    def update(updates, state, params=None):
        del params
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, u: u if factor(path) == 1.0 else u * factor(path), updates
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
