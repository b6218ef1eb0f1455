"""The Context Encoding Module in a classifier: error of several networks and seeds.

    python -m benchmarks.cifar_runs --data_dir=DIR --output=DIR --steps=5000
        [--models=resnet,se_resnet,encnet] [--width=16] [--codes=16] [--seeds=0,1]
        [--images=FILE.npz]

Trains every network with every seed by the recipe of `configs/cifar10.py`, with a
cosine schedule over `--steps` steps. The test split is evaluated several times for the
curve; the result is that of the last step. Writes DIR/cifar.json after each run, and at
the end DIR/cifar.md (a table) and DIR/cifar.png (a plot). Runs in the JSON file are
skipped, and interrupted ones resume; the workdirs are DIR/MODEL-SEED.

`--models=torch_resnet` etc. train the same network in plain PyTorch by the same recipe
(`torch_cifar_runs.py`), as an independent reference. This needs torch (the extra
`bench`), and an interrupted run restarts.

Without TensorFlow, `--images` reads `train_images`, uint8 (n, 32, 32, 3),
`train_labels` (n,), `test_images` and `test_labels` from an .npz file.
"""

import importlib.util
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import ConfigDict

from benchmarks.record import BenchmarkRecord
from configs.cifar10 import get_config
from encnet_jax import cli
from encnet_jax.data.augment_device import ArrayDataset, load_arrays
from encnet_jax.data.dataset_info import CIFAR10
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.run.model_config import check_config, model_settings

_OUTPUT = flags.DEFINE_string("output", None, "Folder for results.", required=True)
_DATA = flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS data sets.")
_IMAGES = flags.DEFINE_string("images", None, "An .npz file instead of --data_dir.")
_MODELS = flags.DEFINE_list(
    "models", ["resnet", "se_resnet", "encnet"], "Networks; see above for others."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds of weights, order and crops.")
_WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first stage.")
_CODES = flags.DEFINE_integer("codes", 16, "Codewords of encnet.")
_STEPS = flags.DEFINE_integer("steps", 5000, "Length of the schedule.")
_BATCH = flags.DEFINE_integer("batch", 128, "Images per step.")
_TORCH = "torch_"  # prefix of the networks trained by PyTorch
_EVALUATIONS = 6  # per run, including that of the last step


def config_of(model: str, seed: int) -> ConfigDict:
    """Returns the validated configuration of a run."""
    kind, _, variant = model.removeprefix(_TORCH).partition("-")
    codes = f"{_CODES.value}k" if kind == "encnet" else ""
    name = f"{kind}_{codes}{_WIDTH.value}d" + (f"-{variant}" if variant else "")
    try:
        config = get_config(name)
    except ValueError as error:
        raise UserError(f"--models={model}: {error}") from error
    if variant and model.startswith(_TORCH):
        raise UserError(
            f"--models={model}: the PyTorch reference has no -{variant} variant"
        )
    if model.startswith(_TORCH) and not importlib.util.find_spec("torch"):
        raise UserError(f"--models={model}: needs torch; pip install -e '.[bench]'")
    config.seed = seed
    config.batch_size = _BATCH.value
    config.total_steps = _STEPS.value
    config.eval_every = config.checkpoint_every = max(
        1, -(-_STEPS.value // _EVALUATIONS)
    )
    config.log_every = max(1, _STEPS.value // 100)
    check_config(config)
    return config


def run_once(
    config: ConfigDict, workdir: Path, datasets: tuple[ArrayDataset, ArrayDataset]
) -> dict[str, Any] | None:
    """Trains one network with one seed; returns None if interrupted by SIGTERM."""
    from encnet_jax.train import train

    scores = train(config, workdir, datasets)
    if scores is None:
        return None
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    rates = [line["images_per_second"] for line in metrics if "loss" in line]
    scored = [line for line in metrics if "accuracy" in line]
    return {
        "error": scores["error"],
        "curve": [(line["step"], line["error"]) for line in scored],
        "seconds_a_step": config.batch_size / statistics.median(rates),
        "parameters": count_parameters(config),
        "device": jax.devices()[0].device_kind,
    }


def run_in_torch(
    config: ConfigDict, datasets: tuple[ArrayDataset, ArrayDataset]
) -> dict[str, Any]:
    """Does the same as `run_once` in plain PyTorch."""
    import torch

    from benchmarks.torch_cifar_runs import train

    curve, seconds = train(config, datasets)
    on_gpu = torch.cuda.is_available()
    return {
        "error": curve[-1][1],
        "curve": curve,
        "seconds_a_step": seconds,
        "parameters": count_parameters(config),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


def count_parameters(config: ConfigDict) -> int:
    """Returns the number of parameters of a network."""
    settings = model_settings(config)
    classes = CIFAR10.num_classes
    model = nnx.eval_shape(lambda: create_model(num_classes=classes, **settings))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def load_split(split: str) -> ArrayDataset:
    """Reads a split into memory."""
    if _IMAGES.value:
        names = f"{split}_images", f"{split}_labels"
        try:
            with np.load(_IMAGES.value) as arrays:
                return ArrayDataset(CIFAR10, *(arrays[name] for name in names))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"--images={_IMAGES.value}: cannot read {' and '.join(names)} from an "
                f".npz file: {error}"
            ) from error
    dataset = open_dataset(CIFAR10.name, split, _DATA.value)
    return ArrayDataset(dataset.info, **load_arrays(dataset))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Formats the final errors as a Markdown table."""
    lines = [
        "| network | parameters | seconds per step | seeds | test error, mean | each |",
        "|---|---|---|---|---|---|",
    ]
    for model, runs in results.items():
        errors = [100 * run["error"] for run in runs.values()]
        seconds = statistics.median(run["seconds_a_step"] for run in runs.values())
        size = next(iter(runs.values()))["parameters"]
        lines.append(
            f"| {model} | {size:,} | {seconds:.3f} | {', '.join(runs)} "
            f"| {np.mean(errors):.2f} | {', '.join(f'{e:.2f}' for e in errors)} |"
        )
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Plots the test error over the steps, one line per run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.5, 4))
    for index, (model, runs) in enumerate(results.items()):
        for run in runs.values():
            steps, errors = np.array(run["curve"]).T
            axis.plot(steps, 100 * errors, "o-", color=f"C{index}", markersize=3)
        axis.plot([], [], color=f"C{index}", label=model)
    axis.set_xlabel("step")
    axis.set_ylabel("test error, %")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str]) -> None:
    """Runs what is missing and writes the results."""
    cli.reject_positional(arguments)
    output = Path(_OUTPUT.value)
    runs = [
        (model, seed, config_of(model, int(seed)))
        for seed in _SEEDS.value
        for model in _MODELS.value
    ]
    record = BenchmarkRecord(output / "cifar.json")
    record.start(resume=True)
    settings = {flag.name: flag.value for flag in (_WIDTH, _CODES, _STEPS, _BATCH)}
    for name, value in settings.items():
        known = record.data.get("settings", {}).get(name, value)
        if known != value:
            raise UserError(
                f"--{name}={value}: the runs in {record.path} have {known}; give "
                "another --output"
            )
        record.put("settings", name, value)
    datasets: tuple[ArrayDataset, ArrayDataset] | None = None
    for model, seed, config in runs:
        if record.has(model, seed):
            continue
        datasets = datasets or (load_split("train"), load_split("test"))
        if model.startswith(_TORCH):
            found = run_in_torch(config, datasets)
        else:
            found = run_once(config, output / f"{model}-{seed}", datasets)
        if found is None:
            return
        record.put(model, seed, found)
        print(model, seed, f"{100 * found['error']:.2f} % error", flush=True)
    results = {model: record.data[model] for model in _MODELS.value}
    (output / "cifar.md").write_text(table(results) + "\n")
    plot(results, output / "cifar.png")
    print(table(results))


if __name__ == "__main__":
    cli.run(main)
