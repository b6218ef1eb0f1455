"""The claims of the paper on `scenes`: FCN, pooling, encoding, SE loss, K, alpha.

    python -m benchmarks.scenes_ablation --output=DIR [--seeds=0,1]
        [--only=encnet --only="K 4" ...]

Trains every variant with every seed by `configs/scenes.py`, evaluates the test split,
and writes DIR/ablation.json, ablation.md (a table) and ablation.png (a plot). Variants
and seeds in the JSON file are skipped, if they had as many steps. Mean IoU is over the
20 classes, `ambiguous` over the 16 that only context distinguishes, and `small` over
the twelve object classes, counting only pixels inside the boxes of objects up to 10 px
wide.
"""

import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import camvid_scores
from configs.scenes import get_config
from encnet_jax import cli
from encnet_jax.data import scenes
from encnet_jax.data.dataset_info import SCENES
from encnet_jax.data.datasets import SyntheticScenes
from encnet_jax.errors import UserError, require_package
from encnet_jax.files import whole_file
from encnet_jax.metrics import confusion_matrix, segmentation_metrics
from encnet_jax.run.workdir import load_workdir

_OUTPUT = flags.DEFINE_string("output", None, "Folder for results.", required=True)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of weights and order.")
_ONLY = flags.DEFINE_multi_string("only", None, "A variant to run; default: all.")
_STEPS = flags.DEFINE_integer(
    "steps", None, "Training steps; default: those of the config."
)

# Variant -> seed -> figures.
Results = dict[str, dict[str, dict[str, float]]]
CODEWORDS = (2, 4, 8, 16, 32)
ALPHAS = (0.1, 0.2, 0.4, 0.8)
PAPER_FORM = {
    "model.code_reduction": "sum",
    "model.gate": "plain",
    "model.se_stages": (3, 4),
}
# Name -> what differs from configs/scenes.py, which is "encnet".
VARIANTS: dict[str, dict[str, Any]] = {
    "fcn": {"model.name": "fcn"},
    "pooling": {"model.num_codes": 0},
    "encnet, no SE loss": {"model.se_loss": False},
    "encnet": {},
    **{f"alpha {a}": {"loss.se_weight": a} for a in ALPHAS if a != 0.2},
    **{f"K {k}": {"model.num_codes": k} for k in CODEWORDS if k != 32},
    **{
        f"K {k}, original start": {
            "model.num_codes": k,
            "model.scale_init": "original",
        }
        for k in CODEWORDS
    },
    "paper's form": PAPER_FORM,
    "paper's form, rotation": {**PAPER_FORM, "data.rotation": 10.0},
    "fcn, resnet18": {"model.name": "fcn", "model.backbone": "resnet18"},
    "encnet, resnet18": {"model.backbone": "resnet18"},
}
OBJECTS = tuple(range(8, 20))
# All runs use the same scenes, so each is drawn once.
scenes.draw = functools.cache(scenes.draw)


def run_once(variant: str, seed: int, workdir: Path) -> dict[str, float]:
    """Trains and evaluates one variant with one seed."""
    from encnet_jax.train import train

    config = get_config()
    config.seed = seed
    config.data.cache_on_device = True
    config.model.dtype = "float32"
    config.total_steps = _STEPS.value or config.total_steps
    config.eval_every = config.checkpoint_every = config.total_steps
    config.update_from_flattened_dict(VARIANTS[variant])
    started = time.perf_counter()
    if train(config, workdir) is None:
        raise SystemExit("stopped by SIGTERM; rerun the command to start this run anew")
    seconds = time.perf_counter() - started
    trained, dataset = load_workdir(workdir, "latest"), SyntheticScenes(SCENES, "test")
    running = camvid_scores.CONVENTIONS["running"]
    results, _, labels = camvid_scores.score(config, trained, dataset, running)
    return {
        "mean_iou": results["mean_iou"],
        "ambiguous": float(np.mean(results["per_class_iou"][list(scenes.AMBIGUOUS)])),
        "small": small_object_iou(dataset, [labels[n] for n in range(len(dataset))]),
        "pixel_accuracy": results["pixel_accuracy"],
        "steps": config.total_steps,
        "seconds": seconds,
    }


def small_object_iou(dataset: SyntheticScenes, predictions: list[np.ndarray]) -> float:
    """Returns the mean IoU of the object classes inside the boxes of small objects."""
    total = np.zeros((20, 20), np.int64)
    for index, predicted in enumerate(predictions):
        scene = scenes.draw(dataset.seed, dataset.start + index)
        for _, left, top, right, bottom in scene.boxes:
            if right - left <= scenes.SMALL_SIZE:
                box = np.s_[top:bottom, left:right]
                total += _count(scene.labels[box], predicted[box])
    return float(
        np.nanmean(segmentation_metrics(total)["per_class_iou"][list(OBJECTS)])
    )


def _count(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    # Padded to one shape, so that the function is compiled once.
    padded = np.full((2, 32, 32), scenes.IGNORE_LABEL, np.uint8)
    padded[1] = 0
    padded[0, : labels.shape[0], : labels.shape[1]] = labels
    padded[1, : labels.shape[0], : labels.shape[1]] = predicted
    return np.asarray(_matrix(padded[0], padded[1]))


_matrix = jax.jit(functools.partial(confusion_matrix, num_classes=20))


def table(results: Results) -> str:
    """Formats the mean over the seeds, and each of them, as a Markdown table."""
    lines = [
        "| variant | mean IoU | each seed | ambiguous classes | small objects |",
        "|---|---|---|---|---|",
    ]
    for variant, runs in results.items():
        seeds = [runs[seed] for seed in sorted(runs)]
        mean = 100 * np.mean([run["mean_iou"] for run in seeds])
        cells = [
            " / ".join(f"{100 * run[key]:.1f}" for run in seeds)
            for key in ("mean_iou", "ambiguous", "small")
        ]
        lines.append(f"| {variant} | {mean:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """Plots the claims of the paper side by side, with standard deviations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(14, 7))
    for axis, (title, key, groups) in zip(axes.flat, _panels()):
        _plot_panel(axis, results, key, groups)
        axis.set_xlabel(title)
        axis.set_ylabel("mean IoU on test, %" + " (small objects)" * (key == "small"))
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("scenes: means over seeds with standard deviations; dots are seeds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _panels() -> list[tuple[str, str, dict[str, list[tuple[str, str]]]]]:
    """Returns title, key of the results, and groups of columns: label and variant."""
    modules = [
        ("FCN", "fcn"),
        ("pooling", "pooling"),
        ("no SE loss", "encnet, no SE loss"),
        ("EncNet", "encnet"),
    ]
    scaled = {32: "encnet"} | {k: f"K {k}" for k in CODEWORDS if k != 32}
    alphas = {0.2: "encnet"} | {a: f"alpha {a}" for a in ALPHAS if a != 0.2}
    codes = [(str(k), scaled[k]) for k in CODEWORDS]
    return [
        ("module", "mean_iou", {"": modules}),
        (
            "codewords, K",
            "mean_iou",
            {
                "scaled start": codes,
                "original start": [
                    (str(k), f"K {k}, original start") for k in CODEWORDS
                ],
            },
        ),
        (
            "weight of the SE loss, α",
            "mean_iou",
            {"": [("0", "encnet, no SE loss")] + [(str(a), alphas[a]) for a in ALPHAS]},
        ),
        ("small objects", "small", {"": modules}),
        (
            "backbone",
            "mean_iou",
            {
                name: [("tiny", variant), ("ResNet-18", f"{variant}, resnet18")]
                for name, variant in (("FCN", "fcn"), ("EncNet", "encnet"))
            },
        ),
        (
            "form of the module",
            "mean_iou",
            {
                "": [
                    ("released code", "encnet"),
                    ("paper", "paper's form"),
                    ("paper, rotation", "paper's form, rotation"),
                ]
            },
        ),
    ]


def _plot_panel(
    axis: Any, results: Results, key: str, groups: dict[str, list[tuple[str, str]]]
) -> None:
    """Draws one bar per column and group, beside each other."""
    width = 0.7 / len(groups)
    for number, (group, columns) in enumerate(groups.items()):
        color = ("#7fb3a5", "#d9b26f")[number]
        label: str | None = group  # of the first bar that there is
        for position, (_, variant) in enumerate(columns):
            if variant not in results:
                continue
            values = 100 * np.array([run[key] for run in results[variant].values()])
            x = position + (number - (len(groups) - 1) / 2) * width
            axis.bar(x, values.mean(), width * 0.9, color=color, label=label)
            label = None
            if len(values) > 1:  # of a sample, not of all seeds there could be
                deviation = values.std(ddof=1)
                axis.errorbar(x, values.mean(), deviation, color="#2f4858", capsize=3)
            axis.plot([x] * len(values), values, "o", color="#2f4858", markersize=3)
    first = next(iter(groups.values()))
    axis.set_xticks(range(len(first)), [label for label, _ in first])
    if len(groups) > 1:
        axis.set_ylim(top=1.2 * axis.get_ylim()[1])  # room for the legend
        axis.legend(frameon=False, loc="upper center", ncols=len(groups))


def check_flags(results: Results) -> None:
    """Raises `UserError` for flags that mean nothing, or other steps than before."""
    for variant in _ONLY.value or ():
        if variant not in VARIANTS:
            raise UserError(f"--only={variant}: allowed are {'; '.join(VARIANTS)}")
    for seed in _SEEDS.value:
        if not seed.isdecimal():
            raise UserError(f"--seeds={seed}: must be integers of at least 0")
    usual = get_config().total_steps
    steps = _STEPS.value or usual
    for variant, runs in results.items():
        for seed, run in runs.items():
            if (known := run.get("steps", usual)) != steps:
                raise UserError(
                    f"--steps={steps}: the results have {known} steps of {variant}, "
                    f"seed {seed}; give another --output"
                )


def main(arguments: list[str]) -> None:
    """Runs what is missing and writes the results."""
    cli.reject_positional(arguments)
    require_package("matplotlib", "train", "the plot")
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "ablation.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    check_flags(results)
    for seed in _SEEDS.value:
        for variant in _ONLY.value or VARIANTS:
            runs = results.setdefault(variant, {})
            if seed in runs:
                continue
            with tempfile.TemporaryDirectory(dir=output) as workdir:
                runs[seed] = run_once(variant, int(seed), Path(workdir))
            runs[seed]["device"] = jax.devices()[0].device_kind
            with whole_file(path) as file:
                file.write((json.dumps(results, indent=1) + "\n").encode())
            print(variant, seed, runs[seed], flush=True)
    results = {v: results[v] for v in VARIANTS if results.get(v)}
    (output / "ablation.md").write_text(table(results) + "\n")
    plot(results, output / "ablation.png")
    print(table(results))


if __name__ == "__main__":
    cli.run(main)
