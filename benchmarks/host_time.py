"""Host time of a training step: python -m benchmarks.host_time [--backbone=resnet50].

Times a jitted function that donates the whole training state and does almost nothing on
the device. What remains is the overhead of Python and JAX: flattening the state,
dispatch, and unflattening, as in the real step.
"""

import functools
import statistics
import time

import jax
from absl import flags
from flax import nnx

from encnet_jax import cli
from encnet_jax.models import create_model
from encnet_jax.optimizer import create_optimizer, poly_schedule
from encnet_jax.run.state import TrainState, create_train_state, split_model

_BACKBONE = flags.DEFINE_string("backbone", "resnet50", "Backbone.")
_CALLS = flags.DEFINE_integer("calls", 200, "Number of timed calls.")


def main(arguments: list[str]) -> None:
    """Prints the median over the calls."""
    cli.reject_positional(arguments)
    model = nnx.eval_shape(
        lambda: create_model("encnet", num_classes=150, backbone=_BACKBONE.value)
    )
    _, params, batch_stats = split_model(model)
    params, batch_stats = jax.tree.map(
        lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), (params, batch_stats)
    )
    tx = create_optimizer(poly_schedule(0.01, 1000))
    state = create_train_state(params, batch_stats, tx)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState) -> TrainState:
        return state._replace(step=state.step + 1)

    state = jax.block_until_ready(step(state))
    times = []
    for _ in range(_CALLS.value):
        started = time.perf_counter()
        state = jax.block_until_ready(step(state))
        times.append(1000 * (time.perf_counter() - started))
    leaves, median = len(jax.tree.leaves(state)), statistics.median(times)
    print(
        f"{_BACKBONE.value}: {leaves} arrays, {median:.2f} ms of host time per step "
        f"(median of {len(times)}, fastest {min(times):.2f})"
    )


if __name__ == "__main__":
    cli.run(main)
