"""What `benchmarks.accelerator` measures, part by part, and the file it goes to."""

import importlib.metadata
import importlib.util
import logging
import os
import platform
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import compiled as programs
from benchmarks import windows
from benchmarks.model_costs import model_costs
from benchmarks.record import BenchmarkRecord
from benchmarks.sizes import FULL, SMALL, Network, Sizes
from benchmarks.timing import Candidate, medians
from encnet_jax.errors import UserError

_log = logging.getLogger("encnet_jax.benchmarks")


def measure(part: str, record: BenchmarkRecord, sizes: Sizes, torch: str) -> None:
    """Measures a part and puts the results into the record.

    Args:
        part: One of `sizes.PARTS`.
        record: Where to.
        sizes: `FULL` or `SMALL`.
        torch: `"compile"`, `"eager"` or `"none"`.

    Raises:
        UserError: There is no accelerator for the full sizes.
    """
    if jax.default_backend() == "cpu" and sizes is FULL:
        raise UserError("no accelerator: JAX sees only the CPU; allowed is --small")
    other, facts = _torch_side(torch)
    about = {**device_facts(), "torch": facts, "small": sizes is SMALL}
    _check_same(record, about)
    for key, value in about.items():
        record.put("device", key, value)
    if not record.has("device", "products_per_second"):
        record.put("device", "products_per_second", _products_per_second(sizes))
    if part == "layers":
        _layers(record, sizes, other)
    elif part == "windows":
        windows.measure(record, other, **sizes.windows)
    else:
        _network(*part.split(), record=record, sizes=sizes, torch=other)


def _check_same(record: BenchmarkRecord, about: dict[str, Any]) -> None:
    """Raises `UserError` if the record has results of another device or version."""
    stored = record.data.get("device", {})
    for key in ("device", "jax", "torch", "small", "xla_flags"):
        if key in stored and stored[key] != about[key]:
            raise UserError(
                f"{record.path}: has results with {key}={stored[key]!r}, here it is "
                f"{about[key]!r}; give another --output"
            )


def device_facts() -> dict[str, str]:
    """Returns what the numbers depend on: device, driver, versions."""
    device = jax.devices()[0]
    facts = {
        "device": device.device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "runtime": " ".join(device.client.platform_version.split()),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    if device.platform == "gpu":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True).stdout
        except OSError:
            answer = ""
        facts["driver"] = answer.strip() or "not known"
    return facts


def _torch_side(how: str) -> tuple[Any, str]:
    """Returns torch on this device, or None, and its version or why there is none."""
    if how == "none":
        return None, "not asked for"
    if importlib.util.find_spec("torch") is None:
        return None, "not installed"
    from benchmarks.torch_training import Torch, version

    device, facts = version(jax.default_backend())
    if device is None:
        return None, facts
    # Its compiler needs minutes for a processor.
    compiled = how == "compile" and device != "cpu"
    return Torch(device, compiled), f"{facts}, {'compiled' if compiled else 'eager'}"


def _products_per_second(sizes: Sizes) -> float:
    """Returns the rate of bfloat16 matrix products, two operations a multiply-add."""
    n = sizes.product
    a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n)), jnp.bfloat16)
    product = Candidate(lambda: _product(a, a), jax.block_until_ready)
    timing: dict[str, Any] = dict(rounds=sizes.rounds, seconds=sizes.seconds)
    rate = 2 * n**3 / medians({"jax": product}, **timing)["jax"]
    _log.info("matrix products: %.3g teraflops", rate / 1e12)
    return rate


def _layers(record: BenchmarkRecord, sizes: Sizes, torch: Any) -> None:
    timing: dict[str, Any] = dict(rounds=sizes.rounds, seconds=sizes.seconds)
    candidates = {
        impl: tuple(map(_side, programs.dilated_stages(impl, **sizes.stages)))
        for impl in ("lax", "space_to_batch")
    }
    _put_both(record, "dilated_stages", candidates, timing)
    candidates = {"jax": tuple(map(_side, programs.encoding(**sizes.encoding)))}
    if torch is not None:
        candidates["torch"] = torch.encoding(**sizes.encoding)
    _put_both(record, "encoding", candidates, timing)


@jax.jit
def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


def _side(program: programs.Program) -> Candidate:
    compiled = program.compile()
    arguments = programs.random_arrays(program.arguments)
    return Candidate(lambda: compiled(*arguments), jax.block_until_ready)


def _put_both(
    record: BenchmarkRecord,
    section: str,
    candidates: dict[str, Any],
    timing: dict[str, Any],
) -> None:
    """Times pairs of candidates, forward and with gradients."""
    forward = medians({name: pair[0] for name, pair in candidates.items()}, **timing)
    gradients = medians({name: pair[1] for name, pair in candidates.items()}, **timing)
    for name in candidates:
        times = (1e3 * forward[name], 1e3 * gradients[name])
        record.put(section, name, dict(zip(("forward_ms", "gradients_ms"), times)))
        _log.info("%s, %s: %.2f and %.2f ms", section, name, *times)


def _network(
    name: str, work: str, *, record: BenchmarkRecord, sizes: Sizes, torch: Any
) -> None:
    """Measures a program alone at first, then in turns with torch's.

    Both are compiled before they are timed in turns.
    """
    network = sizes.networks[name]
    timing: dict[str, Any] = dict(rounds=sizes.rounds, seconds=sizes.seconds)
    rate = record.data["device"]["products_per_second"]

    def put(candidate: str, seconds: float, more: dict[str, Any]) -> None:
        row = {**_row(network, work, seconds, rate), "candidate": candidate, **more}
        record.put("networks", f"{name} {work} {candidate}", row)
        _log.info("%s %s, %s: %.1f ms", name, work, candidate, 1e3 * seconds)

    program = _program(work, network)
    compiled = program.compile()
    ours = _stepping(work, compiled, program.arguments)
    alone = medians({"jax": ours}, **timing)["jax"]
    facts = _peak(compiled)
    put("jax", alone, facts)
    if torch is None:
        return
    images = _images(network.batch(work), network.size)
    theirs = torch.candidate(work, network.backbone, *images)
    for _ in range(2):  # compiling and trying out kernels take memory of their own
        theirs.wait(theirs.call())
    torch.start_peak()
    both = medians({"jax": ours, "torch": theirs}, **timing)
    put("jax", both["jax"], facts)
    put("torch", both["torch"], dict(peak_bytes=torch.peak_bytes()))
    record.put("ratios", f"{name} {work}", both["torch"] / both["jax"])


def _program(work: str, network: Network) -> programs.Program:
    make = programs.training if work == "training" else programs.inference
    return make(
        size=network.size,
        batch=network.batch(work),
        dtype=jnp.bfloat16,
        backbone=network.backbone,
    )


def _stepping(work: str, compiled: jax.stages.Compiled, shapes: Any) -> Candidate:
    """Returns a candidate that calls a program; training carries its own state on."""
    first, *others = programs.random_arrays(shapes)
    if work == "inference":
        return Candidate(lambda: compiled(first, *others), jax.block_until_ready)
    state = first

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, *others)
        return metrics

    return Candidate(step, jax.block_until_ready)


def _images(batch: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *size, 3), np.uint8)
    return images, rng.integers(0, programs.CLASSES, (batch, *size), np.int32)


def _peak(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Returns the peak of memory by the compiler's plan, and as the device counted it.

    The device also counts what was tried out while compiling.
    """
    found = dict(peak_bytes=programs.compiled_memory(compiled).peak, peak_by="compiler")
    counted = jax.devices()[0].memory_stats()
    if counted and "peak_bytes_in_use" in counted:
        found["device_peak_bytes"] = counted["peak_bytes_in_use"]
    return found


def _row(
    network: Network, work: str, seconds: float, rate: float | None
) -> dict[str, Any]:
    height, width = network.size
    costs = model_costs(
        "encnet",
        size=height,
        num_classes=programs.CLASSES,
        backbone=network.backbone,
        aux_head=work == "training",
    )
    # Gradients take two products where the forward pass has one. The costs are in
    # proportion to the pixels, but for a few vectors.
    passes = 3 if work == "training" else 1
    operations = 2 * passes * costs.layers * width / height
    images_per_second = network.batch(work) / seconds
    return dict(
        backbone=network.backbone,
        height=height,
        width=width,
        work=work,
        batch=network.batch(work),
        images_per_second=images_per_second,
        share=images_per_second * operations / rate if rate else None,
    )
