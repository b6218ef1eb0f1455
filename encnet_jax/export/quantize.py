"""Static int8 quantization of exported ONNX graphs, calibrated on images."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from encnet_jax.export.formats import RunFn, read_onnx

CALIBRATION = "MinMax"  # of `onnxruntime.quantization.CalibrationMethod`


class _Reader:
    """Calibration images, one at a time, as ONNX Runtime asks for them."""

    def __init__(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]):
        self._images: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        """Returns the inputs of the next pass, or None after the last."""
        image = next(self._images, None)
        return None if image is None else {"images": image[None]}


def quantize_in_place(path: Path, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> str:
    """Replaces an ONNX graph by its int8 form; returns a line on the labels it keeps.

    Args:
        path: The graph.
        images: See `quantize`.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        original = path.replace(Path(folder) / "float32.onnx")
        quantize(original, path, images)
        agreement = label_agreement(read_onnx(path), read_onnx(original), images)
    return (
        f"int8 keeps {100 * agreement:.1f} % of the labels on {len(images)} "
        "calibration images"
    )


def quantize(
    path: Path,
    output: Path,
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    method: str = CALIBRATION,
) -> None:
    """Writes an int8 form of an ONNX graph, with QuantizeLinear/DequantizeLinear pairs.

    Convolutions and matrix products with stored weights are quantized, weights per
    output channel and activations per tensor; everything else stays float32. ONNX
    Runtime's log level of the process is set to its default afterwards.

    Args:
        path: The float32 graph, with an input `images`.
        output: The new file.
        images: Images that give the range of each activation.
        method: A name of `CalibrationMethod`.
    """
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared")
    with _without_warnings():
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
    products = _simplify_products(prepared)
    quantize_static(
        prepared,
        output,
        _Reader(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=products,
        calibrate_method=CalibrationMethod[method],
    )
    prepared.unlink()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    # One for each constant that is folded, two a block of a vision transformer.
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # the default; it cannot be read


def _simplify_products(path: Path) -> list[str]:
    """Makes matrix products those that the quantizer takes.

    Removes the zero that jax2onnx gives a product without bias, since the quantizer
    takes any bias for a vector.

    Returns:
        The names of matrix multiplications of two activations, which it would
        quantize, too.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    graph = model.graph
    stored = {item.name for item in graph.initializer}
    zeros = {
        item.name
        for item in graph.initializer
        if not item.dims and not numpy_helper.to_array(item).any()
    }
    products = []
    for number, node in enumerate(graph.node):
        if node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] in zeros:
            del node.input[2]
        if node.op_type in ("MatMul", "Gemm") and not stored & {*node.input[:2]}:
            node.name = node.name or f"product_{number}"
            products.append(node.name)
    used = {name for node in graph.node for name in node.input}
    for item in list(graph.initializer):
        if item.name in zeros - used:
            graph.initializer.remove(item)
    onnx.save(model, path)
    return products


def label_agreement(
    found: RunFn, reference: RunFn, images: Sequence[UInt8[np.ndarray, "h w 3"]]
) -> float:
    """Returns the share of labels of two exported models that are the same.

    Args:
        found: The one model.
        reference: The other.
        images: At least one image; each pixel of each counts alike.
    """
    same = total = 0
    for image in images:
        labels, expected = (
            np.asarray(run(image[None])["labels"]) for run in (found, reference)
        )
        same += int((labels == expected).sum())
        total += expected.size
    return same / total
