"""Evaluation in windows on an accelerator, beside plain PyTorch on the same one."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch

from benchmarks import compiled as programs
from benchmarks.evaluation import (
    Images,
    TorchEvaluation,
    encoding_protocol,
    evaluate,
)
from benchmarks.record import BenchmarkRecord
from benchmarks.timing import Candidate, medians
from benchmarks.torch_training import TrainedEncNet
from encnet_jax.data.dataset_info import ADE20K
from encnet_jax.evaluate.evaluator import make_window_fn
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.state import split_model


class _LogitsOnly(torch.nn.Module):
    """Maps windows to logits, under autocast to bfloat16."""

    def __init__(self, network: torch.nn.Module, device: Any):
        super().__init__()
        self.network, self.device_type = network, torch.device(device).type

    def forward(self, windows: Any) -> Any:
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.network(windows)[0].float()


def measure(
    record: BenchmarkRecord,
    device: Any,
    *,
    backbone: str,
    images: int,
    scales: Sequence[float],
    batch: int,
    rounds: int,
) -> None:
    """Measures PyTorch-Encoding's protocol on both sides, from images to metrics.

    Weights are random: `benchmarks.evaluation` compares what both sides find.

    Args:
        record: Where to.
        device: Of torch.
        backbone: See `create_model`.
        images: Images, of four sizes frequent in ADE20K.
        scales: See `PyTorchEncodingProtocol`.
        batch: Windows and mirror images that pass our network at once.
        rounds: See `medians`.
    """
    settings = dict(backbone=backbone, aux_head=False)
    model = programs.encnet(jnp.bfloat16, settings)
    _, *shapes = split_model(model)
    arrays = jax.device_get(programs.random_arrays(tuple(shapes)))
    mesh = mesh_of(jax.local_devices()[:1])
    predict = make_window_fn(model, ADE20K, encoding_protocol(scales), mesh)
    network = TrainedEncNet(backbone).eval()
    network.to(device, memory_format=torch.channels_last)
    theirs = TorchEvaluation(_LogitsOnly(network, device), scales, device)
    dataset = Images(images)

    def run_theirs() -> Any:
        with torch.inference_mode():
            return theirs.run(dataset)

    candidates = {
        "jax": Candidate(lambda: evaluate(predict, arrays, dataset, batch), _done),
        "torch": Candidate(run_theirs, _done),
    }
    # Results are NumPy: a call returns when all of it is done.
    seconds = medians(candidates, rounds=rounds, seconds=0)
    for name, time in seconds.items():
        row = dict(candidate=name, images_per_second=images / time, images=images)
        record.put("windows", f"{backbone} {name}", row)
    record.put("ratios", f"windows {backbone}", seconds["torch"] / seconds["jax"])


def _done(result: Any) -> Any:
    return result
