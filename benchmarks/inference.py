"""Labels of whole images on CPU, against PyTorch, ONNX Runtime and OpenVINO.

    python -m benchmarks.inference [--sizes=480x480] [--batches=1] [--output=FILE]

uint8 images to labels of 150 classes in float32 by EncNet, with normalization, the last
resizing and the arg max on every candidate: the same weights, images and threads (as
many as this process may use; `taskset` gives fewer). Labels are compared before
anything is timed. ONNX Runtime and OpenVINO get the network from PyTorch by their own
converters. Needs the extra `bench`; --output=FILE keeps the results, and goes on with
what it has.
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
_SIZES = flags.DEFINE_list("sizes", ["480x480", "512x1024"], "Heights x widths.")
_BATCHES = flags.DEFINE_list("batches", ["1", "4"], "Images in a call.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each candidate.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Length of a turn; at least one call.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
THREADS = len(os.sched_getaffinity(0))
CANDIDATES = ("encnet_jax", "torch", "torch.compile", "ONNX Runtime", "OpenVINO")


def smooth_images(batch: int, height: int, width: int) -> np.ndarray:
    """Returns noise that is smooth over some pixels, uint8 (b, h, w, 3)."""
    rng = np.random.default_rng(0)
    low_res = rng.integers(0, 256, (batch, height // 16 + 1, width // 16 + 1, 3))
    fine = low_res.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return np.ascontiguousarray(fine.astype(np.uint8))


def candidates(backbone: str, images: np.ndarray) -> dict[str, Candidate]:
    """Returns every runtime with the same network; a call returns the labels."""
    plain = TrainedEncNet(backbone)
    weights = random_weights(plain)
    model = create_model("encnet", num_classes=CLASSES, backbone=backbone)
    load_torch_weights(model, weights, dataset="pytorch_encoding")
    predict = make_predict_fn(model, mean=ADE20K.mean, std=ADE20K.std)
    ours = Candidate(lambda: predict(images), jax.block_until_ready)
    eager, compiled = (
        Torch("cpu", compiled, torch.float32).inference(plain, images)
        for compiled in (False, True)
    )
    labels = Labels(plain).eval()
    runtimes = (_onnx_runtime(labels, images), _openvino(labels, images))
    return dict(zip(CANDIDATES, (ours, eager, compiled, *runtimes)))


def _onnx_runtime(labels: torch.nn.Module, images: np.ndarray) -> Candidate:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says which exporter is the newer one
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
            raise RuntimeError(f"{name}: {agree:.4f} of the labels are ours")


def table(results: dict[str, dict[str, float]]) -> str:
    """Returns seconds of ours, and how many times as long the others take."""
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
    """Measures what is missing in the file, and prints all."""
    cli.reject_positional(arguments)
    torch.set_num_threads(THREADS)
    # Its processes that compile would be forks of one that runs JAX.
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
        raise UserError(f"--sizes={size}: HEIGHTxWIDTH is needed, as 480x640")
    images = smooth_images(int(batch), *map(int, size.split("x")))
    found = candidates(backbone, images)
    check(found)
    times = medians(found, rounds=_ROUNDS.value, seconds=_SECONDS.value)
    del found
    gc.collect()  # five networks
    return times


if __name__ == "__main__":
    cli.run(main)
