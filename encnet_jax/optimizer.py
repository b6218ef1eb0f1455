"""SGD as in the original implementations, AdamW, and learning rates."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Parameters of a vision transformer that act as vectors, whatever their shape.
_UNDECAYED = ("cls_token", "pos_embed")


def poly_schedule(
    base: float,
    total_steps: int,
    power: float = 0.9,
    *,
    warmup_steps: int = 0,
    min_learning_rate: float = 0.0,
) -> optax.Schedule:
    """Returns (base - m) * (1 - step / total_steps)^power + m, with m the minimum.

    Evaluated at every step, as in the paper (section 4.1) and PyTorch-Encoding.

    Args:
        base: Learning rate at the start, or at the end of the warm-up.
        total_steps: Number of optimizer steps.
        power: Exponent of the decay.
        warmup_steps: Steps of linear increase from 0 to `base`; the decay spans the
            rest.
        min_learning_rate: Learning rate after `total_steps`. mmsegmentation reaches it
            in its last step: pass one step less.

    Raises:
        ValueError: No step is left for the decay.
    """
    if total_steps < 1 or not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"total_steps={total_steps}, warmup_steps={warmup_steps}: "
            "0 <= warmup_steps < total_steps is needed"
        )
    length = total_steps - warmup_steps

    def schedule(step: Any) -> jax.Array:
        left = 1.0 - jnp.clip((step - warmup_steps) / length, 0.0, 1.0)
        decay = (base - min_learning_rate) * left**power + min_learning_rate
        if not warmup_steps:
            return decay
        return jnp.where(step < warmup_steps, base * step / warmup_steps, decay)

    return schedule


def cosine_schedule(
    base: float,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    min_learning_rate: float = 0.0,
) -> optax.Schedule:
    """Returns a decay along half a cosine; arguments are as of `poly_schedule`."""
    if not warmup_steps:
        alpha = min_learning_rate / base
        return optax.cosine_decay_schedule(base, total_steps, alpha)
    return optax.warmup_cosine_decay_schedule(
        0.0, base, warmup_steps, total_steps, min_learning_rate
    )


def create_optimizer(
    schedule: optax.Schedule,
    *,
    name: str = "sgd",
    momentum: float = 0.9,
    nesterov: bool = False,
    beta2: float = 0.999,
    weight_decay: float = 1e-4,
    head_lr_mult: float = 10.0,
    max_grad_norm: float = 0.0,
    freeze_backbone: bool = False,
) -> optax.GradientTransformation:
    """Returns an optimizer with a learning rate for the backbone and one for the rest.

    `"sgd"` has PyTorch's momentum and decays every parameter. For a parameter w:
    d = gradient + weight_decay * w; v = momentum * v + d; w = w - rate * v. `"adamw"`
    (Loshchilov and Hutter 2019) exempts vectors from the decay: biases, norms, scales
    of codewords and of layers; and, as timm, class token and positions of a vision
    transformer.

    Args:
        schedule: Learning rate of the parameters under the top-level key `backbone`.
        name: `"sgd"` or `"adamw"`.
        momentum: See above; of AdamW the decay of the first moment.
        nesterov: Whether to use d + momentum * v in place of v; SGD alone.
        beta2: Decay of the second moment; AdamW alone.
        weight_decay: See above.
        head_lr_mult: Learning rate of all other parameters, relative to `schedule`.
        max_grad_norm: Gradients whose norm over all parameters is larger are scaled
            down to it; 0: gradients are never scaled.
        freeze_backbone: Whether the parameters under `backbone` stay as they are. Their
            gradients then play no part, not even in the norm, and may be NaN.

    Raises:
        ValueError: `name` is neither.
    """
    if name not in ("sgd", "adamw"):
        raise ValueError(f"name={name!r}: allowed are 'sgd', 'adamw'")

    def factor(path: tuple[Any, ...]) -> float:
        if path[0].key == "backbone":
            return 0.0 if freeze_backbone else 1.0
        return head_lr_mult

    if name == "adamw":
        matrices = functools.partial(jax.tree_util.tree_map_with_path, _decays)
        descent = [
            optax.scale_by_adam(momentum, beta2),
            optax.add_decayed_weights(weight_decay, mask=matrices),
        ]
    else:
        descent = [
            optax.add_decayed_weights(weight_decay),
            optax.trace(momentum, nesterov=nesterov),
        ]
    if max_grad_norm:
        clip = optax.clip_by_global_norm(max_grad_norm)
        descent[0] = _preceded(
            descent[0], lambda g: clip.update(g, optax.EmptyState())[0]
        )
    if freeze_backbone:
        descent[0] = _preceded(descent[0], _without_backbone)
    return optax.chain(
        *descent,
        scale_by_path(factor),
        optax.scale_by_learning_rate(schedule),
    )


def _decays(path: tuple[Any, ...], parameter: jax.Array) -> bool:
    """Returns whether AdamW decays a parameter."""
    named = any(getattr(key, "key", None) in _UNDECAYED for key in path)
    return parameter.ndim > 1 and not named


def _without_backbone(gradients: Any) -> Any:
    """Returns the gradients with zeros for the backbone, even where they were NaN."""
    return jax.tree_util.tree_map_with_path(
        lambda path, g: jnp.zeros_like(g) if path[0].key == "backbone" else g, gradients
    )


def _preceded(
    first: optax.GradientTransformation, change: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """Changes the gradients that a transformation takes, but not its state.

    A separate link in the chain would add an entry to the state: a run could then not
    be resumed with clipping switched on or off or, with SGD, its backbone unfrozen.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return first.update(change(updates), state, params)

    return optax.GradientTransformation(first.init, update)


def scale_by_path(
    factor: Callable[[tuple[Any, ...]], float],
) -> optax.GradientTransformation:
    """Multiplies each update by a factor that depends on its path in the tree."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, u: u if factor(path) == 1.0 else u * factor(path), updates
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
