"""Static int8 quantization of exported ONNX graphs, calibrated on images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

CALIBRATION = "MinMax"  # of `onnxruntime.quantization.CalibrationMethod`


class _Reader:
    """Calibration images, one at a time, as ONNX Runtime asks for them."""

    def __init__(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]):
        self._images: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        """Returns the inputs of the next pass, or None after the last."""
        image = next(self._images, None)
        return None if image is None else {"images": image[None]}


def quantize(
    path: Path,
    output: Path,
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    method: str = CALIBRATION,
) -> None:
    """Writes an int8 form of an ONNX graph, with QuantizeLinear/DequantizeLinear pairs.

    Convolutions and matrix products with stored weights are quantized, weights per
    output channel and activations per tensor; everything else stays float32.

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
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    _remove_scalar_biases(prepared)
    quantize_static(
        prepared,
        output,
        _Reader(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # Not products of two activations: those of the Encoding layer stay exact.
        extra_options={"MatMulConstBOnly": True},
        calibrate_method=CalibrationMethod[method],
    )
    prepared.unlink()


def _remove_scalar_biases(path: Path) -> None:
    """Removes the zero that jax2onnx gives a product without bias.

    The quantizer takes any bias for a vector.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    zeros = {
        stored.name
        for stored in model.graph.initializer
        if not stored.dims and not numpy_helper.to_array(stored).any()
    }
    for node in model.graph.node:
        if node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] in zeros:
            del node.input[2]
    used = {name for node in model.graph.node for name in node.input}
    for stored in list(model.graph.initializer):
        if stored.name in zeros - used:
            model.graph.initializer.remove(stored)
    onnx.save(model, path)
