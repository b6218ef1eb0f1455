"""The Context Encoding Module in a classifier: error of several networks and seeds.

    python -m benchmarks.cifar_runs --data_dir=DIR --output=DIR --steps=5000
        [--models=resnet,se_resnet,encnet] [--width=16] [--codes=16] [--seeds=0,1]
        [--images=FILE.npz] [--jpeg_quality=50] [--dtype=float32]
        [--scale_init=original|scaled] [--minutes=M]

Trains every network with every seed by the recipe of `configs/cifar10.py`, with a
cosine schedule over `--steps` steps. The test split is evaluated several times for the
curve; the result is that of the last step. Writes DIR/cifar.json after each run, and at
the end DIR/cifar.md (a table) and DIR/cifar.png (a plot). Runs in the JSON file are
skipped, and interrupted ones resume; the workdirs are DIR/MODEL-SEED.

`--models=torch_resnet` etc. train the same network in plain PyTorch by the same recipe
(`torch_cifar_runs.py`), as an independent reference. This needs torch (the extra
`bench`), and an interrupted run restarts.

`--jpeg_quality`, `--dtype` and `--scale_init` (of encnet) change all runs of a command
and are part of their names in the results, such as `resnet q50`, so that they stand
beside the others. So is `--minutes`, which bounds the whole command: what is left is
shared by the runs still to do, and the schedule of each network is shortened to what
fits, by the time of a step, measured first; its other seeds have the same. A run that
turns out slower is stopped, saved, and resumed by the same command.

Without TensorFlow, `--images` reads `train_images`, uint8 (n, 32, 32, 3),
`train_labels` (n,), `test_images` and `test_labels` from an .npz file; or what

    python -m benchmarks.cifar_runs --pack=FILE.npz --data_dir=DIR

wrote: the image files themselves in a third of their size, to be carried.
"""

import importlib.util
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import ConfigDict

from benchmarks.cifar_images import encode_again, load_split, pack
from benchmarks.curves import metric_lines
from benchmarks.record import BenchmarkRecord
from benchmarks.time_budget import StopAt, measure_speed, plan_steps
from configs.cifar10 import get_config
from encnet_jax import cli
from encnet_jax.config import load_config
from encnet_jax.data.array_dataset import ArrayDataset
from encnet_jax.data.dataset_info import CIFAR10
from encnet_jax.errors import UserError, require_package
from encnet_jax.models import create_model
from encnet_jax.run.checkpoint_folder import saved_steps
from encnet_jax.run.model_config import check_config, model_settings

_STARTED = time.perf_counter()
_OUTPUT = flags.DEFINE_string("output", None, "Folder for results.")
_PACK = flags.DEFINE_string("pack", None, "Only write the images to this .npz file.")
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
_QUALITY = flags.DEFINE_integer(
    "jpeg_quality", None, "Encode all images again.", lower_bound=1, upper_bound=95
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "bfloat16", "float32"], "Value of model.dtype."
)
_SCALE_INIT = flags.DEFINE_enum(
    "scale_init", None, ["original", "scaled"], "Value of model.scale_init, of encnet."
)
_MINUTES = flags.DEFINE_float("minutes", None, "Bound of the command.", lower_bound=0)
_OTHER_SECTIONS = ("done", "left_out", "failed", "settings")  # of the results
_TORCH = "torch_"  # prefix of the networks trained by PyTorch
_EVALUATIONS = 6  # per run, including that of the last step
_GRACE = 0.04  # of --minutes, for the last run: lost if it is stopped a step early


def row_name(model: str) -> str:
    """Returns the name of a network in the results, with what the flags change."""
    parts = [model]
    if _SCALE_INIT.value and model.removeprefix(_TORCH).startswith("encnet"):
        parts.append(_SCALE_INIT.value)
    if _QUALITY.value:
        parts.append(f"q{_QUALITY.value}")
    if _DTYPE.value != "auto":
        parts.append(_DTYPE.value)
    if _MINUTES.value is not None:
        parts.append(f"{_MINUTES.value:g} min")
    return " ".join(parts)


def config_of(model: str, seed: int, total_steps: int | None = None) -> ConfigDict:
    """Returns the validated configuration of a run.

    Args:
        model: One of `--models`.
        seed: Seed of weights, order and crops.
        total_steps: Length of the schedule; by default `--steps`.
    """
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
    given = {"dtype": _DTYPE.value != "auto", "scale_init": _SCALE_INIT.value}
    given["minutes"] = _MINUTES.value is not None
    if model.startswith(_TORCH) and any(given.values()):
        flag = next(name for name, value in given.items() if value)
        raise UserError(f"--{flag}: not for the PyTorch reference, {model}")
    if model.startswith(_TORCH) and not importlib.util.find_spec("torch"):
        raise UserError(f"--models={model}: needs torch; pip install -e '.[bench]'")
    config.seed = seed
    config.batch_size = _BATCH.value
    config.model.dtype = _DTYPE.value
    if kind == "encnet":
        config.model.scale_init = _SCALE_INIT.value or config.model.scale_init
    config.total_steps = steps = total_steps or _STEPS.value
    config.eval_every = config.checkpoint_every = max(1, -(-steps // _EVALUATIONS))
    config.log_every = max(1, steps // 100)
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
    metrics = list(metric_lines(workdir / "metrics.jsonl"))
    rates = [line["images_per_second"] for line in metrics if "loss" in line]
    scored = [line for line in metrics if "accuracy" in line]
    return {
        "error": scores["error"],
        "steps": config.total_steps,
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
        "steps": config.total_steps,
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


def load_splits() -> tuple[ArrayDataset, ArrayDataset]:
    """Reads both splits into memory, encoded again if `--jpeg_quality` says so."""
    train, test = (
        load_split(split, _DATA.value, _IMAGES.value) for split in ("train", "test")
    )
    if not _QUALITY.value:
        return train, test
    return encode_again(train, _QUALITY.value), encode_again(test, _QUALITY.value)


def fitted(
    config: ConfigDict,
    model: str,
    workdir: Path,
    datasets: tuple[ArrayDataset, ArrayDataset],
    deadline: float,
    others: dict[str, Any],
) -> ConfigDict:
    """Returns the configuration, with the steps that fit.

    They are those of its checkpoint, if there is one, or of `others`, seeds of the same
    network that have been run.
    """
    if saved_steps(workdir / "checkpoints"):
        steps = load_config(workdir / "config.json").total_steps
    elif others:
        steps = next(iter(others.values()))["steps"]
    else:
        speed = measure_speed(config, workdir, datasets)
        left = deadline - time.perf_counter()
        flag = f"--minutes={_MINUTES.value}"
        steps = plan_steps(config, speed, left, shorten=True, flag=flag)
    return config_of(model, config.seed, steps)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Formats the final errors as a Markdown table."""
    lines = [
        "| network | parameters | steps | seconds per step | seeds | test error, mean "
        "| each |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, runs in results.items():
        errors = [100 * run["error"] for run in runs.values()]
        seconds = statistics.median(run["seconds_a_step"] for run in runs.values())
        size = next(iter(runs.values()))["parameters"]
        lines.append(
            f"| {model} | {size:,} | {_steps(runs)} | {seconds:.3f} "
            f"| {', '.join(runs)} | {np.mean(errors):.2f} "
            f"| {', '.join(f'{e:.2f}' for e in errors)} |"
        )
    return "\n".join(lines)


def _steps(runs: dict[str, Any]) -> str:
    """Returns the steps of some seeds; older results do not tell."""
    counts = {run["steps"] for run in runs.values() if "steps" in run}
    return ", ".join(f"{count:,}" for count in sorted(counts))


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


def main(arguments: list[str]) -> int | None:
    """Runs what is missing and writes the results."""
    cli.reject_positional(arguments)
    if _PACK.value:
        size = pack(Path(_PACK.value), _DATA.value)
        print(f"{_PACK.value}: {size / 2**20:.1f} MiB")
        return None
    if not _OUTPUT.value:
        raise UserError("--output: give a folder for the results")
    require_package("matplotlib", "train", "the plot")
    output = Path(_OUTPUT.value)
    for seed in _SEEDS.value:
        if not seed.isdecimal():
            raise UserError(f"--seeds={seed}: must be integers of at least 0")
    runs = [
        (model, seed, config_of(model, int(seed)))
        for seed in _SEEDS.value
        for model in _MODELS.value
    ]
    record = start_record(output / "cifar.json")
    runs = [run for run in runs if not record.has(row_name(run[0]), run[1])]
    datasets = load_splits() if runs else None
    stopped = False
    for index, (model, seed, config) in enumerate(runs):
        assert datasets is not None  # read above, as there are runs
        name = row_name(model)
        workdir = output / f"{name}-{seed}".replace(" ", "-")
        end: float | None = None
        if _MINUTES.value is not None:
            end, now = _STARTED + 60 * _MINUTES.value, time.perf_counter()
            deadline = now + (end - now) / (len(runs) - index)
            others = record.data.get(name, {})
            config = fitted(config, model, workdir, datasets, deadline, others)
        found: dict[str, Any] | None
        if model.startswith(_TORCH):
            found = run_in_torch(config, datasets)
        else:
            with StopAt(end and end + 60 * _GRACE * _MINUTES.value) as stop:
                found = run_once(config, workdir, datasets)
        if found is None:
            why = "--minutes are over" if stop.expired else "stopped by SIGTERM"
            print(f"{workdir}: {why}; rerun the command to resume")
            stopped = True
            break
        record.put(name, seed, found)
        print(name, seed, f"{100 * found['error']:.2f} % error", flush=True)
    known = record.data
    results = {name: known[name] for name in known if name not in _OTHER_SECTIONS}
    (output / "cifar.md").write_text(table(results) + "\n")
    plot(results, output / "cifar.png")
    print(table(results))
    return 1 if stopped else None


def start_record(path: Path) -> BenchmarkRecord:
    """Opens the results; raises `UserError` if they are of other settings."""
    record = BenchmarkRecord(path)
    record.start(resume=True)
    record.check_settings(
        {flag.name: flag.value for flag in (_WIDTH, _CODES, _STEPS, _BATCH)}
    )
    return record


if __name__ == "__main__":
    cli.run(main)
