"""`Segmenter` and `Classifier`: trained models as functions of one image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict

from encnet_jax.convert.load import load_torch_model
from encnet_jax.data.bands import displayed
from encnet_jax.data.class_table import check_class_names, given_names
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.data.fit_image import fit_image
from encnet_jax.errors import UserError
from encnet_jax.evaluate.settings import (
    protocol_from_config,
    set_protocol,
    slide_protocol,
    whole_image_size,
)
from encnet_jax.inference.folding import fold_model
from encnet_jax.inference.predict_fn import (
    check_size,
    make_classify_fn,
    make_label_fn,
    make_probability_fn,
)
from encnet_jax.inference.results import ClassPrediction, Segmentation
from encnet_jax.inference.sliding_window import (
    ImageScores,
    make_score_fn,
    mean_over_windows,
)
from encnet_jax.inference.tta import TTAProtocol
from encnet_jax.predict.pretrained import Pretrained, create_settings
from encnet_jax.predict.read_image import ImageInput, read_image
from encnet_jax.run.mean_gate import MeanGate
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.state import split_model
from encnet_jax.run.workdir import LoadedRun

if TYPE_CHECKING:
    from encnet_jax.explain.explainer import Explainer
    from encnet_jax.explain.explanation import Explanation


class Segmenter(Pretrained):
    """Segments images of any size: whole, compiled once per size, or in windows.

    Args:
        model: A segmentation model with its weights, which are copied.
        info: Class names, one per class of the model, colors and normalization.
        base_size: Long side in the network, in pixels; 0 keeps the size of the image.
        align_corners: How images and logits are resized; see `whole_image_logits`.
        protocol: How images are cut into windows and resized instead; None: whole.
        settings: Arguments of `create_model` that built the model, `num_classes` aside;
            for `save_pretrained`.

    Attributes:
        model_def: Definition of the model with batch norm folded into convolutions, an
            `InferenceModel`.
        params: Its parameters, on the device.
        batch_stats: Its running statistics, likewise.

    Raises:
        UserError: `info` has over 255 classes, or another number than the model; that
            of a network that is not one of this package is known in the first call.
            Or `base_size` is no integer of at least 0.
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
        self.base_size = base_size = check_size("base_size", base_size)
        self.align_corners = align_corners
        self.protocol = self.slide_protocol = protocol
        model_def, *arrays = fold_model(model)
        self.params, self.batch_stats = jax.device_put(arrays)
        self.model_def = model_def
        self._explainer: Explainer | None = None
        self._resizing = resizing = dict[str, Any](
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
                scores_of(self.params, self.batch_stats, [(0, pixels)], 1)
            )

    @classmethod
    def _of_run(cls, run: LoadedRun) -> "Segmenter":
        model = run.model
        segmenter = cls(
            model,
            run.info,
            whole_image_size(run.config),
            run.config.evaluation.align_corners,
            protocol_from_config(run.config, model, run.info),
            settings=create_settings(run.config),
        )
        segmenter.slide_protocol = slide_protocol(run.config, model, run.info)
        return segmenter

    def _set_prediction(self, config: ConfigDict, model: Any) -> None:
        set_protocol(config, self.base_size, self.align_corners, self.protocol)
        if protocol_from_config(config, model, self.info) != self.protocol:
            raise UserError(
                f"protocol={self.protocol}: align_corners, mean and std must be those "
                "of the model, for it to be saved"
            )
        if self.slide_protocol is not None:  # of whole images too
            for key in ("crop_size", "stride"):
                config.evaluation[key] = getattr(self.slide_protocol, key)

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

        Images are normalized as in the evaluation of the source.

        Args:
            path: A `.pth` or `.safetensors` file, or `hf://OWNER/REPO[@REVISION]/FILE`.
            class_names: One name per class; by default `class 0`, `class 1`, ...
            source: See `load_torch_weights`.
            prefix: Likewise.
            base_size: Long side in the network, in pixels; 0 keeps the size of the
                image. 520 is PyTorch-Encoding's for a ResNet-50.
            **settings: Arguments of `create_model` that override those inferred from
                the file.

        Raises:
            UserError: The file holds no known network, the number of names differs from
                that of the classes, a name is empty or given twice, or `base_size` is
                no integer of at least 0.
        """
        given = given_names(() if class_names is None else class_names)
        check_class_names(given, "class_names")
        check_size("base_size", base_size)
        model, description = load_torch_model(path, source, prefix, **settings)
        count = description.settings["num_classes"]
        names = given or tuple(f"class {i}" for i in range(count))
        if len(names) != count:
            raise UserError(f"{path}: {count} classes; {len(names)} names were given")
        colors, mean, std = voc_colormap(count), description.mean, description.std
        info = DatasetInfo(description.source, names, colors, {}, mean=mean, std=std)
        corners = settings.get("align_corners", description.resize_align_corners)
        return cls(model, info, base_size, corners, settings=description.settings)

    def __call__(self, image: ImageInput) -> Segmentation:
        """Segments one image.

        Args:
            image: A file, a PIL image, or an RGB array (NumPy, JAX), 0-255; for a model
                of other channels (`data.channels`) an array (h, w, c).

        Raises:
            UserError: The file cannot be read or decoded.
            TypeError: Another type, or an array of another dtype or shape.
        """
        pixels = read_image(image, self.info)
        labels, presence = self._segment(pixels)
        return Segmentation(
            labels=labels,
            presence=presence,
            class_names=self.info.class_names,
            colors=self.info.colors,
            image=displayed(pixels, self.info).copy(),  # to draw on
            _compute_probabilities=self._compute_probabilities,
            _pixels=pixels,
        )

    def explain(
        self,
        image: ImageInput,
        reference: Iterable[ImageInput] | MeanGate | None = None,
        context_from: ImageInput | None = None,
    ) -> "Explanation":
        """Shows what the context does in an image.

        The Context Encoding Module scales each channel by a gate that it computes from
        the whole image. Here another gate takes its place, and what changes is what the
        context decides.

        Args:
            image: As for the call.
            reference: Images over which the gate is averaged to take the place of the
                image's own; or their `mean_gate`. By default the mean over the
                validation split that the training stored.
            context_from: An image whose gate takes its place instead.

        Raises:
            UserError: The network has no Context Encoding Module, no mean gate is
                stored and neither argument given, both are given, or an image cannot be
                read or decoded.
            TypeError: See the call.
        """
        explainer = self.explainer()
        replacement = explainer.replacement(reference, context_from)
        return explainer.explain(self(image), *replacement)

    def mean_gate(self, images: Iterable[ImageInput] | None = None) -> MeanGate:
        """Returns the mean gate over images, to explain several by the same.

        Args:
            images: At least one image; each counts alike. By default those of the
                validation split, over which the training stored it.

        Raises:
            UserError: The network has no Context Encoding Module, there is no image
                and no mean gate is stored, or one cannot be read or decoded.
        """
        return self.explainer().mean_gate(images)

    def explainer(self) -> "Explainer":
        """Returns what `explain` computes with; raises `UserError` as that does."""
        if self._explainer is None:
            from encnet_jax.explain.explainer import Explainer

            self._explainer = Explainer(
                self.model_def,
                self.params,
                self.batch_stats,
                num_classes=self.info.num_classes,
                resizing=self._resizing,
                protocol=self.protocol,
                read=lambda image: read_image(image, self.info),
                stored=self._training.get("mean_gate"),
            )
        return self._explainer

    def _segment(
        self, pixels: UInt8[np.ndarray, "h w 3"]
    ) -> tuple[UInt8[np.ndarray, "h w"], Float32[np.ndarray, " n"] | None]:
        if self._scores is not None:
            result = self._scores(pixels)
            return result.score_map.labels().fetch(), mean_over_windows(result.presence)
        inputs = self.params, self.batch_stats, pixels[None]
        self._check_first_output(self._probabilities, *inputs)
        labels, presence, _ = jax.device_get(self._label(*inputs))
        # Copied, as what a device gives is read-only.
        return labels[0].copy(), None if presence is None else presence[0].copy()

    def _compute_probabilities(
        self, pixels: UInt8[np.ndarray, "h w 3"]
    ) -> Float32[np.ndarray, "h w n"]:
        if self._scores is not None:  # sums of powers or of softmaxes
            scores = self._scores(pixels).score_map.scores()
            least = np.finfo(np.float32).tiny  # all may have underflowed to 0
            return scores / np.maximum(scores.sum(-1, keepdims=True), least)
        batch = self._probabilities(self.params, self.batch_stats, pixels[None])
        return np.asarray(batch[0])


class Classifier(Pretrained):
    """Classifies images of any size, resized to that of the training.

    Args:
        model: A classifier with its weights.
        info: Class names, one per class of the model, and normalization.
        size: Height and width in the network; other aspect ratios are center-cropped.
        settings: As in `Segmenter`, which raises the same errors; `size` is at least 1.
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
        self.size = check_size("size", size, 1)

    @classmethod
    def _of_run(cls, run: LoadedRun) -> "Classifier":
        settings = create_settings(run.config)
        return cls(run.model, run.info, run.config.data.crop_size, settings=settings)

    def _set_prediction(self, config: ConfigDict, model: Any) -> None:
        config.data.crop_size = self.size

    def __call__(self, image: ImageInput) -> ClassPrediction:
        """Classifies one image; arguments and errors are those of `Segmenter`."""
        fitted = fit_image(read_image(image, self.info), (self.size, self.size))
        inputs = self._params, self._batch_stats, fitted[None]
        self._check_first_output(self._classify, *inputs)
        probabilities = np.asarray(self._classify(*inputs)[0])
        label = int(probabilities.argmax())
        return ClassPrediction(label, probabilities, self.info.class_names)
