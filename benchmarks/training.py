"""One training step of EncNet-50 on CPU, against PyTorch.

    python -m benchmarks.training [--sizes=240,480] [--batch=4] [--output=FILE]

float32, 150 classes, all three losses, SGD; uint8 images and labels are in memory. All
candidates have the same weights, the same number of threads (all that this process may
use; limit them with `taskset`), and no dropout. The losses of the first step are
compared before anything is timed. Needs the extra `bench`.
"""

import copy
import gc
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import torch._inductor.config
from absl import flags

from benchmarks import compiled as programs
from benchmarks.record import BenchmarkRecord
from benchmarks.timing import Candidate, medians
from benchmarks.torch_encnet import random_weights
from benchmarks.torch_training import Torch, TrainedEncNet
from encnet_jax import cli
from encnet_jax.convert.load import load_torch_weights
from encnet_jax.models import create_model
from encnet_jax.optimizer import create_optimizer, poly_schedule
from encnet_jax.run.state import create_train_state, split_model

_BACKBONE = flags.DEFINE_string("backbone", "resnet50", "Backbone.")
_SIZES = flags.DEFINE_list("sizes", ["240", "480"], "Heights and widths.")
_BATCH = flags.DEFINE_integer("batch", 4, "Images per step.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds per candidate.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Length of a round; at least one step.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")


def candidates(backbone: str, size: int, batch: int) -> dict[str, Candidate]:
    """Returns all candidates; each call takes a step and returns its loss."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    labels = rng.integers(0, programs.CLASSES, (batch, size, size), np.int32)
    plain = TrainedEncNet(backbone)
    weights = random_weights(plain)
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = {"encnet_jax": _ours(backbone, weights, images, labels)}
    for name, compiled in (("torch", False), ("torch.compile", True)):
        torch_runner = Torch("cpu", compiled, torch.float32)
        found[name] = torch_runner.training(copy.deepcopy(plain), images, labels)
    return found


def _ours(
    backbone: str, weights: dict, images: np.ndarray, labels: np.ndarray
) -> Candidate:
    settings: dict[str, Any] = dict(backbone=backbone, dropout=0.0)
    batch, *size, _ = images.shape
    program = programs.training(size=size, batch=batch, dtype="float32", **settings)
    step = program.compile()
    model = create_model("encnet", num_classes=programs.CLASSES, **settings)
    load_torch_weights(model, weights, source="pytorch_encoding")
    _, params, batch_stats = split_model(model)
    tx = create_optimizer(poly_schedule(0.01, 1000))
    state = create_train_state(params, batch_stats, tx)

    def call() -> jax.Array:
        nonlocal state
        state, metrics = step(
            state, {"seed": np.uint32(0)}, {"images": images, "labels": labels}
        )
        return metrics["loss"]

    return Candidate(call, jax.block_until_ready)


def check_losses(found: dict[str, Candidate]) -> None:
    """Raises `RuntimeError` if the losses of the first steps differ."""
    losses = {
        name: float(candidate.wait(candidate.call()))
        for name, candidate in found.items()
    }
    first = losses["encnet_jax"]
    if any(abs(loss - first) > 1e-4 * abs(first) for loss in losses.values()):
        raise RuntimeError(f"the losses of the first step differ: {losses}")


def main(arguments: list[str]) -> None:
    """Runs the benchmark, prints a table, and writes the results."""
    cli.reject_positional(arguments)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # Its compile workers would be forked from a process that runs JAX.
    torch._inductor.config.compile_threads = 1
    record = BenchmarkRecord(Path(_OUTPUT.value)) if _OUTPUT.value else None
    if record:
        record.start(resume=True)
        record.check_settings({"backbone": _BACKBONE.value})
    print("| batch, size | encnet_jax | torch | torch.compile |\n|---|---|---|---|")
    for size in map(int, _SIZES.value):
        found = candidates(_BACKBONE.value, size, _BATCH.value)
        check_losses(found)
        times = medians(found, rounds=_ROUNDS.value, seconds=_SECONDS.value)
        ours = times.pop("encnet_jax")
        ratios = " | ".join(f"{seconds / ours:.2f} x" for seconds in times.values())
        name = f"{_BATCH.value}, {size} x {size}"
        print(f"| {name} | {ours:.2f} s | {ratios} |", flush=True)
        if record:
            record.put("done", name, {"encnet_jax": ours, **times})
        del found
        gc.collect()  # frees three training states


if __name__ == "__main__":
    cli.run(main)
