"""A small data set in the layout of CamVid, and helpers to run the commands."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from encnet_jax.run.workdir import load_workdir

ROOT = Path(__file__).parents[1]
# A step takes milliseconds and compiles in seconds.
SMALL = [
    "--config.total_steps=6",
    "--config.batch_size=2",
    "--config.log_every=1",
    "--config.eval_every=6",
    "--config.checkpoint_every=2",
    "--config.optimizer.warmup_steps=0",
    "--config.model.backbone=tiny",
    "--config.model.stem=plain",
    "--config.model.width=4",
    "--config.model.head_channels=8",
    "--config.model.num_codes=4",
    "--config.data.base_size=48",
    "--config.data.crop_size=32",
    "--config.evaluation.batch_size=2",
]


def make_camvid(root: Path) -> Path:
    """Writes eight training and four other images of 48x36 pixels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for index in range(count):
            labels = rng.integers(0, 12, (6, 8)).repeat(6, 0).repeat(6, 1)
            image = np.stack([labels * 20, 255 - labels * 20, labels * 7], -1)
            # In flat regions rounding would decide which pixel max pooling takes.
            image = (image + rng.integers(-9, 10, image.shape)).clip(0, 255)
            name = f"{index:04}.png"
            Image.fromarray(image.astype(np.uint8)).save(root / split / name)
            Image.fromarray(labels.astype(np.uint8)).save(root / f"{split}annot" / name)
    return root


def command(*arguments: str | Path) -> list[str]:
    """Returns the command line of a script."""
    return [sys.executable, *map(str, arguments)]


def environment() -> dict[str, str]:
    """Returns an environment without accelerators or many devices."""
    # As in this process, LLVM optimizes less: commands compile much, compute little.
    flags = "--xla_backend_optimization_level=1"
    changes = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **changes}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, from the repository's root."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def start(
    *arguments: str | Path, devices: int = 1, stdout: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Starts a script on the given number of devices."""
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env={**environment(), "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(
    *arguments: str | Path, devices: int, stdout: int = subprocess.DEVNULL
) -> list[subprocess.Popen[str]]:
    """Starts a script as a run of two processes with the given devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        start(
            *arguments,
            f"--distributed={address},2,{index}",
            devices=devices,
            stdout=stdout,
        )
        for index in range(2)
    ]


def trained_arrays(workdir: Path) -> list[np.ndarray]:
    """Returns parameters and running statistics of the latest checkpoint."""
    trained = load_workdir(workdir, "latest")
    leaves = jax.tree.leaves((trained.params, trained.batch_stats))
    return [np.asarray(leaf) for leaf in leaves]


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Returns the error lines of a command."""
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]
