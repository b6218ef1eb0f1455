"""Analytic model of the training step on many chips; nothing is measured.

    python -m benchmarks.scaling_model

Prints the tables of docs/scale.md: EncNet-101 on ADE20K, configs/ade20k.py:r101.
"""

import math
from typing import NamedTuple

from absl import app

from benchmarks.model_costs import model_costs

COSTS = model_costs("encnet", size=576, num_classes=150, backbone="resnet101")
# Per image: two operations per multiply-add; gradients take two more products.
OPERATIONS = 2 * 3 * COSTS.layers
NORMS = 110  # batch norms; each all-reduces once forward and once backward
DATASET = 20_210
EPOCHS = 120


class Chip(NamedTuple):
    """Figures from the vendors' data sheets, except `share`.

    Attributes:
        name: Name of the chip.
        peak: Peak bfloat16 operations per second.
        share: Share of the peak that the convolutions of this network reach, an
            assumption. Measured on an H100: 0.26 (211 images/s of ResNet-101, 480x480).
        link: Bytes per second to the other chips, one direction. For TPUs half of the
            data sheet, as slices smaller than a pod have no wraparound links.
        one_host: Chips in the largest single-host slice.
        per_host: Chips per host in larger slices.
    """

    name: str
    peak: float
    share: float
    link: float
    one_host: int
    per_host: int

    def hosts(self, chips: int) -> int:
        """Returns the number of hosts of a slice."""
        return 1 if chips <= self.one_host else math.ceil(chips / self.per_host)


CHIPS = (
    Chip("TPU v4", 275e12, 0.4, 150e9, 4, 4),
    Chip("TPU v5e", 197e12, 0.4, 100e9, 8, 4),
    Chip("TPU v6e", 918e12, 0.3, 200e9, 8, 4),
    Chip("H100, one box", 989e12, 0.26, 450e9, 8, 8),
)


def step_seconds(chip: Chip, chips: int, batch: int) -> tuple[float, float, float]:
    """Returns the seconds of compute, gradient and batch norm all-reduces of a step."""
    compute = batch / chips * OPERATIONS / (chip.peak * chip.share)
    # Compiled for a TPU v5e and an H100, all but some vectors are reduced in bfloat16.
    reduce = 2 * 2 * COSTS.parameters * (chips - 1) / chips / chip.link
    # Small all-reduces are bound by latency: start-up, and hops along the torus.
    latency = 0.0 if chips == 1 else 10e-6 + 1e-6 * 2 * math.sqrt(chips)
    return compute, reduce, 2 * NORMS * latency


def table(chip: Chip, counts: tuple[int, ...]) -> str:
    """Formats a Markdown table by number of chips."""
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
        single = 1 / step_seconds(chip, 1, 1)[0]
        hours = EPOCHS * DATASET / rate / 3600
        time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
        cells = [f"{1e3 * part:.1f} ms" for part in (*parts, step)]
        lines.append(
            f"| {chips} | {batch} | {' | '.join(cells)} | {rate:.0f} | "
            f"{rate / chip.hosts(chips):.0f} | {rate / chips / single:.0%} | {time} |"
        )
    return "\n".join(lines)


def main(_: list[str]) -> None:
    print(
        f"{OPERATIONS / 1e12:.2f} T operations per image, "
        f"{COSTS.parameters / 1e6:.0f} M gradients",
        end="\n\n",
    )
    for chip in CHIPS:
        counts = (1, 8) if "one box" in chip.name else (1, 8, 16, 64, 256)
        print(table(chip, counts), end="\n\n")


if __name__ == "__main__":
    app.run(main)
