"""A trained classifier as a function of a picture."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx
from PIL import Image, ImageOps

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.errors import UserError
from encnet_jax.evaluate.classification import make_classify_fn
from encnet_jax.predict.segmenter import distinct_names, read_image
from encnet_jax.run.state import split_model
from encnet_jax.run.workdir import load_workdir

_LISTED = 3  # classes told of an image


class ClassPrediction(NamedTuple):
    """What a `Classifier` says of a picture.

    Attributes:
        label: The number of its class.
        probabilities: float32 (n,).
        class_names: n names.
    """

    label: int
    probabilities: np.ndarray
    class_names: tuple[str, ...]


class Classifier:
    """Classifies pictures of any size, brought to that of the training.

    Args:
        model: A classifier with its weights.
        info: Names and normalization.
        size: Height and width in the network; of other shapes the middle is taken.
    """

    def __init__(self, model: nnx.Module, info: DatasetInfo, size: int):
        _, params, batch_stats = split_model(model)
        self._arrays = (params, batch_stats)
        self._classify = make_classify_fn(model, info)
        self.info = info
        self.size = size

    @classmethod
    def from_workdir(cls, path: str | Path, step: str | int = "best") -> "Classifier":
        """Loads a model that `train.py` wrote.

        Args:
            path: The workdir.
            step: `"best"`, `"latest"` or the number of a checkpoint.

        Raises:
            UserError: No workdir, no such checkpoint, or a damaged one.
        """
        trained = load_workdir(Path(path), step)
        return cls(trained.model, trained.info, trained.config.data.crop_size)

    def __call__(
        self, image: str | os.PathLike[str] | Image.Image | np.ndarray
    ) -> ClassPrediction:
        """Classifies one picture; arguments and errors are those of `Segmenter`."""
        picture = Image.fromarray(read_image(image))
        size = (self.size, self.size)
        picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
        found = self._classify(*self._arrays, np.asarray(picture)[None])
        probabilities = np.asarray(found[0])
        label = int(probabilities.argmax())
        return ClassPrediction(label, probabilities, self.info.class_names)


def write_classes(
    classifier: Classifier, images: Sequence[Path], output: Path
) -> list[Path]:
    """Writes `classes.json`, file -> class and probabilities; returns the failed.

    An image that cannot be read is named on standard error, and the others are done.
    """
    output.mkdir(parents=True, exist_ok=True)
    found, failed = {}, []
    for path, name in zip(images, distinct_names(images)):
        try:
            result = classifier(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append(path)
            continue
        shares = dict(zip(result.class_names, result.probabilities.tolist()))
        found[name] = {
            "file": str(path),
            "class": result.class_names[result.label],
            "probabilities": shares,
        }
        likely = sorted(shares, key=shares.__getitem__, reverse=True)[:_LISTED]
        print(f"{path}: " + ", ".join(f"{key} {shares[key]:.0%}" for key in likely))
    (output / "classes.json").write_text(json.dumps(found, indent=2) + "\n")
    return failed
