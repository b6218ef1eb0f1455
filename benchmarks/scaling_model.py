"""A model on paper of the training step on many chips; nothing is measured here.

    python -m benchmarks.scaling_model

Prints the tables of docs/scale.md: EncNet-101 on ADE20K by configs/ade20k.py:r101.
"""

import math
from typing import NamedTuple

from absl import app

from benchmarks.model_costs import model_costs

COSTS = model_costs("encnet", size=576, num_classes=150, backbone="resnet101")
# An image: two operations a multiply-add, and gradients take two products more.
OPERATIONS = 2 * 3 * COSTS.layers
NORMS = 110  # batch norms: a reduction over all chips forward, and one backward
DATASET = 20_210
EPOCHS = 120


class Chip(NamedTuple):
    """Figures of the makers' data sheets but for `share`.

    Attributes:
        name: Of the chip.
        peak: bfloat16 operations a second.
        share: Of the peak that convolutions of this network reach: an assumption. The
            H100 reached 0.25 (456 images a second of ResNet-50 at 360x480, measured).
        link: Bytes a second to the other chips, one direction. Half of what the data
            sheets of TPUs say: slices smaller than a pod have no links around it.
        one_host: Chips of the largest slice that one host has.
        per_host: Chips of each host in larger slices.
    """

    name: str
    peak: float
    share: float
    link: float
    one_host: int
    per_host: int

    def hosts(self, chips: int) -> int:
        """Returns how many hosts a slice of so many chips has."""
        return 1 if chips <= self.one_host else math.ceil(chips / self.per_host)


CHIPS = (
    Chip("TPU v4", 275e12, 0.4, 150e9, 4, 4),
    Chip("TPU v5e", 197e12, 0.4, 100e9, 8, 4),
    Chip("TPU v6e", 918e12, 0.3, 200e9, 8, 4),
    Chip("H100, one box", 989e12, 0.25, 450e9, 8, 8),
)


def step_seconds(chip: Chip, chips: int, batch: int) -> tuple[float, float, float]:
    """Returns compute, gradient all-reduce and batch norm reductions of a step."""
    compute = batch / chips * OPERATIONS / (chip.peak * chip.share)
    reduce = 2 * 4 * COSTS.parameters * (chips - 1) / chips / chip.link
    # A small all-reduce costs its latency: a start, and a hop along each torus axis.
    latency = 0.0 if chips == 1 else 10e-6 + 1e-6 * 2 * math.sqrt(chips)
    return compute, reduce, 2 * NORMS * latency


def table(chip: Chip, counts: tuple[int, ...]) -> str:
    """Returns a Markdown table for some numbers of chips."""
    lines = [
        f"{chip.name}:",
        "",
        "| chips | batch | compute | gradients | batch norms | step | images/s "
        "| images/s a host | efficiency | 120 epochs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for chips in counts:
        batch = max(16, chips)
        parts = step_seconds(chip, chips, batch)
        step = sum(parts)
        rate = batch / step
        alone = 1 / step_seconds(chip, 1, 1)[0]
        hours = EPOCHS * DATASET / rate / 3600
        time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
        cells = [f"{1e3 * part:.1f} ms" for part in (*parts, step)]
        lines.append(
            f"| {chips} | {batch} | {' | '.join(cells)} | {rate:.0f} | "
            f"{rate / chip.hosts(chips):.0f} | {rate / chips / alone:.0%} | {time} |"
        )
    return "\n".join(lines)


def main(_: list[str]) -> None:
    print(
        f"{OPERATIONS / 1e12:.2f} T operations an image, "
        f"{COSTS.parameters / 1e6:.0f} M gradients",
        end="\n\n",
    )
    for chip in CHIPS:
        counts = (1, 8) if "one box" in chip.name else (1, 8, 16, 64, 256)
        print(table(chip, counts), end="\n\n")


if __name__ == "__main__":
    app.run(main)
