"""Stops a diverging run before its weights are saved."""

import math

import jax
import jax.numpy as jnp
import optax

from encnet_jax.run.state import PureDict

_ADVICE = (
    "the checkpoints before it are kept. Try a lower learning_rate or more "
    "optimizer.warmup_steps"
)


class FiniteCheck:
    """Losses of the steps since the last check; one by one they would stall the device.

    Both checks raise `FloatingPointError`, which names the step.
    """

    def __init__(self) -> None:
        self._losses: list[jax.Array] = []

    def add(self, loss: jax.Array) -> None:
        """Adds the loss of a step, which may not have been computed yet."""
        self._losses.append(loss)

    def check_losses(self, step: int) -> None:
        """Raises unless the losses up to that of `step`, the last added, are finite."""
        losses = jax.device_get(self._losses)
        self._losses.clear()
        for loss_step, loss in enumerate(losses, step - len(losses) + 1):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {loss_step}; {_ADVICE}"
                )

    def check_weights(self, step: int, params: PureDict) -> None:
        """Raises unless losses and weights are finite.

        The last update can ruin the weights although its own loss was finite.
        """
        self.check_losses(step)
        if not _finite_norm(params):
            raise FloatingPointError(
                f"the weights are not finite, or huge, after step {step}; {_ADVICE}"
            )


@jax.jit
def _finite_norm(params: PureDict) -> jax.Array:
    """Returns whether the sum of the squares of all weights is finite."""
    return jnp.isfinite(optax.tree.norm(params))
