"""EncNet in JAX/Flax: context encoding for semantic segmentation.

`Segmenter` and `Classifier` predict, `fit` trains on arrays in memory or on a data set
object, `create_model` builds networks, `load_torch_weights` fills them with published
weights, and `DatasetInfo` names their classes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from encnet_jax.errors import UserError as UserError

if TYPE_CHECKING:
    from encnet_jax.convert.load import load_torch_weights as load_torch_weights
    from encnet_jax.data.dataset_info import DatasetInfo as DatasetInfo
    from encnet_jax.fit_arrays import fit as fit
    from encnet_jax.models.registry import create_model as create_model
    from encnet_jax.predict.predictor import Classifier as Classifier
    from encnet_jax.predict.predictor import Segmenter as Segmenter

__version__ = "0.2.0"  # the only place; pyproject.toml reads it

# Imported on first access: importing JAX takes a second.
_LAZY = {
    "Classifier": "predict.predictor",
    "DatasetInfo": "data.dataset_info",
    "Segmenter": "predict.predictor",
    "create_model": "models.registry",
    "fit": "fit_arrays",
    "load_torch_weights": "convert.load",
}
__all__ = [*_LAZY, "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"encnet_jax.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'encnet_jax' has no attribute {name!r}")
