"""Functions of images as files of other programs: StableHLO and ONNX."""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export

from encnet_jax.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")

# uint8 images (b, h, w, 3) -> arrays by name
PredictFn = Callable[[Any], dict[str, jax.Array]]
RunFn = Callable[[Any], Mapping[str, Any]]  # likewise, of what a file holds
Shape = jax.ShapeDtypeStruct


def write_stablehlo(predict: PredictFn, images: Shape, path: Path) -> dict[str, Shape]:
    """Writes a program for all `PLATFORMS`; returns the shapes of what comes out.

    Args:
        predict: What to write; its `logits` are left out.
        images: What goes in; sizes may be free.
        path: The file.
    """

    def without_logits(images: Any) -> dict[str, jax.Array]:
        outputs = predict(images)
        # Of many classes hundreds of megabytes, which the program has to write out.
        outputs.pop("logits", None)
        return outputs

    exported = jax.export.export(jax.jit(without_logits), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())
    return jax.eval_shape(without_logits, images)


def read_stablehlo(path: Path) -> RunFn:
    """Returns what the program in a file computes."""
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def write_onnx(predict: PredictFn, images: Shape, path: Path) -> dict[str, Shape]:
    """Writes a graph; returns the shapes of what comes out.

    Args:
        predict: What to write.
        images: What goes in, `images` in the graph; sizes may be free.
        path: The file.
    """
    # It warns of plugins for packages that are not here, and of its own graphs.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Here, so that StableHLO does without the extra.
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
    """Returns what ONNX Runtime computes by the graph in a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images})))


WRITERS = {"stablehlo": write_stablehlo, "onnx": write_onnx}
READERS = {"stablehlo": read_stablehlo, "onnx": read_onnx}


def check_format(name: str) -> None:
    """Raises `UserError` if there is no such format, or it needs a missing package."""
    if name not in WRITERS:
        raise UserError(f"--format={name}: allowed are {', '.join(WRITERS)}")
    for package in ("jax2onnx", "onnxruntime") if name == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format=onnx: {package} is not installed; "
                "pip install 'encnet-jax[export]'"
            )
