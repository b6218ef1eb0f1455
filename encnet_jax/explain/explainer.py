"""What `Segmenter.explain` computes: assignment and gate, and labels under a gate."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, Num
from PIL import Image

from encnet_jax.errors import UserError
from encnet_jax.explain.explanation import Explanation
from encnet_jax.inference.context import AssignmentDef, GatedDef, has_context
from encnet_jax.inference.predict_fn import make_label_fn, network_inputs
from encnet_jax.inference.results import Segmentation
from encnet_jax.inference.sliding_window import (
    ImageScores,
    make_score_fn,
    mean_over_windows,
)
from encnet_jax.inference.tta import TTAProtocol
from encnet_jax.run.mean_gate import MeanGate
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.state import ModelDef, PureDict

Pixels = Num[np.ndarray, "h w c"]
Gate = Float32[np.ndarray, " c"]
_Context = tuple[Float32[np.ndarray, "H W k"] | None, Gate]


class Explainer:
    """The functions behind `Segmenter.explain`, compiled when they are first called.

    Args:
        model_def: Definition of an `InferenceModel` of an EncNet.
        params: Its parameters.
        batch_stats: Its running statistics.
        num_classes: Number of classes n.
        resizing: Keyword arguments of `make_label_fn`.
        protocol: How images are cut into windows instead; None: whole.
        read: Reads an image that a user gives.
        stored: A mean gate as `MeanGate.to_json` returns it, or None.

    Raises:
        UserError: The network has no Context Encoding Module.
    """

    def __init__(
        self,
        model_def: ModelDef,
        params: PureDict,
        batch_stats: PureDict,
        *,
        num_classes: int,
        resizing: Mapping[str, Any],
        protocol: TTAProtocol | None,
        read: Callable[[Any], Pixels],
        stored: Any,
    ):
        model: Any = model_def.merge_abstract(params, batch_stats)
        if not has_context(model):
            raise UserError(
                f"{type(model).__name__}: has no Context Encoding Module to explain; "
                "allowed is an EncNet"
            )
        self._params, self._batch_stats = params, batch_stats
        self._read, self._stored = read, stored
        encoding = model.head.context.encoding
        self._channels = model.head.context.gate.out_features
        num_codes = 0 if encoding is None else encoding.codewords.shape[0]
        self._context: Callable[[Pixels], _Context]
        self._labels_under: Callable[[Pixels, np.ndarray], np.ndarray]
        if protocol is None:
            self._whole_images(model_def, resizing)
        else:
            self._windows(model_def, num_classes, num_codes, protocol)

    def replacement(
        self, reference: Iterable[Any] | MeanGate | None, context_from: Any
    ) -> tuple[Gate, str]:
        """Returns the gate that takes the place of an image's own, and what it is.

        Arguments and errors are those of `Segmenter.explain`.
        """
        if context_from is not None:
            if reference is not None:
                raise UserError("reference, context_from: at most one can be given")
            return self._context(self._read(context_from))[1], "that of another image"
        if not isinstance(reference, MeanGate):
            reference = self.mean_gate(reference)
        if reference.gate.shape != (self._channels,):
            raise UserError(
                f"reference: a gate of {reference.gate.size} channels; the features of "
                f"the network have {self._channels}"
            )
        return reference.gate, f"the mean of {reference.images} images"

    def mean_gate(self, images: Iterable[Any] | None) -> MeanGate:
        """Returns the mean gate over images; see `Segmenter.mean_gate`."""
        if images is None:
            if self._stored is None:
                raise UserError(
                    "no mean gate is stored with this model, as trainings store it "
                    "with each evaluation: give reference images, or context_from"
                )
            return MeanGate.from_json(self._stored)
        one = isinstance(images, str | os.PathLike | Image.Image)
        if one or getattr(images, "ndim", 0) == 3:
            images = [images]
        gates = [self._context(self._read(image))[1] for image in images]
        if not gates:
            raise UserError("reference: no images")
        mean = np.asarray(np.mean(gates, 0, dtype=np.float64), np.float32)
        return MeanGate(mean, len(gates))

    def explain(
        self, segmentation: Segmentation, replacement: Gate, replaced_by: str
    ) -> Explanation:
        """Explains a prediction of the same segmenter.

        Args:
            segmentation: The prediction.
            replacement: The gate that takes the place of the image's own.
            replaced_by: What that is, in words.
        """
        assignment, gate = self._context(segmentation.pixels)
        return Explanation(
            segmentation=segmentation,
            assignment=assignment,
            gate=gate,
            replacement=replacement,
            replaced_by=replaced_by,
            labels_without_context=self._labels_under(segmentation.pixels, replacement),
        )

    def assignment(self, pixels: Pixels) -> Float32[np.ndarray, "H W k"] | None:
        """Returns `Explanation.assignment` of an image."""
        return self._context(pixels)[0]

    def _whole_images(self, model_def: ModelDef, resizing: Mapping[str, Any]) -> None:
        @jax.jit
        def context(
            params: PureDict, batch_stats: PureDict, images: Num[Array, "b h w c"]
        ) -> tuple[jax.Array | None, jax.Array]:
            model: Any = model_def.merge(params, batch_stats)
            inputs, _ = network_inputs(model, images, **resizing)
            _, found = model.forward_with_context(inputs)
            assignment = None if found.assignment is None else found.assignment[0]
            return assignment, found.gate[0]

        label = make_label_fn(GatedDef(model_def), **resizing)
        self._context = lambda pixels: jax.device_get(
            context(self._params, self._batch_stats, pixels[None])
        )
        self._labels_under = lambda pixels, gate: np.asarray(
            label(self._gated(gate), self._batch_stats, pixels[None]).labels[0]
        )

    def _windows(
        self,
        model_def: ModelDef,
        num_classes: int,
        num_codes: int,
        protocol: TTAProtocol,
    ) -> None:
        mesh = mesh_of(jax.local_devices()[:1])
        contexts_of = make_score_fn(
            AssignmentDef(model_def, views=2 if protocol.mirror_windows else 1),
            max(num_codes, 1),
            protocol,
            mesh,
        )
        scores_of = make_score_fn(GatedDef(model_def), num_classes, protocol, mesh)

        def run(score_fn: Any, params: PureDict, pixels: Pixels) -> ImageScores:
            return next(score_fn(params, self._batch_stats, [(0, pixels)], 1))

        def context(pixels: Pixels) -> _Context:
            result = run(contexts_of, self._params, pixels)
            scores, gate = result.score_map.scores(), mean_over_windows(result.gates)
            assert gate is not None
            # All scores are above 0, and windows cover the image.
            scores /= scores.sum(-1, keepdims=True)
            return scores if num_codes else None, gate

        self._context = context
        self._labels_under = lambda pixels, gate: (
            run(scores_of, self._gated(gate), pixels).score_map.labels().fetch()
        )

    def _gated(self, gate: np.ndarray) -> PureDict:
        return {"model": self._params, "gate": gate}
