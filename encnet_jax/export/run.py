"""Export of a workdir: the model is written, run from the file, and compared."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from encnet_jax.data.dataset_info import DatasetInfo, save_info
from encnet_jax.data.image_io import set_max_image_pixels
from encnet_jax.errors import UserError
from encnet_jax.export.calibration import (
    CalibrationImages,
    find_calibration_images,
)
from encnet_jax.export.formats import READERS, WRITERS, PredictFn, Shape, check_format
from encnet_jax.export.input_size import PrepareFn, crop_resizer, input_size
from encnet_jax.export.quantize import quantize_in_place
from encnet_jax.export.readme import export_readme
from encnet_jax.files import check_empty, user_path, whole_folder
from encnet_jax.inference.folding import fold_model
from encnet_jax.inference.predict_fn import make_classify_fn, whole_image_logits
from encnet_jax.models.dinov2 import DINOV2
from encnet_jax.models.registry import feature_stride
from encnet_jax.run.folder_config import FolderConfig
from encnet_jax.run.model_card import model_title
from encnet_jax.run.model_folder import check_replaceable, write_model_folder
from encnet_jax.run.state import split_model
from encnet_jax.run.workdir import load_run_config, load_workdir

_TOLERANCE = 1e-4  # relative to the largest logit; absolute for probabilities
# For symbolic sizes: no multiples of strides 8, 14, 16, 32, nor these plus 1, so that
# images are padded if the model pads any.
_CHECKED_SIZE = (67, 101)


@dataclasses.dataclass(frozen=True)
class ExportSpec:
    """A trained model to export.

    Attributes:
        network: A key of `encnet_jax.models.registry.MODELS`.
        training: Origin of the weights; see `training_record`.
        predict: Maps images to `labels` and, for segmentation, `logits` and (with the
            semantic encoding branch) `presence`; for classification `probabilities`.
        info: Classes and normalization; `predict` normalizes.
        title: One line that describes the model.
        smallest: Minimum height and width in pixels.
        free_onnx_size: Whether ONNX Runtime runs its graph of any size.
        base_size: Long side to which `encnet predict` resizes images, in pixels; 0: not
            at all. For a classifier, both sides.
        short_size: Bound on the short side where `evaluation.protocol=mmseg`, for which
            `base_size` is a bound too; otherwise 0.
        resize: Resizes an image as `encnet predict` does.
    """

    network: str
    training: Mapping[str, Any]
    predict: PredictFn
    info: DatasetInfo
    title: str
    smallest: int
    free_onnx_size: bool
    base_size: int
    short_size: int
    resize: PrepareFn


def export_workdir(
    workdir: str | Path,
    output: str | Path,
    file_format: str = "stablehlo",
    step: str = "best",
    size: str = "",
    calibration: str | Path | None = None,
    calibration_images: int = 64,
) -> str:
    """Writes `model.stablehlo` or `model.onnx`, `classes.json` and `README.md`.

    The file is run and compared with the model before the folder appears. The format
    `pretrained` is a model folder instead, see `encnet_jax.run.model_folder`.

    Args:
        workdir: Folder of the run, or a model folder.
        output: Output folder, new or empty; or, for `pretrained`, with an earlier model
            folder.
        file_format: `"stablehlo"`, `"onnx"` or `"pretrained"`.
        step: Which checkpoint: `"best"`, `"latest"` or a step number.
        size: `HEIGHTxWIDTH` of an ONNX graph for one image; by default any number of
            images of any size.
        calibration: Folder of images on which an ONNX graph is quantized to int8; None
            for float32.
        calibration_images: How many of its images, at most.

    Returns:
        One line that names the file and the result of the comparison.

    Raises:
        UserError: No workdir or checkpoint, `output` is not empty, an unknown format or
            invalid size, a missing package, no calibration images or one that cannot be
            read, or a failed comparison.
    """
    workdir, output = user_path(workdir), user_path(output)
    check_format(file_format)
    fixed = _parse_size(size, file_format)
    paths = None
    if calibration is not None:
        if file_format != "onnx":
            raise UserError(f"--format={file_format}: only onnx can be int8")
        paths = find_calibration_images(user_path(calibration), calibration_images)
    if file_format == "pretrained":
        return _export_model_folder(workdir, output, step)
    check_empty(output, "--output")
    spec = load_trained(workdir, step)
    if file_format == "onnx" and not fixed and not spec.free_onnx_size:
        raise UserError(
            "--size: must be HEIGHTxWIDTH for ONNX of a vision transformer; ONNX "
            "Runtime does not run its graph of any size"
        )
    if fixed and min(fixed) < spec.smallest:
        raise UserError(
            f"--size={size}: height and width must be at least {spec.smallest}"
        )
    set_max_image_pixels(load_run_config(workdir).data.max_image_pixels)
    images = None if paths is None else _calibration_images(paths, spec, fixed)
    path = output / f"model.{file_format}"
    with whole_folder(output, "--output") as folder:
        checked = _fill(folder, spec, file_format, fixed, images)
        megabytes = (folder / path.name).stat().st_size / 1e6
    return f"{spec.title} -> {path} ({megabytes:.1f} MB); compared with JAX: {checked}"


def _export_model_folder(workdir: Path, output: Path, step: str) -> str:
    check_replaceable(output, "--output")
    run = load_workdir(workdir, step)
    stored = FolderConfig(run.config, run.info, run.training)
    arrays = run.params, run.batch_stats
    write_model_folder(output, stored, *arrays, setting="--output")
    return f"{model_title(run.config.model, run.info, run.training)} -> {output}"


def _fill(
    folder: Path,
    spec: ExportSpec,
    file_format: str,
    size: tuple[int, int] | None,
    calibration: CalibrationImages | None,
) -> str:
    """Writes the files of an export; returns the result of the comparison."""
    images = _images(spec.info, 1, *size) if size else _free_images(spec)
    path = folder / f"model.{file_format}"
    outputs = WRITERS[file_format](spec.predict, images, path)
    shape = images.shape if size else (2, *_CHECKED_SIZE, spec.info.channels)
    example = _example(spec.info, shape)
    expected = jax.jit(spec.predict)(example)
    checked = compare(READERS[file_format](path)(example), expected)
    if calibration is not None:
        kept = quantize_in_place(path, calibration)
        checked = f"{checked}, before quantization; {kept}"
    save_info(spec.info, folder / "classes.json")
    text = export_readme(
        spec.title,
        spec.info,
        images,
        outputs,
        network=spec.network,
        training=spec.training,
        smallest=spec.smallest,
        base_size=spec.base_size,
        short_size=spec.short_size,
        checked=checked,
        file_format=file_format,
        calibration_images=None if calibration is None else len(calibration),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    return checked


def _calibration_images(
    paths: Sequence[Path], spec: ExportSpec, size: tuple[int, int] | None
) -> CalibrationImages:
    """Returns images as the graph takes them, all of which can be read."""
    if spec.info.banded:
        raise UserError("--int8: only for models of RGB images, not of bands")
    resize = crop_resizer(size) if size else spec.resize
    images = CalibrationImages(paths, spec.info, resize, spec.smallest)
    images.check()
    return images


def load_trained(workdir: str | Path, step: str | int = "best") -> ExportSpec:
    """Loads a workdir or a model folder, to compute in float32 on every platform.

    Raises:
        UserError: No workdir, no such checkpoint, or a damaged one.
    """
    # Plain convolutions: the compiler of the target picks its own algorithm.
    run = load_workdir(workdir, step, dtype="float32", conv_impl="lax")
    config, info, model = run.config, run.info, run.model
    classifies = info.task == "classification"
    base_size, short_size, resize = input_size(config, model, info)
    return ExportSpec(
        network=config.model.name,
        training=run.training,
        predict=_classify_fn(model, info) if classifies else _segment_fn(model, info),
        info=info,
        title=model_title(config.model, info, run.training),
        # The last features then have at least two pixels: align_corners needs them.
        smallest=1 + feature_stride(config.model.backbone, config.model.output_stride),
        free_onnx_size=config.model.backbone not in DINOV2,
        base_size=base_size,
        short_size=short_size,
        resize=resize,
    )


def _segment_fn(model: nnx.Module, info: DatasetInfo) -> PredictFn:
    model_def, params, batch_stats = fold_model(model)

    def segment(images: Any) -> dict[str, jax.Array]:
        logits, presence = whole_image_logits(
            model_def.merge(params, batch_stats),
            _byte_scale(images, info),
            mean=info.mean,
            std=info.std,
            impl="matmul",  # the only one that ONNX has
        )
        outputs = {"labels": logits.argmax(-1).astype(jnp.uint8), "logits": logits}
        return outputs if presence is None else outputs | {"presence": presence}

    return segment


def _classify_fn(model: nnx.Module, info: DatasetInfo) -> PredictFn:
    _, params, batch_stats = split_model(model)
    probabilities_of = make_classify_fn(model, mean=info.mean, std=info.std)

    def classify(images: Any) -> dict[str, jax.Array]:
        probabilities = probabilities_of(params, batch_stats, _byte_scale(images, info))
        labels = probabilities.argmax(-1).astype(jnp.uint8)
        return {"labels": labels, "probabilities": probabilities}

    return classify


def compare(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Compares an exported model with the original; returns a summary.

    Args:
        found: Outputs of the exported model.
        expected: Outputs of the original, with `logits` or `probabilities`.

    Raises:
        UserError: Labels differ where the scores are not tied, logits by more than 1e-4
            of the largest, or probabilities by more than 1e-4.
    """
    scores = np.asarray(expected["logits" if "logits" in expected else "probabilities"])
    second, first = np.moveaxis(np.partition(scores, -2)[..., -2:], -1, 0)
    clear = first - second > 2 * _TOLERANCE * np.abs(scores).max()
    summary = []
    for name, values in sorted(found.items()):
        array, wanted = np.asarray(values), np.asarray(expected[name])
        if name == "labels":
            wrong = int(((array != wanted) & clear).sum())
            summary.append(f"{wrong} of {wanted.size} labels differ, ties aside")
            agrees = wrong == 0
        else:
            scale = np.abs(wanted).max() if name == "logits" else 1.0
            error = np.abs(array - wanted).max() / scale
            summary.append(f"{name} by {error:.0e}")
            agrees = bool(error <= _TOLERANCE)  # False for NaN
        if not agrees:
            raise UserError(
                f"the exported model differs from the original in JAX "
                f"({', '.join(summary)}); nothing was written"
            )
    return ", ".join(summary)


def _example(info: DatasetInfo, shape: tuple[int, ...]) -> np.ndarray:
    """Returns images of noise, as an exported model takes them."""
    rng = np.random.default_rng(0)
    if not info.banded:
        return rng.integers(0, 256, shape, np.uint8)
    low, high = np.array(info.value_range, np.float32).T
    return low + rng.random(shape, np.float32) * (high - low)


def _byte_scale(images: Any, info: DatasetInfo) -> Any:
    """Returns the input of an exported model as 0-255: bands come as stored."""
    if not info.banded:
        return images
    low, high = np.array(info.value_range, np.float32).T
    scaled = jnp.clip((images - low) * (255 / (high - low)), 0, 255)
    return jnp.where(jnp.isnan(scaled), 0, scaled)  # as `scale_bands`


def _images(info: DatasetInfo, *shape: Any) -> Shape:
    dtype = jnp.float32 if info.banded else jnp.uint8
    return Shape((*shape, info.channels), dtype)


def _free_images(spec: ExportSpec) -> Shape:
    least = [f"{side} >= {spec.smallest}" for side in "hw"]
    return _images(spec.info, *jax.export.symbolic_shape("b, h, w", constraints=least))


def _parse_size(size: str, file_format: str) -> tuple[int, int] | None:
    if not size:
        return None
    if file_format != "onnx":
        raise UserError(f"--size={size}: only for --format=onnx; others take any size")
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--size={size}: must be HEIGHTxWIDTH, such as 480x640")
    return int(height), int(width)
