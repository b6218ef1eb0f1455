"""Training steps of the CIFAR classifiers on CPU, against PyTorch.

    python -m benchmarks.cifar [--models=resnet14,encnet14] [--output=FILE]

Times the whole step in float32 in interleaved runs: normalization, forward, backward,
SGD with momentum and weight decay, on one batch of crops in memory. All candidates have
the same weights and the same number of threads (all that this process may use; limit
them with `taskset`); logits in training mode and the losses of the first steps are
compared before anything is timed. PyTorch runs with channels_last and fused SGD, eager
and with `torch.compile` (unless `--nocompile`); the ratio is to the faster one.

Crop and flip are excluded, as torch would do them in other processes. `augmented` is
the step of `data.cache_on_device`, which includes both; it has no counterpart in torch.
Needs the extra `bench`.
"""

import gc
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch._inductor.config
from absl import flags
from flax import nnx

from benchmarks import torch_cifar
from benchmarks.record import BenchmarkRecord
from benchmarks.timing import Candidate, medians
from encnet_jax import cli
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import CIFAR10
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.models.registry import CIFAR_MODELS
from encnet_jax.ops.normalize import normalize
from encnet_jax.optimizer import create_optimizer
from encnet_jax.run.state import create_train_state, split_model
from encnet_jax.train.step import augment, make_train_step

_MODELS = flags.DEFINE_list("models", list(CIFAR_MODELS), "Models to train.")
_WIDTH = flags.DEFINE_integer("width", 64, "Channels of the first stage.")
_CODES = flags.DEFINE_integer("codes", 16, "Codewords of encnet14.")
_BATCH = flags.DEFINE_integer("batch", 128, "Images per step.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds per candidate.")
_SECONDS = flags.DEFINE_float("seconds", 4.0, "Length of a round; at least one step.")
_COMPILE = flags.DEFINE_bool("compile", True, "Also time torch.compile.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_SIZE = 32  # pixels
_COMPARED_STEPS = 3
_SGD = dict(rate=0.02, momentum=0.9, decay=5e-4)
_AUGMENTATION = Augmentation(base_size=_SIZE, crop_size=_SIZE, pad=4)


class Ours:
    """Training steps of a classifier by this package.

    Args:
        model: The model, with its initial weights.
        resident: Arrays on the device that the step needs besides `seed`.
        batch: The batch of every step.
        augmentation: See `make_train_step`.
    """

    def __init__(
        self,
        model: nnx.Module,
        resident: dict[str, jax.Array],
        batch: dict[str, jax.Array],
        augmentation: Augmentation | None = None,
    ):
        self.model_def, params, batch_stats = split_model(model)
        tx = create_optimizer(
            lambda step: _SGD["rate"],
            momentum=_SGD["momentum"],
            weight_decay=_SGD["decay"],
            head_lr_mult=1.0,
        )
        # Copied, as the step donates its state.
        params, batch_stats = jax.tree.map(jnp.copy, (params, batch_stats))
        self.state = create_train_state(params, batch_stats, tx)
        self.resident = {"seed": jnp.uint32(0), **resident}
        self.batch, self.augmentation = batch, augmentation
        self.take = make_train_step(
            self.model_def, tx, CIFAR10, augmentation=augmentation
        )

    def logits(self) -> np.ndarray:
        """Returns the logits of the batch in training mode."""

        @jax.jit
        def forward(params, batch_stats):
            images, _ = augment(self.resident, self.batch, self.augmentation)
            model = self.model_def.merge(params, batch_stats)
            return model(normalize(images, CIFAR10.mean, CIFAR10.std)).logits

        return np.asarray(forward(self.state.params, self.state.batch_stats))

    def step(self) -> jax.Array:
        """Takes a step; returns the loss before the update."""
        self.state, metrics = self.take(self.state, self.resident, self.batch)
        return metrics["loss"]

    def candidate(self) -> Candidate:
        """Returns the step as a candidate."""
        return Candidate(self.step, jax.block_until_ready)


def plain_and_augmented(
    model: nnx.Module, images: np.ndarray, labels: np.ndarray
) -> tuple[Ours, Ours]:
    """Returns training without augmentation, and with crop and flip in the step."""
    arrays = {"images": jnp.asarray(images), "labels": jnp.asarray(labels)}
    index = jnp.arange(len(labels), dtype=jnp.int32)
    batch = {"index": index, "epoch": jnp.zeros_like(index)}
    return Ours(model, {}, arrays), Ours(model, arrays, batch, _AUGMENTATION)


def check_equal(ours: Ours, theirs: torch_cifar.Training) -> None:
    """Compares logits, then the losses of several steps, which include updates.

    Raises:
        RuntimeError: They differ.
    """
    expected = theirs.logits()
    error = np.abs(ours.logits() - expected).max() / np.abs(expected).max()
    losses = [
        (float(ours.step()), theirs.step().item()) for _ in range(_COMPARED_STEPS)
    ]
    shown = ", ".join(f"{mine:.5f} {other:.5f}" for mine, other in losses)
    print(f"  largest difference of logits {error:.1e}, relative; losses {shown}")
    if error > 1e-3 or any(abs(a - b) > 1e-3 * abs(b) for a, b in losses):
        raise RuntimeError("the candidates differ")


def measure(name: str) -> dict[str, float]:
    """Compares and times one model; returns images per second by candidate."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_BATCH.value, _SIZE, _SIZE, 3), np.uint8)
    labels = rng.integers(0, CIFAR10.num_classes, _BATCH.value).astype(np.uint8)
    sizes: dict[str, Any] = dict(width=_WIDTH.value, num_codes=_CODES.value)
    model = create_model(name, num_classes=CIFAR10.num_classes, **sizes)
    plain, augmented = plain_and_augmented(model, images, labels)
    weights = jax.tree.map(np.asarray, plain.state.params)

    def training(compiled: bool) -> torch_cifar.Training:
        network = torch_cifar.network(name, _WIDTH.value, _CODES.value, weights)
        return torch_cifar.Training(network, images, labels, **_SGD, compiled=compiled)

    eager = training(compiled=False)
    print(f"{name}:")
    check_equal(plain, eager)
    candidates = {"encnet_jax": plain.candidate(), "augmented": augmented.candidate()}
    candidates["torch"] = eager.candidate()
    if _COMPILE.value:
        candidates["torch.compile"] = training(compiled=True).candidate()
    seconds = medians(candidates, rounds=_ROUNDS.value, seconds=_SECONDS.value)
    return {candidate: _BATCH.value / value for candidate, value in seconds.items()}


def table(results: dict[str, dict[str, float]]) -> str:
    """Formats images per second, and the ratio to the faster torch, in Markdown."""
    candidates = list(next(iter(results.values())))
    lines = [
        f"| model | {' | '.join(candidates)} | ratio |",
        f"|{'---|' * (len(candidates) + 2)}",
    ]
    for name, rates in results.items():
        best = max(rate for candidate, rate in rates.items() if "torch" in candidate)
        cells = " | ".join(f"{rate:.1f}" for rate in rates.values())
        lines.append(f"| {name} | {cells} | {rates['encnet_jax'] / best:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Runs the benchmark, prints a table, and writes the results."""
    cli.reject_positional(arguments)
    for name in _MODELS.value:
        if name not in CIFAR_MODELS:
            allowed = ", ".join(CIFAR_MODELS)
            raise UserError(f"--models={name}: allowed are {allowed}")
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    # Its compile workers would be forked from a process that runs JAX.
    torch._inductor.config.compile_threads = 1
    settings = {"width": _WIDTH.value, "codes": _CODES.value, "batch": _BATCH.value}
    record = BenchmarkRecord(Path(_OUTPUT.value)) if _OUTPUT.value else None
    if record:
        record.start(resume=False)
        versions = {"jax": jax.__version__, "torch": torch.__version__}
        for key, value in {**settings, "threads": threads, **versions}.items():
            record.put("settings", key, value)
    results = {}
    for name in _MODELS.value:
        results[name] = measure(name)
        if record:
            record.put("images_per_second", name, results[name])
        gc.collect()  # frees four training states
    print(f"\nImages per second, batch {_BATCH.value}, width {_WIDTH.value}:\n")
    print(table(results))


if __name__ == "__main__":
    cli.run(main)
