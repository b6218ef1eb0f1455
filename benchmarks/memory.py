"""Memory of one training step: python -m benchmarks.memory [--small] [--only=...].

EncNet-101 with 150 classes at crop 576, batch 16, by settings of `model.dtype`,
`model.remat` and `grad_accum_steps`. Each step is compiled for shapes alone, so that no
memory is needed to ask for it, and the compiler tells what it would take. Nothing runs.

Compiled is for the first device: what the table says holds for its platform. On CPU
bfloat16 is computed through copies in float32, and the compiler of jaxlib 0.10.2 joins
what `remat` computes again with what was computed before (that of 0.12.0 does not).
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

_ONLY = flags.DEFINE_list("only", [], "Names of settings, of all that are listed.")
_BACKBONE = flags.DEFINE_string("backbone", "resnet101", "Backbone.")
_CROP = flags.DEFINE_integer("crop", 576, "Height and width of the images.")
_BATCH = flags.DEFINE_integer("batch", 16, "Images a step.")
_SMALL = flags.DEFINE_bool("small", False, "A tiny network and image: does it run?")
_OUTPUT = flags.DEFINE_string("output", None, "A JSON file to add the rows to.")

_STAGES = (1, 2, 3, 4)
_DTYPES = ("float32", "bfloat16")
_REMAT = {"keep": (), "remat": _STAGES}
_PARTS = (1, 4)
SETTINGS = {
    f"{dtype}-{remat}-{parts}": (dtype, _REMAT[remat], parts)
    for dtype, remat, parts in itertools.product(_DTYPES, _REMAT, _PARTS)
}


def main(arguments: list[str]) -> None:
    """Prints a row as each setting is compiled."""
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
    print(
        "| dtype-remat-parts | arguments | outputs | temporary | peak, GiB | seconds |"
    )
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
    """Compiles the step of a key of `SETTINGS`; `settings` are of `create_model`."""
    dtype, remat, parts = SETTINGS[name]
    step = training(
        size=(crop, crop),
        batch=batch,
        dtype=dtype,
        remat=remat,
        grad_accum_steps=parts,
        **settings,
    )
    return compiled_memory(step.compile())


def _earlier_rows(facts: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Returns the rows that the file has of the same network and device."""
    path = Path(_OUTPUT.value or "")
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text())
    rows = stored.pop("bytes")
    return rows if stored == facts else {}


if __name__ == "__main__":
    cli.run(main)
