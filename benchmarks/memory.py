"""Memory of one training step: python -m benchmarks.memory [--target=h100] [--small].

    python -m benchmarks.memory --target=h100 --batches=8,16
    python -m benchmarks.memory --target=v5e --devices=8 --batches=8,16
        --only=bfloat16-keep-1,bfloat16-remat-1

EncNet-101 with 150 classes and crop size 576, by `model.dtype`, `model.remat` and
`grad_accum_steps`. Steps are compiled for abstract shapes, and the compiler reports
what each device needs; nothing runs. From two batch sizes the file has the largest that
fits into the target: memory is linear in the batch.

Steps are compiled for the first device, and the results hold for its platform; or for a
target that this machine need not have, see `targets.py`. On CPU, bfloat16 is computed
through float32 copies, and the compiler of jaxlib 0.10.2 merges what `remat` recomputes
with the original (that of 0.12.0 does not).
"""

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from benchmarks.compiled import Memory, compiled_memory, largest_batch, training
from benchmarks.targets import TARGETS, compiler_options, compiling_for
from encnet_jax import cli
from encnet_jax.errors import UserError
from encnet_jax.files import whole_file
from encnet_jax.run.sharding import mesh_of

_ONLY = flags.DEFINE_list("only", [], "Names of settings; default: all.")
_BACKBONE = flags.DEFINE_string("backbone", "resnet101", "Backbone.")
_CROP = flags.DEFINE_integer(
    "crop", 576, "Height and width of the images.", lower_bound=8
)
_BATCHES = flags.DEFINE_list("batches", ["16"], "Images per step, one or two numbers.")
_TARGET = flags.DEFINE_enum(
    "target", None, list(TARGETS), "Compile for it; default: for the first device."
)
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices of the target.", lower_bound=1)
_SMALL = flags.DEFINE_bool(
    "small", False, "A tiny network and image, to test the benchmark."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_DTYPES = ("float32", "bfloat16")
_REMAT = {"keep": (), "remat3": (3,), "remat": (1, 2, 3, 4)}
_GRAD_ACCUM_STEPS = (1, 4)
SETTINGS = {
    f"{dtype}-{remat}-{grad_accum_steps}": (dtype, _REMAT[remat], grad_accum_steps)
    for dtype, remat, grad_accum_steps in itertools.product(
        _DTYPES, _REMAT, _GRAD_ACCUM_STEPS
    )
}


def main(arguments: list[str]) -> None:
    """Prints one row per setting and batch size as it is compiled."""
    cli.reject_positional(arguments)
    for name in _ONLY.value:
        if name not in SETTINGS:
            raise UserError(f"--only={name}: allowed are {', '.join(SETTINGS)}")
    batches = _batches()
    network: dict[str, Any] = dict(backbone=_BACKBONE.value, crop=_CROP.value)
    sizes: dict[str, int] = {}
    if _SMALL.value:
        network = dict(backbone="tiny", crop=32)
        sizes = dict(width=4, head_channels=8, num_codes=4)
    path = Path(_OUTPUT.value).absolute() if _OUTPUT.value else None
    with _mesh() as mesh:
        device = mesh.devices[0].device_kind
        facts = {**network, "device": device, "devices": mesh.size}
        facts |= {"target": _TARGET.value, "jax": jax.__version__}
        print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
        found = _earlier(path, facts)
        print("| setting | batch | arguments | outputs | temporary | peak, GiB | |")
        print("|---|---|---|---|---|---|---|")
        for name in _ONLY.value or SETTINGS:
            for batch in batches:
                memory = _printed(name, mesh, batch=batch, **network, **sizes)
                if memory is not None:
                    row = memory._asdict()
                    found["bytes"].setdefault(name, {})[str(batch)] = row
                if path:
                    _write(path, facts, found)


def _printed(name: str, mesh: Mesh, *, batch: int, **settings: Any) -> Memory | None:
    """Prints the row of `step_memory`, with the seconds that compiling took.

    None if the compiler has found that the step does not fit.
    """
    started = time.perf_counter()
    memory, cells = None, "does not fit |  |  | "
    try:
        memory = step_memory(name, mesh, batch=batch, **settings)
        cells = " | ".join(f"{size / 2**30:.2f}" for size in memory)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
    seconds = time.perf_counter() - started
    print(f"| {name} | {batch} | {cells} | {seconds:.0f} s |", flush=True)
    return memory


def step_memory(
    name: str, mesh: Mesh, *, crop: int, batch: int, **settings: Any
) -> Memory:
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
    options = compiler_options(_TARGET.value) if _TARGET.value else None
    return compiled_memory(step.spread(mesh).compile(options))


@contextlib.contextmanager
def _mesh() -> Iterator[Mesh]:
    """Gives the devices to compile for."""
    if _TARGET.value:
        with compiling_for(_TARGET.value, _DEVICES.value) as mesh:
            yield mesh
    elif _DEVICES.value != 1:
        raise UserError(f"--devices={_DEVICES.value}: only with a --target")
    else:
        yield mesh_of(jax.devices()[:1])


def _batches() -> list[int]:
    given = f"--batches={','.join(_BATCHES.value)}"
    batches = [int(batch) if batch.isdecimal() else 0 for batch in _BATCHES.value]
    if not 1 <= len(batches) <= 2 or len(set(batches)) < len(batches):
        raise UserError(f"{given}: must be one or two numbers")
    parts = max(SETTINGS[name][2] for name in _ONLY.value or SETTINGS)
    if any(not batch or batch % (_DEVICES.value * parts) for batch in batches):
        raise UserError(
            f"{given}: allowed are positive multiples of --devices={_DEVICES.value} "
            f"times the {parts} parts of a batch"
        )
    return sorted(batches)


def _earlier(path: Path | None, facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the results in the file, which must be of the same facts.

    Raises:
        UserError: They are of others, the file holds something else, or its folder is
            missing.
    """
    if path is None or not path.exists():
        if path and not path.parent.is_dir():
            raise UserError(f"--output={path}: no such folder")
        return {"bytes": {}, "largest_batch": {}}
    try:
        stored = json.loads(path.read_text())
        found = {key: stored.pop(key) for key in ("bytes", "largest_batch")}
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"--output={path}: exists, with no such results") from error
    if stored != facts:
        raise UserError(f"--output={path}: exists, with results of {stored}")
    return found


def _write(path: Path, facts: dict[str, Any], found: dict[str, Any]) -> None:
    """Writes the file, with the largest batches as far as they follow from it."""
    largest = {}
    for name, rows in found["bytes"].items() if _TARGET.value else ():
        peaks = {int(batch): row["peak"] for batch, row in rows.items()}
        unit = _DEVICES.value * SETTINGS[name][2]
        batch = largest_batch(peaks, TARGETS[_TARGET.value].memory, unit)
        if batch is not None:
            largest[name] = batch
    text = json.dumps({**facts, **found, "largest_batch": largest}, indent=2)
    with whole_file(path) as file:
        file.write(f"{text}\n".encode())


if __name__ == "__main__":
    cli.run(main)
