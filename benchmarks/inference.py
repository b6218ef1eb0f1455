"""Whole-image inference on CPU against PyTorch, ONNX Runtime and OpenVINO.

    python -m benchmarks.inference [--sizes=480x480] [--batches=1] [--output=FILE]

EncNet, 150 classes, float32, from uint8 images to labels: every candidate includes
normalization, the final resizing and the arg max, and has the same weights, images and
threads (all that the process may use; limit them with `taskset`). Labels are compared
before timing. ONNX Runtime and OpenVINO convert the PyTorch network with their own
tools. Needs the extra `bench`; --output=FILE stores results and resumes from them.
"""

import gc
import io
import os
import warnings
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import openvino
import torch
import torch._inductor.config
from absl import flags

from benchmarks.record import BenchmarkRecord
from benchmarks.timing import Candidate, medians
from benchmarks.torch_encnet import random_weights
from benchmarks.torch_training import CLASSES, Labels, Torch, TrainedEncNet
from encnet_jax import cli
from encnet_jax.convert.load import load_torch_weights
from encnet_jax.data.dataset_info import ADE20K
from encnet_jax.errors import UserError
from encnet_jax.inference.predict_fn import make_predict_fn
from encnet_jax.models import create_model

_BACKBONES = flags.DEFINE_list("backbones", ["resnet50", "resnet101"], "Backbones.")
_SIZES = flags.DEFINE_list(
    "sizes", ["480x480", "512x1024"], "HEIGHTxWIDTH of the images."
)
_BATCHES = flags.DEFINE_list("batches", ["1", "4"], "Images per call.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Interleaved runs of each candidate.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Duration of a run; at least one call.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
THREADS = len(os.sched_getaffinity(0))
CANDIDATES = ("encnet_jax", "torch", "torch.compile", "ONNX Runtime", "OpenVINO")


def smooth_images(batch: int, height: int, width: int) -> np.ndarray:
    """Returns upsampled noise, uint8 (b, h, w, 3)."""
    rng = np.random.default_rng(0)
    low_res = rng.integers(0, 256, (batch, height // 16 + 1, width // 16 + 1, 3))
    fine = low_res.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return np.ascontiguousarray(fine.astype(np.uint8))


def candidates(backbone: str, images: np.ndarray) -> dict[str, Candidate]:
    """Returns the same network in every runtime; a call returns labels."""
    reference = TrainedEncNet(backbone)
    weights = random_weights(reference)
    model = create_model("encnet", num_classes=CLASSES, backbone=backbone)
    load_torch_weights(model, weights, source="pytorch_encoding")
    predict = make_predict_fn(model, mean=ADE20K.mean, std=ADE20K.std)
    ours = Candidate(lambda: predict(images), jax.block_until_ready)
    eager, compiled = (
        Torch("cpu", compiled, torch.float32).inference(reference, images)
        for compiled in (False, True)
    )
    labels = Labels(reference).eval()
    runtimes = (_onnx_runtime(labels, images), _openvino(labels, images))
    return dict(zip(CANDIDATES, (ours, eager, compiled, *runtimes)))


def _onnx_runtime(labels: torch.nn.Module, images: np.ndarray) -> Candidate:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recommends the newer exporter
        options = dict(opset_version=17, input_names=["images"], dynamo=False)
        torch.onnx.export(labels, (torch.from_numpy(images),), file, **options)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        file.getvalue(), settings, providers=["CPUExecutionProvider"]
    )
    return Candidate(
        lambda: session.run(None, {"images": images})[0], lambda found: found
    )


def _openvino(labels: torch.nn.Module, images: np.ndarray) -> Candidate:
    graph = openvino.convert_model(labels, example_input=torch.from_numpy(images))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS}
    compiled = openvino.compile_model(graph, "CPU", options)
    return Candidate(lambda: compiled(images)[0], lambda found: found)


def check(found: dict[str, Candidate]) -> None:
    """Raises `RuntimeError` unless all candidates give the labels of the first."""
    labels = {
        name: np.asarray(candidate.wait(candidate.call()))
        for name, candidate in found.items()
    }
    first = labels["encnet_jax"]
    for name, other in labels.items():
        agree = (other == first).mean()
        if agree < 0.999:
            raise RuntimeError(
                f"{name}: {agree:.4f} of the labels agree with encnet_jax"
            )


def table(results: dict[str, dict[str, float]]) -> str:
    """Returns our seconds per call, and the other runtimes relative to them."""
    lines = [
        "| network, image, batch | encnet_jax | " + " | ".join(CANDIDATES[1:]) + " |",
        "|---|---|" + "---|" * len(CANDIDATES[1:]),
    ]
    for name, times in results.items():
        ours = times["encnet_jax"]
        others = (f"{times[candidate] / ours:.2f} x" for candidate in CANDIDATES[1:])
        lines.append(f"| {name} | {ours:.2f} s | {' | '.join(others)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Measures what the file lacks and prints everything."""
    cli.reject_positional(arguments)
    torch.set_num_threads(THREADS)
    # Its compile workers would be forks of a process that runs JAX.
    torch._inductor.config.compile_threads = 1
    record = BenchmarkRecord(Path(_OUTPUT.value)) if _OUTPUT.value else None
    if record:
        record.start(resume=True)
    results: dict[str, dict[str, float]] = {}
    for backbone in _BACKBONES.value:
        for size in _SIZES.value:
            for batch in _BATCHES.value:
                name = f"{backbone}, {size}, {batch}"
                if not (record and record.has("done", name)):
                    results[name] = _measure(backbone, size, batch)
                    if record:
                        record.put("done", name, results[name])
                    print(table({name: results[name]}), flush=True)
    print(table(record.data["done"] if record else results))


def _measure(backbone: str, size: str, batch: str) -> dict[str, float]:
    if not (size.count("x") == 1 and size.replace("x", "").isdigit()):
        raise UserError(f"--sizes={size}: must be HEIGHTxWIDTH, such as 480x640")
    images = smooth_images(int(batch), *map(int, size.split("x")))
    found = candidates(backbone, images)
    check(found)
    times = medians(found, rounds=_ROUNDS.value, seconds=_SECONDS.value)
    del found
    gc.collect()  # five networks
    return times


if __name__ == "__main__":
    cli.run(main)
