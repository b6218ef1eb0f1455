"""A trained model as a function of a picture."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from PIL import Image

from encnet_jax.convert.load import load_torch_model
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.data.image_io import decode_image, to_rgb_array
from encnet_jax.errors import UserError
from encnet_jax.inference.predict_fn import fold_model, make_label_fn
from encnet_jax.run.workdir import load_workdir
from encnet_jax.visualize.overlay import overlay, palette_image


class Segmentation(NamedTuple):
    """What a `Segmenter` says of a picture.

    Attributes:
        labels: uint8 (h, w), the class of each pixel, at the picture's own size.
        presence: float32 (n,), probability that each class is in the picture, of the
            semantic encoding branch; None if the model has none.
        class_names: n names.
        colors: n RGB triples.
        image: uint8 (h, w, 3), the picture upright and in RGB.
    """

    labels: np.ndarray
    presence: np.ndarray | None
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    image: np.ndarray

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """Returns the picture under the colors of its classes, with a legend."""
        return overlay(
            self.image, self.labels, self.colors, self.class_names, opacity=opacity
        )

    def palette(self) -> Image.Image:
        """Returns the labels as a palette image: indices are classes."""
        return palette_image(self.labels, self.colors)


class Segmenter:
    """Segments pictures of any size; compiled once for each size in the network.

    Args:
        model: A segmentation model with its weights; copied.
        info: Names, colors and normalization.
        base_size: Pixels of the long side in the network; 0 takes pictures as they are.
        align_corners: How pictures and logits are resized; see `whole_image_logits`.
    """

    def __init__(
        self,
        model: nnx.Module,
        info: DatasetInfo,
        base_size: int = 0,
        align_corners: bool = False,
    ):
        model_def, *arrays = fold_model(model)
        self._params, self._stats = jax.device_put(arrays)
        self.info = info
        self._label = make_label_fn(
            model_def,
            mean=info.mean,
            std=info.std,
            base_size=base_size,
            align_corners=align_corners,
        )

    @classmethod
    def from_workdir(cls, path: str | Path, step: str | int = "best") -> "Segmenter":
        """Loads a model that `train.py` wrote.

        Pictures are resized to the scale that the model was trained or scored at.

        Args:
            path: The workdir.
            step: `"best"`, `"latest"` or the number of a checkpoint.

        Raises:
            UserError: No workdir, no such checkpoint, or a damaged one.
        """
        trained = load_workdir(Path(path), step)
        settings = trained.config.evaluation
        base_size = trained.config.data.base_size
        if settings.protocol == "pytorch_encoding":  # of others it is a bound
            base_size = settings.base_size or base_size
        return cls(trained.model, trained.info, base_size, settings.align_corners)

    @classmethod
    def from_torch(
        cls,
        path: str | Path,
        class_names: Sequence[str] | None = None,
        *,
        source: str = "auto",
        base_size: int = 520,
        **settings: Any,
    ) -> "Segmenter":
        """Loads a network of PyTorch-Encoding or mmsegmentation; needs no PyTorch.

        Pictures are normalized and resized as the source does in evaluation.

        Args:
            path: A `.pth` or `.safetensors` file, or `hf://OWNER/REPO/FILE`.
            class_names: One name a class; their numbers if none.
            source: See `encnet_jax.convert.load.load_torch_weights`.
            base_size: Pixels of the long side in the network; 0 takes pictures as they
                are. 520 is PyTorch-Encoding's.
            **settings: Arguments of `create_model` in place of what the file tells.

        Raises:
            UserError: The file holds no known network, or another number of classes.
        """
        model, description = load_torch_model(path, source, **settings)
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
        return cls(model, info, base_size, corners)

    def __call__(
        self, image: str | os.PathLike[str] | Image.Image | np.ndarray
    ) -> Segmentation:
        """Segments one picture.

        Args:
            image: A file, a PIL image, or a uint8 array (h, w, 3), RGB 0-255.

        Raises:
            UserError: The file cannot be read or decoded; names it.
            TypeError: An array of another dtype or shape.
        """
        pixels = read_image(image)
        labels, presence = self._label(self._params, self._stats, pixels[None])
        return Segmentation(
            labels=np.asarray(labels[0]),
            presence=None if presence is None else np.asarray(presence[0]),
            class_names=self.info.class_names,
            colors=self.info.colors,
            image=pixels,
        )


def read_image(
    image: str | os.PathLike[str] | Image.Image | np.ndarray,
) -> np.ndarray:
    """Returns uint8 (h, w, 3) of whatever stands for a picture; see `Segmenter`."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise TypeError(
                f"an array of {image.dtype} {image.shape}: uint8 (h, w, 3) is needed"
            )
        return image
    if isinstance(image, Image.Image):
        return to_rgb_array(image)
    path = Path(image)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return decode_image(data, str(path))


def find_images(arguments: Sequence[str]) -> list[Path]:
    """Returns the image files that files, folders and globs stand for, sorted in each.

    Raises:
        UserError: An argument that stands for no file.
    """
    suffixes = {key for key, name in Image.registered_extensions().items() if name}
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
        elif path.exists():
            files = [path]
        else:
            parent = Path(path.anchor or ".")
            pattern = str(path.relative_to(path.anchor) if path.anchor else path)
            files = sorted(parent.glob(pattern))
        if not files:
            raise UserError(f"{argument}: no such image, or a folder without images")
        found.extend(files)
    return list(dict.fromkeys(found))


def write_predictions(
    segmenter: Segmenter, images: Sequence[Path], output: Path
) -> list[Path]:
    """Writes `NAME.png` and `NAME-overlay.png` for each image; returns the failed.

    An image that cannot be read is named on standard error, and the others are done.
    Two images of one name get their suffix or their folder into the name.
    """
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    names = distinct_names(images)
    for path, name in zip(images, names):
        try:
            result = segmenter(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append(path)
            continue
        result.palette().save(output / f"{name}.png")
        result.overlay().save(output / f"{name}-overlay.png")
        shares = np.bincount(result.labels.ravel(), minlength=1) / result.labels.size
        largest = [k for k in np.argsort(-shares)[:3] if shares[k]]
        found = ", ".join(f"{result.class_names[k]} {shares[k]:.0%}" for k in largest)
        print(f"{path} -> {output / name}.png ({found})")
    return failed


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Returns a name for the results of each file; its suffix or folder if need be."""
    for name_of in (
        lambda p: p.stem,
        lambda p: p.name,
        lambda p: "_".join(p.parts[-2:]),
    ):
        names = [name_of(path) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number:06d}_{path.stem}" for number, path in enumerate(paths)]
