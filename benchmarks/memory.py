"""Memory of one training step: python -m benchmarks.memory [--small] [--only=...].

EncNet-101 with 150 classes, crop size 576 and batch size 16, by `model.dtype`,
`model.remat` and `grad_accum_steps`. Steps are compiled for abstract shapes, and the
compiler reports their memory; nothing runs.

Steps are compiled for the first device, and the results hold for its platform. On CPU,
bfloat16 is computed through float32 copies, and the compiler of jaxlib 0.10.2 merges
what `remat` recomputes with the original (that of 0.12.0 does not).
"""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks.compiled import Memory, compiled_memory, training
from encnet_jax import cli
from encnet_jax.errors import UserError

_ONLY = flags.DEFINE_list("only", [], "Names of settings; default: all.")
_BACKBONE = flags.DEFINE_string("backbone", "resnet101", "Backbone.")
_CROP = flags.DEFINE_integer("crop", 576, "Height and width of the images.")
_BATCH = flags.DEFINE_integer("batch", 16, "Images per step.")
_SMALL = flags.DEFINE_bool(
    "small", False, "A tiny network and image, to test the benchmark."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_STAGES = (1, 2, 3, 4)
_DTYPES = ("float32", "bfloat16")
_REMAT = {"keep": (), "remat": _STAGES}
_GRAD_ACCUM_STEPS = (1, 4)
SETTINGS = {
    f"{dtype}-{remat}-{grad_accum_steps}": (dtype, _REMAT[remat], grad_accum_steps)
    for dtype, remat, grad_accum_steps in itertools.product(
        _DTYPES, _REMAT, _GRAD_ACCUM_STEPS
    )
}


def main(arguments: list[str]) -> None:
    """Prints one row per setting as it is compiled."""
    cli.reject_positional(arguments)
    for name in _ONLY.value:
        if name not in SETTINGS:
            raise UserError(f"--only={name}: allowed are {', '.join(SETTINGS)}")
    network: dict[str, Any] = dict(
        backbone=_BACKBONE.value, crop=_CROP.value, batch=_BATCH.value
    )
    sizes: dict[str, int] = {}
    if _SMALL.value:
        network = dict(backbone="tiny", crop=32, batch=4)
        sizes = dict(width=4, head_channels=8, num_codes=4)
    device = jax.devices()[0].device_kind
    facts = {**network, "device": device, "jax": jax.__version__}
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    print("| setting | arguments | outputs | temporary | peak, GiB | seconds |")
    print("|---|---|---|---|---|---|")
    rows = _earlier_rows(facts)
    for name in _ONLY.value or SETTINGS:
        started = time.perf_counter()
        memory = step_memory(name, **network, **sizes)
        seconds = time.perf_counter() - started
        cells = " | ".join(f"{size / 2**30:.2f}" for size in memory)
        print(f"| {name} | {cells} | {seconds:.0f} |", flush=True)
        rows[name] = memory._asdict()
        if _OUTPUT.value:
            text = json.dumps({**facts, "bytes": rows}, indent=2)
            Path(_OUTPUT.value).write_text(text + "\n")


def step_memory(name: str, *, crop: int, batch: int, **settings: Any) -> Memory:
    """Compiles the step of a key of `SETTINGS`; `settings` go to `create_model`."""
    dtype, remat, grad_accum_steps = SETTINGS[name]
    step = training(
        size=(crop, crop),
        batch=batch,
        dtype=dtype,
        remat=remat,
        grad_accum_steps=grad_accum_steps,
        **settings,
    )
    return compiled_memory(step.compile())


def _earlier_rows(facts: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Returns the rows in the file, if of the same network and device."""
    path = Path(_OUTPUT.value or "")
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text())
    rows = stored.pop("bytes")
    return rows if stored == facts else {}


if __name__ == "__main__":
    cli.run(main)
