"""Programs are compiled for accelerators that this machine does not have.

Needs their compilers: `pip install jax[tpu]`, or `jax[cuda13]`.
"""

import importlib.util
import json
import subprocess
import sys

import pytest
from jax.experimental import topologies

from benchmarks import targets
from encnet_jax.errors import UserError
from tests.commands import ROOT, environment

COMPILERS = {"v5e": "libtpu", "h100": "jax_cuda13_plugin"}
# In a process of its own: compilers stay loaded.
STEP = """
import sys
from benchmarks import compiled, targets
from tests.train.test_step_collectives import SIZES, collectives
with targets.compiling_for(sys.argv[1], 8) as mesh:
    step = compiled.training(size=(32, 48), batch=16, dtype="bfloat16", **SIZES)
    program = step.spread(mesh).compile(targets.compiler_options(sys.argv[1]))
print("found:", *sorted(set(collectives(program.as_text()))))
"""
# 3x3 convolutions of ResNet-50: three in the stem, one a block, one in the head.
LABELS = """
from benchmarks import compiled, targets
from tests.ops.test_conv_bias import count_fused_convolutions
with targets.compiling_for("h100") as mesh:
    settings = dict(backbone="resnet50", dtype="bfloat16")
    labels = compiled.inference(size=(96, 96), batch=4, **settings).spread(mesh)
    program = labels.compile(targets.compiler_options("h100"))
print("fused:", count_fused_convolutions(program.as_text()))
"""
# What the loss of a step holds beside one array of the resized logits, in their sizes.
LOSS = """
import jax, jax.numpy as jnp
from benchmarks import compiled, targets
from encnet_jax.losses import segmentation_loss
from encnet_jax.models.segmentation import SegmentationOutput
from encnet_jax.run.sharding import replicated
def loss(logits, presence, aux, labels):
    output = SegmentationOutput(logits, presence, aux)
    return segmentation_loss(output, labels, num_classes=150)[0]
logits = (4, 60, 60, 150), "bfloat16"
shapes = logits, ((4, 150), "float32"), logits, ((4, 480, 480), "int32")
with targets.compiling_for("h100") as mesh:
    placed = dict(sharding=replicated(mesh))
    arguments = [jax.ShapeDtypeStruct(*shape, **placed) for shape in shapes]
    program = compiled.Program(jax.jit(jax.value_and_grad(loss, (0, 1, 2))), arguments)
    memory = compiled.compiled_memory(program.compile(targets.compiler_options("h100")))
print("held:", memory.temporary / (4 * 480 * 480 * 150 * 2))
"""


def run(target, *arguments, **variables):
    if importlib.util.find_spec(COMPILERS[target]) is None:
        pytest.skip(f"needs the compiler in {targets.TARGETS[target].package}")
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("target", COMPILERS)
def test_step_over_eight_devices_only_adds_up(target):
    assert "found: all-reduce\n" in run(target, "-c", STEP, target)


def test_convolution_bias_and_relu_of_labels_are_one_call_on_gpu():
    assert "fused: 20\n" in run("h100", "-c", LABELS)


def test_loss_holds_the_resized_logits_about_twice():
    # Nearly eleven times where the compiler shares comparisons with class presence.
    printed = run("h100", "-c", LOSS)
    assert float(printed.partition("held:")[2]) < 4


@pytest.mark.parametrize("target", COMPILERS)
def test_memory_is_of_the_target(target, tmp_path):
    path = tmp_path / "memory.json"
    options = ("--small", "--only=bfloat16-keep-1", f"--output={path}")
    several = ("--devices=4", "--batches=4,64", f"--target={target}")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    run(target, "-m", "benchmarks.memory", *options, *several, **cache)
    assert not (tmp_path / "cache").exists()  # a real device would find it
    found = json.loads(path.read_text())
    assert found["devices"] == 4
    assert {"v5e": "TPU v5 lite", "h100": "H100"}[target] in found["device"]
    few, many = (found["bytes"]["bfloat16-keep-1"][batch] for batch in ("4", "64"))
    assert few["temporary"] < many["temporary"]
    largest = found["largest_batch"]["bfloat16-keep-1"]
    assert largest > 64 and largest % 4 == 0


def test_number_of_devices_that_a_target_lacks_is_refused():
    with (
        pytest.raises(UserError, match="--devices=3: allowed with --target=v5e: 1, 4"),
        targets.compiling_for("v5e", 3),
    ):
        pass


def test_missing_compiler_is_named(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with (
        pytest.raises(UserError, match=r"--target=v6e: .*pip install 'jax\[tpu\]=="),
        targets.compiling_for("v6e"),
    ):
        pass
