"""A trained model as a file for programs without this package: StableHLO or ONNX."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from encnet_jax.data.dataset_info import DatasetInfo, save_info
from encnet_jax.errors import UserError
from encnet_jax.evaluate.classification import make_classify_fn
from encnet_jax.export.formats import READERS, WRITERS, PredictFn, Shape, check_format
from encnet_jax.export.model_card import model_card
from encnet_jax.inference.predict_fn import fold_model, whole_image_logits
from encnet_jax.run.state import split_model
from encnet_jax.run.workdir import load_workdir

_TOLERANCE = 1e-4  # of the largest logit, or of probability 1
_CHECKED_SIZE = (65, 97)  # where sizes are free: odd, unlike, multiples of nothing


@dataclasses.dataclass(frozen=True)
class ExportSpec:
    """A trained model as it is exported.

    Attributes:
        predict: Images to `labels` and, of segmentation, `logits` and (with the branch)
            `presence`; of classification `probabilities`.
        info: Its classes, and the normalization that is inside `predict`.
        title: The model in words.
        training_size: Pixels of the long side of pictures in training; 0: their own.
        smallest: Pixels of the shortest side that is allowed.
    """

    predict: PredictFn
    info: DatasetInfo
    title: str
    training_size: int
    smallest: int


def export_workdir(
    workdir: Path,
    output: Path,
    file_format: str = "stablehlo",
    step: str = "best",
    size: str = "",
) -> str:
    """Writes `model.stablehlo` or `model.onnx`, `classes.json` and `README.md`.

    What was written is run and compared with the model before it gets its place.

    Args:
        workdir: Folder of the run.
        output: A folder; new or empty.
        file_format: `"stablehlo"` or `"onnx"`.
        step: Which checkpoint: `"best"`, `"latest"` or a number.
        size: `HEIGHTxWIDTH` of the one image that the ONNX takes; by default any number
            of images of any size.

    Returns:
        What was written and how it was checked, in words.

    Raises:
        UserError: No workdir or checkpoint, `output` holds something, a format or size
            that there is not, a package is missing, or the check failed.
    """
    check_format(file_format)
    fixed = _parse_size(size, file_format)
    _check_empty(output)
    trained = load_trained(workdir, step)
    if fixed and min(fixed) < trained.smallest:
        raise UserError(f"--size={size}: at least {trained.smallest} pixels a side")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place: a failure leaves nothing, and moving takes no time.
        scratch = tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-")
    except OSError as error:
        raise UserError(f"--output={output}: {error.strerror}") from error
    with scratch as name:
        folder = Path(name) / "model"
        folder.mkdir()
        checked = _fill(folder, trained, file_format, fixed)
        path = output / f"model.{file_format}"
        megabytes = (folder / path.name).stat().st_size / 1e6
        folder.replace(output)
    return (
        f"{trained.title} -> {path} ({megabytes:.1f} MB); compared with JAX: {checked}"
    )


def _fill(
    folder: Path, trained: ExportSpec, file_format: str, size: tuple[int, int] | None
) -> str:
    """Writes the files of an export; returns how they compare with the model."""
    images = _images(1, *size) if size else _free_images(trained.smallest)
    path = folder / f"model.{file_format}"
    outputs = WRITERS[file_format](trained.predict, images, path)
    shape = images.shape if size else (2, *_CHECKED_SIZE, 3)
    example = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = jax.jit(trained.predict)(example)
    checked = compare(READERS[file_format](path)(example), expected)
    save_info(trained.info, folder / "classes.json")
    text = model_card(
        trained.title,
        trained.info,
        images,
        outputs,
        smallest=trained.smallest,
        training_size=trained.training_size,
        checked=checked,
        file_format=file_format,
    )
    (folder / "README.md").write_text(text)
    return checked


def load_trained(workdir: Path, step: str | int = "best") -> ExportSpec:
    """Loads what `train.py` wrote; the computation is float32 on every platform.

    Raises:
        UserError: No workdir, no such checkpoint, or a damaged one.
    """
    # Direct: compilers elsewhere choose a form of their own.
    trained = load_workdir(workdir, step, dtype="float32", conv_impl="lax")
    config, info, model = trained.config, trained.info, trained.model
    classifies = info.task == "classification"
    backbone = "" if classifies else f" ({config.model.backbone})"
    return ExportSpec(
        predict=_classify_fn(model, info) if classifies else _segment_fn(model, info),
        info=info,
        title=f"{config.model.name}{backbone}, {info.num_classes} classes, "
        f"step {trained.step} of {workdir.resolve().name}",
        training_size=config.data.crop_size if classifies else config.data.base_size,
        # The last features then have two pixels at least, whose corners are apart.
        smallest=config.model.output_stride + 1,
    )


def _segment_fn(model: nnx.Module, info: DatasetInfo) -> PredictFn:
    model_def, params, batch_stats = fold_model(model)

    def segment(images: Any) -> dict[str, jax.Array]:
        logits, presence = whole_image_logits(
            model_def.merge(params, batch_stats), images, mean=info.mean, std=info.std
        )
        outputs = {"labels": logits.argmax(-1).astype(jnp.uint8), "logits": logits}
        return outputs if presence is None else outputs | {"presence": presence}

    return segment


def _classify_fn(model: nnx.Module, info: DatasetInfo) -> PredictFn:
    _, params, batch_stats = split_model(model)
    probabilities_of = make_classify_fn(model, info)

    def classify(images: Any) -> dict[str, jax.Array]:
        probabilities = probabilities_of(params, batch_stats, images)
        labels = probabilities.argmax(-1).astype(jnp.uint8)
        return {"labels": labels, "probabilities": probabilities}

    return classify


def compare(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Returns how results agree with those of the model, in words.

    Args:
        found: Outputs of the exported model.
        expected: Outputs of the model, with `logits` or `probabilities`.

    Raises:
        UserError: Labels differ where the scores are no tie; logits by more than 1e-4
            of the largest, or probabilities by more than 1e-4.
    """
    scores = np.asarray(expected["logits" if "logits" in expected else "probabilities"])
    second, first = np.moveaxis(np.partition(scores, -2)[..., -2:], -1, 0)
    clear = first - second > 2 * _TOLERANCE * np.abs(scores).max()
    told = []
    for name, values in sorted(found.items()):
        array, wanted = np.asarray(values), np.asarray(expected[name])
        if name == "labels":
            wrong = int(((array != wanted) & clear).sum())
            told.append(f"{wrong} of {wanted.size} labels differ but for ties")
            right = wrong == 0
        else:
            scale = np.abs(wanted).max() if name == "logits" else 1.0
            error = np.abs(array - wanted).max() / scale
            told.append(f"{name} by {error:.0e}")
            right = bool(error <= _TOLERANCE)  # False of what is not a number
        if not right:
            raise UserError(
                f"the exported model differs from the one in JAX ({', '.join(told)}); "
                "nothing was written"
            )
    return ", ".join(told)


def _images(*shape: Any) -> Shape:
    return Shape((*shape, 3), jnp.uint8)


def _free_images(smallest: int) -> Shape:
    least = [f"{side} >= {smallest}" for side in "hw"]
    return _images(*jax.export.symbolic_shape("b, h, w", constraints=least))


def _parse_size(size: str, file_format: str) -> tuple[int, int] | None:
    if not size:
        return None
    if file_format != "onnx":
        raise UserError(f"--size={size}: only of --format=onnx; others take any size")
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--size={size}: HEIGHTxWIDTH is needed, as 480x640")
    return int(height), int(width)


def _check_empty(output: Path) -> None:
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output={output}: is not empty; give a new folder")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output}: is a file; a new folder is needed")
