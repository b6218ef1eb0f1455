"""The Context Encoding Module in prediction: its gate read, and replaced."""

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from encnet_jax.models.encoding import ContextActivations
from encnet_jax.models.segmentation import SegmentationOutput
from encnet_jax.run.state import ModelDef, PureDict

_SMALLEST = 1e-30  # of an assignment, so that its logarithm is finite


class MergedModel(Protocol):
    """A network without its arrays: a `ModelDef`, or what takes its place."""

    def merge(self, params: PureDict, batch_stats: PureDict, /) -> Any:
        """Returns the network with the given arrays."""


def has_context(model: Any) -> bool:
    """Returns whether a network has a Context Encoding Module before its classifier."""
    return hasattr(model, "forward_with_context")


def forward_with_gate(
    model: Any, images: Float[Array, "b h w c"]
) -> tuple[SegmentationOutput, Float32[Array, "b c"] | None]:
    """Returns `forward_low_res` and the gate; None for networks without the module."""
    if not has_context(model):
        return model.forward_low_res(images), None
    output, context = model.forward_with_context(images)
    return output, context.gate


class GatedDef(NamedTuple):
    """The definition of a network whose gate is one of its parameters.

    Attributes:
        model_def: Definition of an EncNet.
    """

    model_def: ModelDef

    def merge(self, params: PureDict, batch_stats: PureDict) -> "_Gated":
        """Returns the network.

        Args:
            params: `model`, the parameters of the EncNet, and `gate`, (c,), for every
                image.
            batch_stats: Running statistics.
        """
        model = self.model_def.merge(params["model"], batch_stats)
        return _Gated(model, params["gate"])


class AssignmentDef(NamedTuple):
    """The definition of a network whose classes are the codewords.

    Its probabilities are the assignment of `ContextActivations`. Without codewords
    there is one class.

    Attributes:
        model_def: Definition of an EncNet.
        views: How many views of each window are added: 2 with mirror images, whose
            assignment is then the geometric mean.
    """

    model_def: ModelDef
    views: int = 1

    def merge(self, params: PureDict, batch_stats: PureDict) -> "_Assignment":
        """Returns the network; arguments as of `ModelDef.merge`."""
        return _Assignment(self.model_def.merge(params, batch_stats), self.views)


class _Gated:
    def __init__(self, model: Any, gate: Float32[Array, " c"]):
        self.align_corners, self.padded_size = model.align_corners, model.padded_size
        self._model, self._gate = model, gate

    def forward_low_res(self, images: Float[Array, "b h w c"]) -> SegmentationOutput:
        gate = jnp.broadcast_to(self._gate, (images.shape[0], self._gate.shape[0]))
        return self._model.forward_with_context(images, gate)[0]


class _Assignment:
    def __init__(self, model: Any, views: int):
        self.align_corners, self.padded_size = model.align_corners, model.padded_size
        self._model, self._views = model, views

    def forward_with_context(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[SegmentationOutput, ContextActivations]:
        _, context = self._model.forward_with_context(images)
        assignment = context.assignment
        if assignment is None:
            assignment = jnp.ones((*context.features.shape[:3], 1), jnp.float32)
        logits = jnp.log(jnp.maximum(assignment, _SMALLEST))
        return SegmentationOutput(logits / self._views), context
