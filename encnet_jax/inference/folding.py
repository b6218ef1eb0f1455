"""Trained models rewritten for prediction: the same function, fewer operations."""

import jax
from flax import nnx

from encnet_jax.models.layers import ConvBN
from encnet_jax.run.state import ModelDef, PureDict, split_model

# Read by the loss only.
_TRAINING_HEADS = ("aux_head", "stage3_reduce", "stage3_context")


class InferenceModel:
    """A segmentation model in eval mode, batch norm folded into the convolutions.

    Heads that only the loss reads are removed. See `ConvBN.fold` for the arithmetic.

    Args:
        model: A segmentation model, or an abstract one (shapes only); not modified.

    Attributes:
        model_def: The folded model without its arrays.
    """

    def __init__(self, model: nnx.Module):
        self._trained, *_ = split_model(model)
        self.model_def, *self._shapes = split_model(nnx.eval_shape(_fold, model))

    def shapes(self) -> tuple[PureDict, PureDict]:
        """Returns the shapes of what `arrays` returns."""
        params, batch_stats = self._shapes
        return params, batch_stats

    def arrays(
        self, params: PureDict, batch_stats: PureDict
    ) -> tuple[PureDict, PureDict]:
        """Folds trained weights and running statistics into arrays for `model_def`.

        NumPy arrays on the host, so that nothing is compiled.
        """
        trained = self._trained.merge_abstract(*jax.device_get((params, batch_stats)))
        _, params, batch_stats = split_model(_fold(trained))
        return params, batch_stats


def fold_model(model: nnx.Module) -> tuple[ModelDef, PureDict, PureDict]:
    """Returns the folded definition of a model and its arrays, as `InferenceModel`."""
    _, params, batch_stats = split_model(model)
    folded = InferenceModel(model)
    return folded.model_def, *folded.arrays(params, batch_stats)


def eval_model_def(model: nnx.Module) -> ModelDef:
    """Returns the definition of a model in eval mode, for arrays passed in later."""
    model = nnx.clone(model)
    model.eval()
    return split_model(model)[0]


def _fold(model: nnx.Module) -> nnx.Module:
    model = nnx.clone(model)
    model.eval()
    for name in _TRAINING_HEADS:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    for layer in [m for _, m in nnx.iter_modules(model) if isinstance(m, ConvBN)]:
        layer.fold()
    return model
