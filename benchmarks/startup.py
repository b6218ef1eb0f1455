"""Startup time: imports, and `predict.py` on one image.

    python -m benchmarks.startup [--backbone=resnet50] [--size=480] [--rounds=3]

`predict.py` runs as a command on a workdir with random weights, first with an empty
compilation cache, then with the cache of the first run (by default in
~/.cache/encnet_jax/compiled). Medians over new processes.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from encnet_jax import cli
from encnet_jax.config import default, save_config
from encnet_jax.data.dataset_info import ADE20K, save_info
from encnet_jax.models import create_model
from encnet_jax.optimizer import create_optimizer
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.model_config import model_settings
from encnet_jax.run.state import create_train_state, split_model

_BACKBONE = flags.DEFINE_string("backbone", "resnet50", "Backbone.")
_SIZE = flags.DEFINE_integer("size", 480, "Height and width of the image.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Runs of each command.")
_ROOT = Path(__file__).resolve().parents[1]


def write_workdir(workdir: Path) -> None:
    """Writes a workdir of EncNet on ADE20K with random weights."""
    config = default()
    config.total_steps = 1
    config.model.backbone = _BACKBONE.value
    model = create_model(num_classes=ADE20K.num_classes, **model_settings(config))
    _, params, batch_stats = split_model(model)
    checkpoints = Checkpoints(workdir)
    tx = create_optimizer(lambda step: 0.0)
    checkpoints.save(create_train_state(params, batch_stats, tx), 1)
    checkpoints.close()
    save_config(config, workdir / "config.json")
    save_info(ADE20K, workdir / "classes.json")


def seconds_of(*arguments: str, cache: Path | None = None) -> float:
    """Times a Python command in a new process."""
    environment = dict(os.environ)
    if cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=_ROOT, env=environment, check=True)
    return time.perf_counter() - started


def main(arguments: list[str]) -> None:
    """Runs the benchmark and prints a table."""
    cli.reject_positional(arguments)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write_workdir(scratch / "run")
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (_SIZE.value, _SIZE.value, 3), np.uint8)
        Image.fromarray(pixels).save(scratch / "image.png")
        predict = ["predict.py", f"--workdir={scratch / 'run'}"]
        predict += [f"--output={scratch / 'out'}", str(scratch / "image.png")]
        times: dict[str, list[float]] = {}
        for index in range(_ROUNDS.value):
            cache = scratch / f"compiled{index}"
            for name, seconds in (
                ("import encnet_jax", seconds_of("-c", "import encnet_jax")),
                ("import jax", seconds_of("-c", "import jax")),
                (
                    "from encnet_jax import Segmenter",
                    seconds_of("-c", "from encnet_jax import Segmenter"),
                ),
                ("predict.py, first run", seconds_of(*predict, cache=cache)),
                ("predict.py, again", seconds_of(*predict, cache=cache)),
            ):
                times.setdefault(name, []).append(seconds)
    print("| | seconds |\n|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} |")


if __name__ == "__main__":
    cli.run(main)
