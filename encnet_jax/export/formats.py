"""File formats of exported functions: StableHLO and ONNX, written and run."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export

from encnet_jax.errors import UserError, require_package

PLATFORMS = ("cpu", "cuda", "tpu")

# uint8 images (b, h, w, 3) -> arrays by name
PredictFn = Callable[[Any], dict[str, jax.Array]]
RunFn = Callable[[Any], Mapping[str, Any]]  # likewise, loaded from a file
Shape = jax.ShapeDtypeStruct


def write_stablehlo(predict: PredictFn, images: Shape, path: Path) -> dict[str, Shape]:
    """Writes a StableHLO program for all `PLATFORMS`.

    Args:
        predict: The function to write, without its output `logits`.
        images: Input shape; sizes may be symbolic.
        path: The file.

    Returns:
        The shapes of the outputs.
    """

    def without_logits(images: Any) -> dict[str, jax.Array]:
        outputs = predict(images)
        # Hundreds of megabytes with many classes, all of which would be written.
        outputs.pop("logits", None)
        return outputs

    exported = jax.export.export(jax.jit(without_logits), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())
    return jax.eval_shape(without_logits, images)


def read_stablehlo(path: Path) -> RunFn:
    """Returns the function that a StableHLO file holds."""
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def write_onnx(predict: PredictFn, images: Shape, path: Path) -> dict[str, Shape]:
    """Writes an ONNX graph.

    Args:
        predict: The function to write.
        images: Shape of the input `images`; sizes may be symbolic.
        path: The file.

    Returns:
        The shapes of the outputs.
    """
    # It warns about plugins for packages that are not installed, and its own graphs.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Here, so that StableHLO works without the extra.
    import jax2onnx

    outputs = jax.eval_shape(predict, images)
    names = sorted(outputs)

    def in_order(images: Any) -> tuple[jax.Array, ...]:
        outputs = predict(images)
        return tuple(outputs[name] for name in names)

    model = jax2onnx.to_onnx(
        in_order,
        [images],
        model_name="encnet_jax",
        input_names=["images"],
        output_names=names,
    )
    path.write_bytes(model.SerializeToString())
    return outputs


def read_onnx(path: Path) -> RunFn:
    """Returns the function that ONNX Runtime runs from a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images})))


WRITERS = {"stablehlo": write_stablehlo, "onnx": write_onnx}
FORMATS = (*WRITERS, "pretrained")  # the last is a model folder
READERS = {"stablehlo": read_stablehlo, "onnx": read_onnx}


def check_format(name: str) -> None:
    """Raises `UserError` for an unknown format or one that lacks a package."""
    if name not in FORMATS:
        raise UserError(f"--format={name}: allowed are {', '.join(FORMATS)}")
    for package in ("jax2onnx", "onnxruntime") if name == "onnx" else ():
        require_package(package, "export", "--format=onnx")
