"""The networks and sizes that `benchmarks.accelerator` measures."""

from typing import Any, NamedTuple


class Network(NamedTuple):
    """A network and its images.

    Attributes:
        backbone: See `create_model`.
        size: Height and width.
        training_batch: Images a step.
        inference_batch: Images a call.
    """

    backbone: str
    size: tuple[int, int]
    training_batch: int
    inference_batch: int

    def batch(self, work: str) -> int:
        """Returns the images of `"training"` or `"inference"`."""
        return self.training_batch if work == "training" else self.inference_batch


class Sizes(NamedTuple):
    """How large everything is, and how long it is timed.

    Attributes:
        product: Rows and columns of the matrices.
        stages: Arguments of `dilated_stages`.
        encoding: Arguments of `encoding`.
        networks: Name -> network.
        windows: Keyword arguments of `benchmarks.windows.measure`.
        parts: What is measured, the most important first: `"NETWORK WORK"`,
            `"windows"`, `"layers"`.
        rounds: See `medians`.
        seconds: Likewise.
    """

    product: int
    stages: dict[str, Any]
    encoding: dict[str, Any]
    networks: dict[str, Network]
    windows: dict[str, Any]
    parts: tuple[str, ...]
    rounds: int
    seconds: float


FULL = Sizes(
    product=8192,
    stages=dict(backbone="resnet50", width=64, batch=16, pixels=60),
    encoding=dict(batch=16, pixels=60, channels=512),
    networks={
        "r50-480": Network("resnet50", (480, 480), 16, 32),
        "r101-480": Network("resnet101", (480, 480), 16, 32),
        "r50-512x1024": Network("resnet50", (512, 1024), 8, 8),
        "r101-512x1024": Network("resnet101", (512, 1024), 8, 8),
    },
    windows=dict(
        backbone="resnet50",
        images=8,
        scales=(0.5, 0.75, 1, 1.25, 1.5, 1.75),
        batch=16,
        rounds=3,
    ),
    parts=(
        *("r50-480 inference", "r50-480 training"),
        *("r101-480 inference", "windows", "r50-512x1024 inference"),
        *("r101-480 training", "r50-512x1024 training"),
        *("r101-512x1024 inference", "r101-512x1024 training"),
        "layers",
    ),
    rounds=5,
    seconds=0.3,
)
SMALL = Sizes(
    product=128,
    stages=dict(backbone="resnet18", width=4, batch=1, pixels=6),
    encoding=dict(batch=1, pixels=6, channels=8),
    networks={"tiny-32x48": Network("tiny", (32, 48), 2, 2)},
    windows=dict(backbone="tiny", images=1, scales=(0.5,), batch=2, rounds=1),
    parts=(
        *("tiny-32x48 inference", "tiny-32x48 training"),
        *("windows", "layers"),
    ),
    rounds=2,
    seconds=0.0,
)
PARTS = (*FULL.parts, *SMALL.parts[:2])
