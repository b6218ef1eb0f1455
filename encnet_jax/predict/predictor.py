"""`Segmenter` and `Classifier`: trained models as functions of one image."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from encnet_jax.convert.load import load_torch_model
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.errors import UserError
from encnet_jax.evaluate.settings import (
    protocol_from_config,
    set_protocol,
    whole_image_size,
)
from encnet_jax.inference.folding import fold_model
from encnet_jax.inference.predict_fn import (
    make_classify_fn,
    make_label_fn,
    make_probability_fn,
)
from encnet_jax.inference.sliding_window import (
    ImageScores,
    make_score_fn,
    mean_presence,
)
from encnet_jax.inference.tta import TTAProtocol
from encnet_jax.predict.pretrained import Pretrained
from encnet_jax.predict.read_image import ImageInput, read_image
from encnet_jax.run.model_config import abstract_model
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.state import split_model
from encnet_jax.run.workdir import LoadedRun
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
        image: The image in RGB, upright.
    """

    labels: UInt8[np.ndarray, "h w"]
    presence: Float32[np.ndarray, " n"] | None
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    image: UInt8[np.ndarray, "h w 3"]
    _compute_probabilities: Callable[[UInt8[np.ndarray, "h w 3"]], np.ndarray] = (
        dataclasses.field(repr=False)
    )

    @functools.cached_property
    def probabilities(self) -> Float32[np.ndarray, "h w n"]:
        """The probability of each class at each pixel, at the size of the image.

        The softmax of the resized logits. Computed by another pass of the network on
        first use, and kept: 4 h w n bytes. The largest is that of `labels`, except
        where two are equal to rounding.
        """
        return self._compute_probabilities(self.image)

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """Returns the image tinted with the colors of its classes, with a legend."""
        return overlay(
            self.image, self.labels, self.colors, self.class_names, opacity=opacity
        )

    def palette(self) -> Image.Image:
        """Returns the labels as a palette image whose indices are classes."""
        return palette_image(self.labels, self.colors)


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


class Segmenter(Pretrained):
    """Segments images of any size: whole, compiled once per size, or in windows.

    Args:
        model: A segmentation model with its weights, which are copied.
        info: Class names, colors and normalization.
        base_size: Long side in the network, in pixels; 0 keeps the size of the image.
        align_corners: How images and logits are resized; see `whole_image_logits`.
        protocol: How images are cut into windows and resized instead; None: whole.
        settings: Arguments of `create_model` that built the model, `num_classes` aside;
            for `save_pretrained`.
    """

    task = "segmentation"

    def __init__(
        self,
        model: nnx.Module,
        info: DatasetInfo,
        base_size: int = 0,
        align_corners: bool = False,
        protocol: TTAProtocol | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ):
        super().__init__(model, info, settings)
        self.base_size = base_size
        self.align_corners = align_corners
        self.protocol = protocol
        model_def, *arrays = fold_model(model)
        self._params, self._batch_stats = jax.device_put(arrays)
        resizing: dict[str, Any] = dict(
            mean=info.mean,
            std=info.std,
            base_size=base_size,
            align_corners=align_corners,
        )
        self._label = make_label_fn(model_def, **resizing)
        self._probabilities = make_probability_fn(model_def, **resizing)
        self._scores: Callable[[np.ndarray], ImageScores] | None = None
        if protocol is not None:
            mesh = mesh_of(jax.local_devices()[:1])
            scores_of = make_score_fn(model_def, info.num_classes, protocol, mesh)
            # One window at a time: most images have few, and batches are padded.
            self._scores = lambda pixels: next(
                scores_of(self._params, self._batch_stats, [(0, pixels)], 1)
            )

    @classmethod
    def _of_run(cls, run: LoadedRun) -> "Segmenter":
        model = run.model
        return cls(
            model,
            run.info,
            whole_image_size(run.config),
            run.config.evaluation.align_corners,
            protocol_from_config(run.config, model, run.info),
            settings=run.config.model.to_dict(),
        )

    def _set_prediction(self, config: ConfigDict) -> None:
        set_protocol(config, self.base_size, self.align_corners, self.protocol)
        model_def, *shapes = abstract_model(config, self.info.num_classes)
        model = model_def.merge_abstract(*shapes)
        if protocol_from_config(config, model, self.info) != self.protocol:
            raise UserError(
                f"protocol={self.protocol}: align_corners, mean and std must be those "
                "of the model, for it to be saved"
            )

    @classmethod
    def from_torch(
        cls,
        path: str | Path,
        class_names: Sequence[str] | None = None,
        *,
        source: str = "auto",
        prefix: str = "",
        base_size: int = 520,
        **settings: Any,
    ) -> "Segmenter":
        """Loads weights of PyTorch-Encoding or mmsegmentation, without PyTorch.

        Images are normalized and resized as in the evaluation of the source.

        Args:
            path: A `.pth` or `.safetensors` file, or `hf://OWNER/REPO/FILE`.
            class_names: One name per class; by default `class 0`, `class 1`, ...
            source: See `load_torch_weights`.
            prefix: Likewise.
            base_size: Long side in the network, in pixels; 0 keeps the size of the
                image. 520 is PyTorch-Encoding's.
            **settings: Arguments of `create_model` that override those inferred from
                the file.

        Raises:
            UserError: The file holds no known network, or the number of names differs
                from the number of classes.
        """
        model, description = load_torch_model(path, source, prefix, **settings)
        count = description.settings["num_classes"]
        names = tuple(class_names or (f"class {i}" for i in range(count)))
        if len(names) != count:
            raise UserError(f"{path}: {count} classes; {len(names)} names were given")
        info = DatasetInfo(
            name=description.source,
            class_names=names,
            colors=voc_colormap(count),
            splits={},
            mean=description.mean,
            std=description.std,
        )
        corners = settings.get("align_corners", description.resize_align_corners)
        return cls(model, info, base_size, corners, settings=description.settings)

    def __call__(self, image: ImageInput) -> Segmentation:
        """Segments one image.

        Args:
            image: A file, a PIL image, or an RGB array (NumPy, JAX), 0-255.

        Raises:
            UserError: The file cannot be read or decoded.
            TypeError: Another type, or an array of another dtype or shape.
        """
        pixels = read_image(image, self.info.value_range)
        labels, presence = self._segment(pixels)
        return Segmentation(
            labels=labels,
            presence=presence,
            class_names=self.info.class_names,
            colors=self.info.colors,
            image=pixels,
            _compute_probabilities=self._compute_probabilities,
        )

    def _segment(
        self, pixels: UInt8[np.ndarray, "h w 3"]
    ) -> tuple[UInt8[np.ndarray, "h w"], Float32[np.ndarray, " n"] | None]:
        if self._scores is not None:
            result = self._scores(pixels)
            return result.score_map.labels().fetch(), mean_presence(result.presence)
        batch = self._label(self._params, self._batch_stats, pixels[None])
        labels, presence = jax.device_get(batch)
        return labels[0], None if presence is None else presence[0]

    def _compute_probabilities(
        self, pixels: UInt8[np.ndarray, "h w 3"]
    ) -> Float32[np.ndarray, "h w n"]:
        if self._scores is not None:  # sums of powers or of softmaxes
            scores = self._scores(pixels).score_map.scores()
            return scores / scores.sum(-1, keepdims=True)
        batch = self._probabilities(self._params, self._batch_stats, pixels[None])
        return np.asarray(batch[0])


class Classifier(Pretrained):
    """Classifies images of any size, resized to that of the training.

    Args:
        model: A classifier with its weights.
        info: Class names and normalization.
        size: Height and width in the network; other aspect ratios are center-cropped.
        settings: As in `Segmenter`.
    """

    task = "classification"

    def __init__(
        self,
        model: nnx.Module,
        info: DatasetInfo,
        size: int,
        *,
        settings: Mapping[str, Any] | None = None,
    ):
        super().__init__(model, info, settings)
        _, self._params, self._batch_stats = split_model(model)
        self._classify = make_classify_fn(model, mean=info.mean, std=info.std)
        self.size = size

    @classmethod
    def _of_run(cls, run: LoadedRun) -> "Classifier":
        settings = run.config.model.to_dict()
        return cls(run.model, run.info, run.config.data.crop_size, settings=settings)

    def _set_prediction(self, config: ConfigDict) -> None:
        config.data.crop_size = operator.index(self.size)

    def __call__(self, image: ImageInput) -> ClassPrediction:
        """Classifies one image; arguments and errors are those of `Segmenter`."""
        fitted = ImageOps.fit(
            Image.fromarray(read_image(image, self.info.value_range)),
            (self.size, self.size),
            Image.Resampling.BILINEAR,
        )
        images = np.asarray(fitted)[None]
        batch = self._classify(self._params, self._batch_stats, images)
        probabilities = np.asarray(batch[0])
        label = int(probabilities.argmax())
        return ClassPrediction(label, probabilities, self.info.class_names)
