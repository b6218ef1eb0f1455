"""Training state as one tree of arrays, and models split into definition and arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Sharding

PureDict = dict[Any, Any]


class TrainState(NamedTuple):
    """Everything a step changes, as nested dicts of arrays.

    Plain dicts cost 2 ms of host time per step; `nnx.State` 11 and `nnx.jit` 46 (110
    blocks, slow CPU).

    Attributes:
        step: int32 scalar, number of steps taken.
        params: Parameters, float32.
        batch_stats: Running means and variances, float32.
        opt_state: State of the optax optimizer.
        ema: Exponential moving averages of `params` and `batch_stats` under these keys;
            empty if none are kept.
    """

    step: jax.Array
    params: PureDict
    batch_stats: PureDict
    opt_state: Any
    ema: PureDict

    @property
    def evaluated(self) -> tuple[PureDict, PureDict]:
        """The parameters and running statistics to evaluate: averages, if kept."""
        if self.ema:
            return self.ema["params"], self.ema["batch_stats"]
        return self.params, self.batch_stats


class ModelDef(NamedTuple):
    """A model without its arrays: the static part of training.

    Attributes:
        graphdef: Structure of the modules.
        params: Shapes and dtypes of the parameters.
        batch_stats: Shapes and dtypes of the running statistics.
        rest: Shapes and dtypes of the random number streams.
    """

    graphdef: Any
    params: nnx.State
    batch_stats: nnx.State
    rest: nnx.State

    def merge(self, params: PureDict, batch_stats: PureDict) -> nnx.Module:
        """Returns a new module that holds the given arrays.

        Its random number streams start at key 0: `nnx.reseed` it before training.
        """
        rest = jax.tree.map(_initial_stream, self.rest)
        return self._merge(params, batch_stats, rest)

    def merge_abstract(self, params: PureDict, batch_stats: PureDict) -> nnx.Module:
        """As `merge`, but with abstract random streams: to inspect, not to call."""
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
    """Splits a model into definition, parameters and running statistics."""
    parts: Any = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    graphdef, params, batch_stats, rest = parts
    model_def = ModelDef(
        graphdef, _abstract(params), _abstract(batch_stats), _abstract(rest)
    )
    return model_def, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def create_train_state(
    params: PureDict,
    batch_stats: PureDict,
    tx: optax.GradientTransformation,
    *,
    keep_ema: bool = False,
) -> TrainState:
    """Returns the state at step 0.

    Args:
        params: Parameters.
        batch_stats: Running statistics.
        tx: The optimizer.
        keep_ema: Whether to keep moving averages; they start at the initial values.
    """
    ema = {}
    if keep_ema:  # copies: the state is donated
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    return TrainState(
        jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema
    )


def pure_batch_stats(model: nnx.Module) -> PureDict:
    """Returns the running statistics of a model after a call in training mode."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def flatten_paths(tree: Any) -> dict[str, Any]:
    """Returns the leaves of nested dicts by path, keys joined by dots."""
    return {
        _path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def from_paths(arrays: Mapping[str, Any], like: Any) -> Any:
    """Returns nested dicts with the arrays that `flatten_paths` returned.

    Args:
        arrays: Path -> array; others than those of `like` are left out.
        like: A tree of the same structure.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: arrays[_path_name(path)], like
    )


def shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the leaves of nested dicts by path, keys joined by dots."""
    return {path: tuple(leaf.shape) for path, leaf in flatten_paths(tree).items()}


def abstract_arrays(tree: Any, sharding: Sharding) -> Any:
    """Returns a tree with the shapes and dtypes of its arrays, and their placement."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _path_name(path: Any) -> str:
    return ".".join(str(getattr(key, "key", key)) for key in path)


def _abstract(state: nnx.State) -> nnx.State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def _filled(template: nnx.State, values: PureDict) -> nnx.State:
    state = jax.tree.map(lambda x: x, template)  # replacing works in place
    nnx.replace_by_pure_dict(state, values)
    return state


def _initial_stream(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    # Created inside the traced function, which must not close over a device array.
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(leaf.shape, leaf.dtype)
