"""What predictors return for one image."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Num, UInt8
from PIL import Image

from encnet_jax.visualize.overlay import overlay, palette_image


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """The result of a `Segmenter`.

    Attributes:
        labels: The class index of each pixel, at the size of the image. The files of
            `predict.py` hold the data set's own values, see `label_image`.
        presence: The probability that each class occurs in the image, from the
            semantic encoding branch; None without one.
        class_names: n names.
        colors: n RGB triples.
        image: The image in RGB, upright; of a model of other channels as it is shown.
    """

    labels: UInt8[np.ndarray, "h w"]
    presence: Float32[np.ndarray, " n"] | None
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    image: UInt8[np.ndarray, "h w 3"]
    _compute_probabilities: Callable[[Num[np.ndarray, "h w c"]], np.ndarray] = (
        dataclasses.field(repr=False)
    )
    _pixels: np.ndarray | None = dataclasses.field(default=None, repr=False)

    @property
    def pixels(self) -> np.ndarray:
        """What the network was given: `image`, or bands uint16 (h, w, c)."""
        return self.image if self._pixels is None else self._pixels

    @functools.cached_property
    def probabilities(self) -> Float32[np.ndarray, "h w n"]:
        """The probability of each class at each pixel, at the size of the image.

        This is the softmax of the resized logits or, for windows with mirror images
        (`flip`), of the sum over both, as PyTorch-Encoding adds them; it is thus more
        confident than either. It takes another pass of the network on first use, and is
        kept: 4 h w n bytes. The largest is that of `labels`, except where two are equal
        to rounding. Where the scores of windows underflow for all classes, all are 0.
        """
        return self._compute_probabilities(self.pixels)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is pickled: all but the network, which cannot be.

        `probabilities` are in it if they have been computed.
        """
        return {**vars(self), "_compute_probabilities": _without_network}

    def __copy__(self) -> "Segmentation":
        """Returns a copy that shares the arrays and the network."""
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> "Segmentation":
        """Returns a copy with arrays of its own; the network is shared."""
        new = self.__copy__()
        for key, value in vars(self).items():
            if key != "_compute_probabilities":
                vars(new)[key] = copy.deepcopy(value, memo)
        return new

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """Returns the image tinted with the colors of its classes, with a legend."""
        return overlay(
            self.image, self.labels, self.colors, self.class_names, opacity=opacity
        )

    def palette(self) -> Image.Image:
        """Returns the labels as a palette image whose indices are classes."""
        return palette_image(self.labels, self.colors)


def _without_network(pixels: np.ndarray) -> np.ndarray:
    raise RuntimeError(
        "probabilities: not computed before this result was pickled, and the network "
        "is not part of it; read them first"
    )


class ClassPrediction(NamedTuple):
    """The result of a `Classifier`.

    Attributes:
        label: The most probable class.
        probabilities: The probability of each class.
        class_names: n names.
    """

    label: int
    probabilities: Float32[np.ndarray, " n"]
    class_names: tuple[str, ...]
