"""Model settings of a configuration as arguments of `create_model`, and checks."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from encnet_jax.config_checks import validate
from encnet_jax.errors import UserError
from encnet_jax.models.registry import check_model_settings
from encnet_jax.ops.class_weights import check_class_weights

# Keys of `model` on which neither the arrays nor the results of a trained network
# depend.
TRAINING_ONLY = ("weights", "remat", "conv_impl", "head_init", "freeze_backbone")


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
    return settings


def resolve_dtype(name: str) -> Any:
    """Returns the dtype of the computation; `auto` is resolved by the platform."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
