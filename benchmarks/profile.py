"""Profiles a training step or a prediction by kind of layer.

    python -m benchmarks.profile [--work=training] [--crop=480] [--batch=2]

Runs EncNet-50 with 150 classes under JAX's profiler. Each operation of the compiled
program is attributed to the innermost function of this package that created it, and
gradients to their layer. The report includes the limit of the machine, measured in the
same run: its rate of matrix products, and the time of all products at that rate by
direct convolution (Winograd convolution needs fewer).
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

_WORK = flags.DEFINE_enum(
    "work", "inference", ["inference", "training"], "What to profile."
)
_BACKBONE = flags.DEFINE_string("backbone", "resnet50", "Backbone.")
_CROP = flags.DEFINE_integer("crop", 480, "Height and width of the images.")
_BATCH = flags.DEFINE_integer("batch", 2, "Images per batch.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Dtype of the computation.")
_CONV_IMPL = flags.DEFINE_string("conv_impl", "auto", "See `set_conv_impl`.")

# Group -> functions; the innermost function listed here determines the group.
GROUPS = {
    "convolution GEMMs": ("Conv.__call__", "FoldedConv.__call__"),
    "Winograd transforms, im2col, space-to-batch": (
        *("winograd_transformed", "_winograd_forward", "_winograd_backward"),
        *("transform_kernel", "transform_input", "transform_output_grad"),
        *("_transform_kernel_taps", "_transform_grid", "_transform_lines"),
        *("_weighted_sum", "_strided_lines", "_im2col", "_im2col.<locals>.convolve"),
        *("space_to_batch", "batch_to_space"),
    ),
    "batch norm, ReLU, residual additions": (
        *("BatchNorm.__call__", "BatchNorm.affine", "BatchNorm._update_statistics"),
        *("normalize_features", "_sums_of_pairs", "_two_sums"),
        *("ConvBN.__call__", "Block.__call__"),
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
_GEMM_FUNCTIONS = {
    *("Conv.__call__", "FoldedConv.__call__"),
    *("winograd_transformed", "_winograd_forward", "_winograd_backward"),
}
_GEMM_OPERATIONS = ("dot", "convolution", "conv_general", "ynn_fusion", "custom-call")
_GEMM_SIZE = 2048  # rows and columns of the product that measures the machine


def group_of(operation: str, op_name: str, functions: list[str]) -> str:
    """Returns the group of an operation.

    Args:
        operation: Its name in the compiled program.
        op_name: Its name in JAX; empty if the compiler created it.
        functions: The functions on its stack, innermost first.
    """
    is_gemm = operation.startswith(_GEMM_OPERATIONS) and "reduce" not in op_name
    groups = [_GROUP_OF[name] for name in functions if name in _GROUP_OF]
    if is_gemm and (not functions or not _GEMM_FUNCTIONS.isdisjoint(functions)):
        return "convolution GEMMs"
    return groups[0] if groups else "rest"


def operations(text: str) -> dict[str, str]:
    """Parses a compiled program; returns the group of each operation."""

    def entries(section: str, pattern: str) -> list[Any]:
        start = text.index(f"\n{section}\n")
        table = text[start : text.index("\n\n", start)]
        return re.findall(rf"^(\d+) {pattern}", table, re.MULTILINE)

    names = dict(entries("FunctionNames", '"(.*)"'))
    functions = dict(entries("FileLocations", r"{.*function_name_id=(\d+)"))
    frames = {
        index: (names[functions[location]], str(int(parent) - 1))  # 1 means none
        for index, location, parent in entries(
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
        metadata = re.search(r'op_name="([^"]*)".*?stack_frame_id=(\d+)', rest)
        op_name, frame = metadata.groups() if metadata else ("", "")
        groups[operation] = group_of(operation, op_name, stack(frame))
    return groups


def seconds_by_group(
    run: Callable[[], Any], groups: dict[str, str]
) -> dict[str, float]:
    """Runs a program under the profiler; returns seconds over all threads by group."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = Path(folder).glob("**/*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    total: dict[str, float] = collections.defaultdict(float)
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                # The time of a loop is that of its body.
                if operation and not str(operation).startswith("while"):
                    group = groups.get(str(operation), "rest")
                    total[group] += event.duration_ns / 1e9
    return total


def gemm_rate() -> float:
    """Returns float32 operations per second, two per multiply-add."""
    a = jnp.asarray(
        np.random.default_rng(0).standard_normal((_GEMM_SIZE, _GEMM_SIZE)), "float32"
    )
    product = jax.jit(jnp.matmul)
    candidate = Candidate(lambda: product(a, a), jax.block_until_ready)
    return 2 * _GEMM_SIZE**3 / medians({"": candidate}, rounds=3, seconds=0.5)[""]


def main(arguments: list[str]) -> None:
    """Runs the profile and prints a table."""
    cli.reject_positional(arguments)
    training = _WORK.value == "training"
    make = programs.training if training else programs.inference
    settings: dict[str, Any] = dict(backbone=_BACKBONE.value)
    program = make(
        size=(_CROP.value, _CROP.value),
        batch=_BATCH.value,
        dtype=_DTYPE.value,
        conv_impl=_CONV_IMPL.value,
        **settings,
    )
    compiled = program.compile()
    first, *others = programs.random_arrays(program.arguments)

    def run() -> None:
        nonlocal first
        result = jax.block_until_ready(compiled(first, *others))
        if training:  # the step donates its state
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
    # Gradients take two products for one of the forward pass.
    count = 2 * costs.layers * _BATCH.value * (3 if training else 1)
    rate = gemm_rate()
    print(
        f"{seconds:.2f} s; {rate / 1e9:.0f} billion operations per second in "
        f"matrix products; direct convolution takes {count / 1e9:.0f} billion, or "
        f"{count / rate:.2f} s\n\n| group | share |\n|---|---|"
    )
    for group, part in sorted(found.items(), key=lambda item: -item[1]):
        print(f"| {group} | {part / sum(found.values()):.1%} |")


if __name__ == "__main__":
    cli.run(main)
