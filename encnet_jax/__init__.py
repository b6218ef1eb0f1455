"""EncNet in JAX/Flax: context encoding for semantic segmentation.

`Segmenter` predicts, `Classifier` too, `fit` trains from arrays;
`encnet_jax.models.create_model` builds networks.
"""

import importlib
from typing import Any

from encnet_jax.errors import UserError

__all__ = [
    "Classifier",
    "Segmenter",
    "UserError",
    "create_model",
    "fit",
    "load_torch_weights",
]

# Imported when they are asked for: importing JAX takes a second.
_LAZY = {
    "Classifier": "predict.predictor",
    "Segmenter": "predict.predictor",
    "create_model": "models.registry",
    "fit": "fit_arrays",
    "load_torch_weights": "convert.load",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"encnet_jax.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'encnet_jax' has no attribute {name!r}")
