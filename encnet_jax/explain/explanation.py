"""`Explanation`: what the Context Encoding Module saw in an image, and its effect."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from encnet_jax.inference.results import Segmentation

_SHOWN_CHANNELS = 8  # in `raised` and `lowered`


class ChannelDifference(NamedTuple):
    """A channel of the features, and its gate minus the replacement."""

    channel: int
    difference: float


class Transition(NamedTuple):
    """Pixels that change from one class to another with the gate replaced."""

    from_class: int
    to_class: int
    pixels: int


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """The result of `Segmenter.explain`.

    Attributes:
        segmentation: The prediction, as `segmenter(image)` returns it.
        assignment: How much of each pixel each of k codewords takes; sums to 1. At the
            resolution of the features, which cover the image as it was padded
            (`pad_to_stride`); of a segmenter that cuts images into windows, the mean
            over the windows at the size of the image, which is geometric where scores
            are averaged as logits. None for a network without codewords, `num_codes=0`.
        gate: The factor of each of c channels, 0 to 1; the mean over windows.
        replacement: The gate that took its place: the mean over reference images, or
            that of another image.
        replaced_by: What that is, in words.
        labels_without_context: The class index of each pixel with the replacement.
    """

    segmentation: Segmentation
    assignment: Float32[np.ndarray, "H W k"] | None
    gate: Float32[np.ndarray, " c"]
    replacement: Float32[np.ndarray, " c"]
    replaced_by: str
    labels_without_context: UInt8[np.ndarray, "h w"]

    @property
    def presence(self) -> Float32[np.ndarray, " n"] | None:
        """The probability that each class occurs; see `Segmentation`."""
        return self.segmentation.presence

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the n classes."""
        return self.segmentation.class_names

    @property
    def raised(self) -> tuple[ChannelDifference, ...]:
        """The channels whose gate is most above the replacement, largest first."""
        return self._channels(1)

    @property
    def lowered(self) -> tuple[ChannelDifference, ...]:
        """The channels whose gate is most below the replacement, lowest first."""
        return self._channels(-1)

    @functools.cached_property
    def changed(self) -> Bool[np.ndarray, "h w"]:
        """The pixels whose class is another with the replacement."""
        return self.segmentation.labels != self.labels_without_context

    @functools.cached_property
    def transitions(self) -> tuple[Transition, ...]:
        """From which class to which the changed pixels go, most pixels first."""
        changed = self.changed
        pairs = np.stack(
            [self.segmentation.labels[changed], self.labels_without_context[changed]]
        )
        classes, counts = np.unique(pairs, axis=1, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        rows = zip(*classes[:, order].tolist(), counts[order].tolist())
        return tuple(Transition(*row) for row in rows)

    def figure(self) -> Image.Image:
        """Returns all of it as one figure.

        The image; the prediction; the prediction without context, with the changed
        pixels marked; the most used codewords as maps; presence and channels as bars.
        """
        from encnet_jax.explain.figure import draw_explanation

        return draw_explanation(self)

    def _channels(self, sign: int) -> tuple[ChannelDifference, ...]:
        difference = self.gate - self.replacement
        order = np.argsort(-sign * difference, kind="stable")[:_SHOWN_CHANNELS]
        return tuple(
            ChannelDifference(k, float(difference[k]))
            for k in order.tolist()
            if sign * difference[k] > 0
        )
