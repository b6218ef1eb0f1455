"""The README of an exported model: how to run it, its inputs and outputs."""

from collections.abc import Mapping
from typing import Any

import jax

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.run.model_card import (
    citation_section,
    class_table,
    dataset_section,
    front_matter,
    image_notes,
    markdown_text,
)

_CODE = {
    "stablehlo": """\
import jax
import numpy as np

with open("model.stablehlo", "rb") as file:
    run = jax.jit(jax.export.deserialize(file.read()).call)
images = np.zeros({shape}, np.{dtype})  # {kind}
labels = run(images)["labels"]
""",
    "onnx": """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.zeros({shape}, np.{dtype})  # {kind}
(labels,) = session.run(["labels"], {{"images": images}})
""",
}
_MEANING = {
    "labels": "index of the highest-scoring class",
    "logits": "class scores before the softmax",
    "presence": "probability that the class occurs in the image (SE branch)",
    "probabilities": "class probabilities (softmax)",
}
_JAX_ONLY = f"""\
Requires only JAX, NumPy, and flatbuffers, with which JAX reads the file; lowered for
CPU, CUDA, and TPU. Compiled once per shape of `images`. Written by JAX
{jax.__version__}; JAX guarantees that versions released up to six months later can read
it.
"""
_RUNTIME = """\
Runs in any ONNX runtime; verified with ONNX Runtime. Outputs that are not requested
are not copied.
"""
_INT8 = (
    "Convolutions and products with weights are computed in int8 where the runtime has "
    "kernels for it (QuantizeLinear and DequantizeLinear pairs: int8 weights with one "
    "scale per output channel, uint8 activations with one per tensor), all else in "
    "float32. Calibrated on {} images."
)


def export_readme(
    title: str,
    info: DatasetInfo,
    images: jax.ShapeDtypeStruct,
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    *,
    network: str,
    training: Mapping[str, Any],
    smallest: int,
    base_size: int,
    short_size: int = 0,
    file_format: str,
    checked: str,
    calibration_images: int | None = None,
) -> str:
    """Returns the README in Markdown.

    Args:
        title: Title of the page.
        info: Classes and normalization of the model.
        images: Input shape; sizes may be symbolic.
        outputs: Output shapes by name.
        network: A key of `encnet_jax.models.registry.MODELS`.
        training: Origin of the weights, see `training_record`; may be empty.
        smallest: Minimum height and width in pixels where sizes are symbolic.
        base_size: Long side to which `encnet predict` resizes images, in pixels; in
            classification both sides; 0 if it does not.
        short_size: Bound of the short side, `base_size` being that of the long one; see
            `MmsegProtocol`.
        file_format: `"stablehlo"` or `"onnx"`.
        checked: Result of the comparison with JAX.
        calibration_images: Number of images on which the graph was quantized to int8;
            None: it is float32.
    """
    int8 = calibration_images is not None
    any_size = not isinstance(images.shape[1], int)
    side = base_size or 480
    example = (1, side, side, info.channels) if any_size else images.shape
    kind = "RGB, 0 to 255"
    if info.banded:
        kind = f"{info.channels} channels with the values that a .tif holds"
    rows = [
        f"| in | `images` | {_array(images)} | {kind} |",
        *(
            f"| out | `{name}` | {_array(outputs[name])} | {_MEANING[name]} |"
            for name in sorted(outputs)
        ),
    ]
    notes = _notes(info, images, smallest, base_size, short_size)
    notes.append(_INT8.format(calibration_images) if int8 else "Computed in float32.")
    tags = [file_format, *(["int8"] if int8 else [])]
    if int8:  # the scores are those of the network in float32
        training = {**training, "scores": []}
    return "\n".join(
        [
            *front_matter(network, info, training, tags=tags),
            f"# {markdown_text(title)}",
            "",
            "```python",
            _CODE[file_format].format(shape=example, dtype=images.dtype, kind=kind)
            + "```",
            "",
            _JAX_ONLY if file_format == "stablehlo" else _RUNTIME,
            "| | name | array | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            *(line for note in notes for line in (note, "")),
            f"Compared with JAX at export: {checked}.",
            "",
            *dataset_section(info),
            *class_table(info),
            "",
            "`classes.json` holds the same table in machine-readable form.",
            "",
            *citation_section(),
            "",
        ]
    )


def _notes(
    info: DatasetInfo,
    images: jax.ShapeDtypeStruct,
    smallest: int,
    base_size: int,
    short_size: int,
) -> list[str]:
    """Returns what a caller must know."""
    _, height, width, _ = images.shape
    notes = []
    if not isinstance(height, int):
        notes.append(
            f"b, h and w are arbitrary; h and w are at least {smallest}. Images are "
            "not resized; all images of a call have the same size."
        )
    elif info.task == "segmentation":
        notes.append(
            f"The graph takes one image of a height of {height} and a width of {width} "
            "pixels: resize images to cover that size, and crop the center."
        )
        base_size = short_size = 0
    if info.task == "classification":
        notes.append(f"Training images had {base_size}x{base_size} pixels.")
        base_size = 0
    return [*notes, *image_notes(info, base_size, short_size)]


def _array(array: jax.ShapeDtypeStruct) -> str:
    return f"{array.dtype} ({', '.join(map(str, array.shape))})"
