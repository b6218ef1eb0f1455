"""Model settings of a configuration as arguments of `create_model`, and checks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from encnet_jax.config import default
from encnet_jax.config_checks import validate
from encnet_jax.errors import UserError
from encnet_jax.models.registry import check_model_settings, create_model
from encnet_jax.ops.class_weights import check_class_weights
from encnet_jax.run.state import ModelDef, PureDict, split_model

# Keys of `model` on which neither the arrays nor the results of a trained network
# depend.
TRAINING_ONLY = ("weights", "remat", "conv_impl", "head_init", "freeze_backbone")
# Attributes of layers of which the same holds.
_NOT_PREDICTION = frozenset(
    "impl remat dtype freeze_backbone deterministic use_running_average rate momentum "
    "unbiased_running_var".split()
)


def check_config(config: ConfigDict) -> None:
    """Raises `UserError` for the first key or value that is not allowed."""
    validate(config)
    # The number of classes is known only once the data set is open.
    check_model_settings(num_classes=2, **model_settings(config))
    weights, balance = tuple(config.loss.class_weights), config.loss.class_balance
    if not weights:
        return
    if balance:
        raise UserError(
            f"loss.class_balance={balance!r}: computes the class weights; with "
            "loss.class_weights it must be ''"
        )
    try:
        check_class_weights(weights)
    except ValueError as error:
        raise UserError(f"loss.class_weights={weights}: {error}") from error


def model_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `create_model` except `num_classes` and `rngs`."""
    settings = config.model.to_dict()
    del settings["weights"]  # read where training starts
    settings["se_stages"] = tuple(settings["se_stages"])
    settings["remat"] = tuple(settings["remat"])
    settings["dtype"] = resolve_dtype(settings["dtype"])
    settings["in_channels"] = config.data.channels
    return settings


def abstract_model(
    config: ConfigDict, num_classes: int
) -> tuple[ModelDef, PureDict, PureDict]:
    """Returns the model of a configuration, with shapes in place of arrays.

    Initializing weights only to replace them would take seconds.

    Returns:
        The definition, and the shapes of parameters and running statistics.
    """
    settings = model_settings(config)
    model = nnx.eval_shape(lambda: create_model(num_classes=num_classes, **settings))
    return split_model(model)


def prediction_attributes(model: nnx.Module) -> dict[tuple[str, type], Any]:
    """Returns what a prediction depends on besides arrays: strides, alignment, gate.

    Returns:
        Path, such as `head.context.residual`, and type of the layer -> value. Two
        networks of equal arrays with other values here predict differently.
    """
    return {
        (".".join(map(str, (*path, name))), type(layer)): value
        for path, layer in nnx.iter_modules(model)
        for name, value in vars(layer).items()
        if isinstance(value, bool | int | float | str | tuple)
        and not name.startswith("_")
        and name not in _NOT_PREDICTION
    }


def config_of_model(settings: Mapping[str, Any]) -> ConfigDict:
    """Returns the default configuration with the network of `create_model`'s arguments.

    Args:
        settings: The arguments. `num_classes` and `rngs`, which are no keys of a
            configuration, are left out.

    Raises:
        UserError: No such setting, or a value of another type.
    """
    config = default()
    others = ("num_classes", "rngs")
    network = {key: value for key, value in settings.items() if key not in others}
    dtype = network.get("dtype", jnp.float32)  # the default of `create_model`
    network["dtype"] = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    for key, value in network.items():
        group, name = config.model, key
        if key == "in_channels":
            group, name = config.data, "channels"
        if name not in group:
            raise UserError(f"model.{key}={value!r}: no such setting of any model")
        allowed = type(group[name]).__name__
        wrong = UserError(f"model.{key}={value!r}: must be {allowed}")
        if value is None:  # which a configuration accepts for any key
            raise wrong
        try:
            group[name] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise wrong from error
    return config


def resolve_dtype(name: str) -> Any:
    """Returns the dtype of the computation; `auto` is resolved by the platform."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
