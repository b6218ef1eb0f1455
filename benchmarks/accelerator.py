"""Speed on an accelerator, beside plain PyTorch: python -m benchmarks.accelerator.

    python -m benchmarks.accelerator [--minutes=8] [--output=FILE.json] [--resume]

EncNet in bfloat16: labels and training steps, evaluation in windows, dilated stages and
the encoding layer alone. Needs one accelerator and nothing but the repository; where
torch is installed (the extra `bench`) and sees the device too, the same in plain torch
is measured in turns with ours. What fits into memory: `benchmarks.memory`.

Each part is a process of its own, so that memory is counted from nothing and a program
that takes the process down takes no other result with it. Parts come in the order of
what matters. In each, everything is compiled first and then timed in turns, so that
each ratio is of one run on one device. The file is written after every measurement. A
part that has not ended after `--part_minutes`, or when `--minutes` are over, is cut
off, and the output says so; `--resume` continues with the parts that are missing, on
the same device with the same versions. With `--small` tiny networks run on any machine.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from benchmarks.measurements import measure
from benchmarks.record import BenchmarkRecord
from benchmarks.sizes import FULL, PARTS, SMALL
from encnet_jax import cli

_OUTPUT = flags.DEFINE_string(
    "output", "benchmarks/results/accelerator.json", "The JSON file to write."
)
_MINUTES = flags.DEFINE_float("minutes", 8.0, "What is not done by then is left out.")
_PART_MINUTES = flags.DEFINE_float("part_minutes", 5.0, "At most, for one part.")
_SMALL = flags.DEFINE_bool("small", False, "Tiny networks and sizes: does it run?")
_RESUME = flags.DEFINE_bool("resume", False, "Keep the parts that the file has.")
_TORCH = flags.DEFINE_enum(
    "torch", "compile", ["compile", "eager", "none"], "How torch runs beside JAX."
)
_PART = flags.DEFINE_enum("part", None, PARTS, "Measure this part, in this process.")
_ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> int:
    """Measures all parts in the time there is; returns 1 if one of them failed."""
    cli.reject_positional(arguments)
    record = BenchmarkRecord(Path(_OUTPUT.value).absolute())
    if _PART.value:
        measure(_PART.value, record, SMALL if _SMALL.value else FULL, _TORCH.value)
        return 0
    record.start(resume=_RESUME.value, flag="--resume")
    deadline = time.monotonic() + 60 * _MINUTES.value
    for part in (SMALL if _SMALL.value else FULL).parts:
        if record.has("done", part):
            continue
        left = min(deadline - time.monotonic(), 60 * _PART_MINUTES.value)
        code = _run(part, record.path, left)
        if code == 2:
            return 2  # a mistake of the user's; the process has said which
        if code is None:
            record.put("left_out", part, f"not done after {max(left, 0):.0f} seconds")
        elif code:
            record.put("failed", part, f"ended with {code}")
        else:
            record.put("done", part, True)
    print(report(record.data))
    print(f"\n{record.path} has all of it")
    return 1 if record.data["failed"] else 0


def _run(part: str, output: Path, seconds: float) -> int | None:
    """Measures a part in a process of its own; None if there is not enough time."""
    if seconds <= 0:
        return None
    flags_of_part = [f"--part={part}", f"--output={output}", f"--torch={_TORCH.value}"]
    if _SMALL.value:
        flags_of_part.append("--small")
    environment = os.environ.copy()
    # Two frameworks share the memory of the device: neither takes it all at the start.
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.accelerator", *flags_of_part],
            cwd=_ROOT,
            env=environment,
            timeout=seconds,
        ).returncode
    except subprocess.TimeoutExpired:
        return None


def report(data: dict) -> str:
    """Returns the tables of a record."""
    lines = [f"{key}: {value}" for key, value in data.get("device", {}).items()]
    lines += [
        "",
        "| network | work | batch | candidate | images/s | of the product rate "
        "| peak, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in data.get("networks", {}).values():
        share, peak = row["share"], row["peak_bytes"]
        lines.append(
            f"| {row['backbone']} {row['height']}x{row['width']} | {row['work']} "
            f"| {row['batch']} | {row['candidate']} | {row['images_per_second']:.1f} "
            f"| {'' if share is None else f'{share:.0%}'} "
            f"| {'' if peak is None else f'{peak / 2**30:.1f}'} |"
        )
    for part, ratio in data.get("ratios", {}).items():
        lines.append(f"\n{part}: {ratio:.2f} times the speed of torch")
    for row in data.get("windows", {}).values():
        lines.append(f"\nwindows, {row['candidate']}: {row['images_per_second']:.2f}/s")
    lines += ["", "| layers | impl | forward, ms | with gradients, ms |"]
    lines.append("|---|---|---|---|")
    for layers in ("dilated_stages", "encoding"):
        for impl, row in data.get(layers, {}).items():
            both = f"{row['forward_ms']:.2f} | {row['gradients_ms']:.2f}"
            lines.append(f"| {layers.replace('_', ' ')} | {impl} | {both} |")
    for kind in ("left_out", "failed"):
        for part, why in data[kind].items():
            lines.append(f"\n{part}: {kind.replace('_', ' ')}, {why}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
