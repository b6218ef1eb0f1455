"""The page beside an exported model: how to run it, what goes in and comes out."""

from collections.abc import Mapping

import jax

from encnet_jax.data.dataset_info import DatasetInfo

_CODE = {
    "stablehlo": """\
import jax
import numpy as np

with open("model.stablehlo", "rb") as file:
    run = jax.jit(jax.export.deserialize(file.read()).call)
images = np.zeros({shape}, np.uint8)  # RGB, 0 to 255
labels = run(images)["labels"]
""",
    "onnx": """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.zeros({shape}, np.uint8)  # RGB, 0 to 255
(labels,) = session.run(["labels"], {{"images": images}})
""",
}
_MEANING = {
    "labels": "the class of highest score",
    "logits": "scores of the classes, before the softmax",
    "presence": "probability that the class is in the image (semantic encoding branch)",
    "probabilities": "of the classes, by the softmax",
}
_JAX_ONLY = f"""\
It needs JAX and NumPy alone, and runs on CPU, CUDA and TPU. Each new shape of `images`
is compiled once. JAX {jax.__version__} wrote it; JAX promises that versions up to six
months newer read it.
"""
_RUNTIME = """\
Any program that runs ONNX takes it; it was checked in ONNX Runtime. Outputs that are
not asked for, as above, are not copied.
"""


def model_card(
    title: str,
    info: DatasetInfo,
    images: jax.ShapeDtypeStruct,
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    *,
    smallest: int,
    training_size: int,
    file_format: str,
    checked: str,
) -> str:
    """Returns the page in Markdown.

    Args:
        title: The model in words.
        info: Its classes, and the normalization inside it.
        images: What goes in; sizes may be free.
        outputs: What comes out.
        smallest: Pixels of the shortest side that is allowed, where sizes are free.
        training_size: Pixels of the long side of pictures in training, of both sides in
            classification; 0: their own.
        file_format: `"stablehlo"` or `"onnx"`.
        checked: How the file was checked.
    """
    free = not isinstance(images.shape[1], int)
    side = training_size or 480
    example = (1, side, side, 3) if free else images.shape
    rows = [
        f"| in | `images` | {_array(images)} | RGB, 0 to 255 |",
        *(
            f"| out | `{name}` | {_array(outputs[name])} | {_MEANING[name]} |"
            for name in sorted(outputs)
        ),
    ]
    classes = [
        f"| {number} | {name} | {_hexadecimal(color)} |"
        for number, (name, color) in enumerate(zip(info.class_names, info.colors))
    ]
    notes = []
    if free:
        notes.append(
            f"b, h and w are free; h and w are at least {smallest}. The images of a "
            "call have one size, and are taken as they are, without resizing."
        )
    if info.task == "classification":
        notes.append(f"In training images had {training_size}x{training_size} pixels.")
    elif training_size:
        notes.append(
            f"In training the long side of a picture had about {training_size} pixels; "
            "bring others near that first, and the labels back by nearest neighbor."
        )
    notes.append(
        "Normalized inside, to (x / 255 - mean) / std with mean "
        f"{_triple(info.mean)} and std {_triple(info.std)}. Computed in float32."
    )
    return "\n".join(
        [
            f"# {title}",
            "",
            "```python",
            _CODE[file_format].format(shape=example) + "```",
            "",
            _JAX_ONLY if file_format == "stablehlo" else _RUNTIME,
            "| | name | array | what |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            *(line for note in notes for line in (note, "")),
            f"Compared with JAX when it was written: {checked}.",
            "",
            "| label | class | color |",
            "| ---: | --- | --- |",
            *classes,
            "",
            "`classes.json` says the same for programs.",
            "",
        ]
    )


def _array(array: jax.ShapeDtypeStruct) -> str:
    return f"{array.dtype} ({', '.join(map(str, array.shape))})"


def _triple(values: tuple[float, float, float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _hexadecimal(color: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in color)
