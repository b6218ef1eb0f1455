"""Where the time of a step or a prediction goes, by layers.

    python -m benchmarks.profile [--work=training] [--crop=480] [--batch=2]

Runs EncNet-50 with 150 classes under JAX's profiler. Each operation of the compiled
program belongs to the innermost of our functions that made it, gradients to the layer
that they are of. Beside it stand the limits of the machine, measured in the same run:
matrix products a second, and the time that all products take at that rate in their
direct impl; Winograd's impl needs fewer.
"""

import collections
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import compiled as programs
from benchmarks.model_costs import model_costs
from benchmarks.timing import Candidate, medians
from encnet_jax import cli

_WORK = flags.DEFINE_enum("work", "inference", ["inference", "training"], "What runs.")
_BACKBONE = flags.DEFINE_string("backbone", "resnet50", "Backbone.")
_CROP = flags.DEFINE_integer("crop", 480, "Height and width of the images.")
_BATCH = flags.DEFINE_integer("batch", 2, "Images.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Dtype of the computation.")
_CONVOLUTION = flags.DEFINE_string("conv_impl", "auto", "See `set_conv_impl`.")

# The innermost function that stands here tells the group.
GROUPS = {
    "products of convolutions": ("Conv.__call__", "_convolution"),
    "sums of Winograd's impl, phases": (
        *("winograd", "winograd_conv", "_winograd_gradients"),
        *("im2col_conv", "space_to_batch", "batch_to_space"),
    ),
    "batch norm, ReLU, residual sums": (
        *("BatchNorm.__call__", "BatchNorm._batch_statistics", "BatchNorm.affine"),
        *("BatchNorm._update_statistics", "ConvBN.__call__", "Block.__call__"),
    ),
    "max pooling": ("max_pool",),
    "encoding and attention": (
        *("Encoding.__call__", "ContextEncoding.encode", "ContextEncoding.__call__"),
    ),
    "resizing and loss": ("pixel_cross_entropy", "segmentation_loss"),
    "resizing and arg max": ("resize_argmax", "resize_bilinear"),
    "optimizer": ("apply_updates", "chain.<locals>.update_fn"),
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
_WITH_PRODUCTS = {"Conv.__call__", "winograd", "_winograd_gradients"}
_PRODUCTS = ("dot", "conv_impl", "ynn_fusion", "custom-call")
_RATE = 2048  # rows and columns of the products that tell the machine's limit


def group_of(operation: str, op_name: str, functions: list[str]) -> str:
    """Returns the group of an operation.

    Args:
        operation: Its name in the compiled program.
        op_name: What JAX calls it; empty where the compiler made it up.
        functions: Those that made it, the innermost first.
    """
    product = operation.startswith(_PRODUCTS) and "reduce" not in op_name
    groups = [_GROUP_OF[name] for name in functions if name in _GROUP_OF]
    if product and (not functions or not _WITH_PRODUCTS.isdisjoint(functions)):
        return "products of convolutions"
    return groups[0] if groups else "rest"


def operations(text: str) -> dict[str, str]:
    """Returns the group of each operation of a compiled program, from its text."""

    def entries(section: str, pattern: str) -> list[Any]:
        start = text.index(f"\n{section}\n")
        table = text[start : text.index("\n\n", start)]
        return re.findall(rf"^(\d+) {pattern}", table, re.MULTILINE)

    names = dict(entries("FunctionNames", '"(.*)"'))
    places = dict(entries("FileLocations", r"{.*function_name_id=(\d+)"))
    frames = {
        number: (names[places[place]], str(int(parent) - 1))  # 1 stands for none
        for number, place, parent in entries(
            "StackFrames", r"{file_location_id=(\d+) parent_frame_id=(\d+)"
        )
    }

    def stack(frame: str) -> list[str]:
        found = []
        while frame in frames:
            name, frame = frames[frame]
            found.append(name)
        return found

    groups = {}
    for operation, rest in re.findall(r"%([\w.\-]+) = (.*)", text):
        made = re.search(r'op_name="([^"]*)".*?stack_frame_id=(\d+)', rest)
        op_name, frame = made.groups() if made else ("", "")
        groups[operation] = group_of(operation, op_name, stack(frame))
    return groups


def seconds_by_group(
    run: Callable[[], Any], groups: dict[str, str]
) -> dict[str, float]:
    """Runs a program under the profiler; returns seconds of all threads by group."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = Path(folder).glob("**/*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    total: dict[str, float] = collections.defaultdict(float)
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.batch_stats).get("hlo_op")
                # A loop's time is that of what it runs.
                if operation and not str(operation).startswith("while"):
                    group = groups.get(str(operation), "rest")
                    total[group] += event.duration_ns / 1e9
    return total


def products_per_second() -> float:
    """Returns the rate of float32 matrix products, two operations a multiply-add."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((_RATE, _RATE)), "float32")
    product = jax.jit(jnp.matmul)
    candidate = Candidate(lambda: product(a, a), jax.block_until_ready)
    return 2 * _RATE**3 / medians({"": candidate}, rounds=3, seconds=0.5)[""]


def main(arguments: list[str]) -> None:
    """Measures and prints a table."""
    cli.reject_positional(arguments)
    training = _WORK.value == "training"
    make = programs.training if training else programs.inference
    settings: dict[str, Any] = dict(backbone=_BACKBONE.value)
    program = make(
        size=(_CROP.value, _CROP.value),
        batch=_BATCH.value,
        dtype=_DTYPE.value,
        conv_impl=_CONVOLUTION.value,
        **settings,
    )
    compiled = program.compile()
    first, *others = programs.random_arrays(program.arguments)

    def run() -> None:
        nonlocal first
        result = jax.block_until_ready(compiled(first, *others))
        if training:  # the state was given away
            first = result[0]

    run()
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    found = seconds_by_group(run, operations(compiled.as_text()))
    costs = model_costs(
        "encnet",
        size=_CROP.value,
        num_classes=programs.CLASSES,
        aux_head=training,
        **settings,
    )
    # Gradients take two products where the forward pass has one.
    count = 2 * costs.layers * _BATCH.value * (3 if training else 1)
    rate = products_per_second()
    print(
        f"{seconds:.2f} s; {rate / 1e9:.0f} billion operations a second in matrix "
        f"products, at which the {count / 1e9:.0f} billion of the direct impl take "
        f"{count / rate:.2f} s\n\n| group | share |\n|---|---|"
    )
    for group, part in sorted(found.items(), key=lambda item: -item[1]):
        print(f"| {group} | {part / sum(found.values()):.1%} |")


if __name__ == "__main__":
    cli.run(main)
