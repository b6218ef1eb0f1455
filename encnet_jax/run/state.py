"""The one tree that training carries from step to step, and its way to a module."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

PureDict = dict[Any, Any]


class TrainState(NamedTuple):
    """Everything that a step changes, as nested dicts of arrays.

    Plain dicts cost 2 ms of host time a step where `nnx.State` costs 11 and `nnx.jit`
    46 (110 blocks, slow CPU).

    Attributes:
        step: int32 scalar, the number of steps taken.
        params: Weights, float32.
        batch_stats: Running means and variances, float32.
        opt_state: State of the optimizer.
    """

    step: jax.Array
    params: PureDict
    batch_stats: PureDict
    opt_state: Any


class ModelDef(NamedTuple):
    """A model without its arrays: what does not change while training."""

    graphdef: Any
    params: nnx.State
    batch_stats: nnx.State
    rest: nnx.State  # the shapes of random number streams

    def merge(self, params: PureDict, batch_stats: PureDict) -> nnx.Module:
        """Returns a module of its own variables around the given arrays.

        Its random number streams start at key 0: `nnx.reseed` it before training.
        """
        return self._merge(
            params, batch_stats, jax.tree.map(_initial_stream, self.rest)
        )

    def merge_abstract(self, params: PureDict, batch_stats: PureDict) -> nnx.Module:
        """As `merge`, without random numbers: for its arrays, not for calling it."""
        return self._merge(params, batch_stats, self.rest)

    def _merge(
        self, params: PureDict, batch_stats: PureDict, rest: nnx.State
    ) -> nnx.Module:
        return nnx.merge(
            self.graphdef,
            _filled(self.params, params),
            _filled(self.batch_stats, batch_stats),
            rest,
            copy=True,
        )


def split_model(model: nnx.Module) -> tuple[ModelDef, PureDict, PureDict]:
    """Returns the model_def, the parameters and the statistics of a model."""
    parts: Any = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    graphdef, params, batch_stats, rest = parts
    model_def = ModelDef(
        graphdef, _abstract(params), _abstract(batch_stats), _abstract(rest)
    )
    return model_def, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def create_train_state(
    params: PureDict, batch_stats: PureDict, tx: optax.GradientTransformation
) -> TrainState:
    """Returns the state at step 0."""
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params))


def pure_batch_stats(model: nnx.Module) -> PureDict:
    """Returns the running statistics of a model after a call in training mode."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def _abstract(state: nnx.State) -> nnx.State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def _filled(template: nnx.State, values: PureDict) -> nnx.State:
    state = jax.tree.map(lambda x: x, template)  # a copy: replacing changes it
    nnx.replace_by_pure_dict(state, values)
    return state


def _initial_stream(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    # Made anew, so that a compiled function has no array of the device as a constant.
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(leaf.shape, leaf.dtype)
