"""The encoding layer against its literal implementation, in JAX and in PyTorch.

    python -m benchmarks.encoding [--pixels=900,3600] [--codes=32] [--output=FILE]

The literal implementation follows the equations of the paper and creates a tensor
(b, n, k, c) of the residuals of every pixel to every codeword; ours needs only matrix
products of (n, c) and (k, c). For growing numbers of pixels n and codewords k, the
table shows the time of the forward pass and with all gradients, the temporary memory
with gradients (by XLA's analysis; for PyTorch the growth of resident memory), and the
largest error against float64. Results are compared before anything is timed. Needs the
extra `bench`, and Linux.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags
from flax import nnx

from benchmarks.record import BenchmarkRecord
from benchmarks.timing import Candidate, medians
from encnet_jax import cli
from encnet_jax.models.encoding import Encoding

_BATCH = flags.DEFINE_integer("batch", 4, "Images b.")
_PIXELS = flags.DEFINE_list("pixels", ["900", "3600", "14400"], "Pixels n; k is 32.")
_CODES = flags.DEFINE_list("codes", ["8", "32", "128"], "Codewords k; n is 3600.")
_CHANNELS = flags.DEFINE_integer("channels", 512, "Channels c.")
_MOST = flags.DEFINE_float("most", 2.0, "Limit of the residuals in GiB.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds per candidate.")
_SECONDS = flags.DEFINE_float("seconds", 0.5, "Length of a round; at least one call.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")


class Arrays(NamedTuple):
    """Inputs of all candidates, float32.

    Attributes:
        x: Features (b, n, c).
        codewords: Codewords (k, c).
        scale: Smoothing factors (k,), negative.
        cotangent: Cotangent of the result (b, k, c).
    """

    x: np.ndarray
    codewords: np.ndarray
    scale: np.ndarray
    cotangent: np.ndarray


class Implementation(NamedTuple):
    """One implementation of the layer.

    Attributes:
        forward: Computes the result (b, k, c).
        gradients: Also computes the gradients of features, codewords and scales.
        memory: Temporary bytes with gradients.
    """

    forward: Candidate
    gradients: Candidate
    memory: int


def arrays(batch: int, pixels: int, codes: int, channels: int) -> Arrays:
    """Returns inputs as they are after batch norm and ReLU."""
    rng = np.random.default_rng(0)
    return Arrays(
        np.maximum(rng.standard_normal((batch, pixels, channels), np.float32), 0),
        rng.standard_normal((codes, channels), np.float32) / 4,
        -rng.random(codes, np.float32) / 50,
        rng.standard_normal((batch, codes, channels), np.float32),
    )


def ours(given: Arrays) -> Implementation:
    """Returns the layer of this package."""
    layer = Encoding(given.x.shape[-1], len(given.scale), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)

    def encode(x: jax.Array, codewords: jax.Array, scale: jax.Array) -> jax.Array:
        nnx.replace_by_pure_dict(state, {"codewords": codewords, "scale": scale})
        return nnx.merge(graphdef, state)(x)

    return _in_jax(encode, given)


def literal(given: Arrays) -> Implementation:
    """Returns the literal equations in JAX."""

    def encode(x: jax.Array, codewords: jax.Array, scale: jax.Array) -> jax.Array:
        residuals = x[:, :, None] - codewords
        weights = jax.nn.softmax(scale * jnp.square(residuals).sum(-1), axis=-1)
        return (weights[..., None] * residuals).sum(1)

    return _in_jax(encode, given)


def _in_jax(encode: Callable[..., jax.Array], given: Arrays) -> Implementation:
    def gradients(x, codewords, scale, cotangent):
        result, vjp = jax.vjp(encode, x, codewords, scale)
        return result, vjp(cotangent)

    *inputs, cotangent = map(jnp.asarray, given)
    forward = jax.jit(encode)
    both = jax.jit(gradients).lower(*inputs, cotangent).compile()
    memory: Any = both.memory_analysis()
    return Implementation(
        Candidate(lambda: forward(*inputs), jax.block_until_ready),
        Candidate(lambda: both(*inputs, cotangent), jax.block_until_ready),
        memory.temp_size_in_bytes,
    )


def literal_torch(given: Arrays) -> Implementation:
    """Returns the literal equations in PyTorch."""
    *inputs, cotangent = map(torch.from_numpy, given)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]

    def encode(x, codewords, scale):
        residuals = x[:, :, None] - codewords
        weights = (scale * residuals.square().sum(-1)).softmax(-1)
        return (weights[..., None] * residuals).sum(1)

    def forward():
        with torch.inference_mode():
            return encode(*inputs)

    def gradients():
        result = encode(*leaves)
        return result, torch.autograd.grad(result, leaves, cotangent)

    candidates = (
        Candidate(call, lambda result: result) for call in (forward, gradients)
    )
    return Implementation(*candidates, _growth(gradients))


def _growth(call: Callable[[], Any]) -> int:
    """Returns the peak growth of resident memory in bytes."""
    call()  # allocates what persists
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def exact(given: Arrays) -> np.ndarray:
    """Computes the result of the first image in float64."""
    codewords, scale = given.codewords.astype(np.float64), given.scale
    total = np.zeros(codewords.shape)
    for x in np.array_split(given.x[0].astype(np.float64), 100):
        residuals = x[:, None] - codewords
        logits = scale * np.square(residuals).sum(-1)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        total += np.einsum("nk,nkc->kc", weights, residuals)
    return total


def measure(batch: int, pixels: int, codes: int, channels: int) -> dict[str, Any]:
    """Returns times, memory and error of each implementation."""
    given = arrays(batch, pixels, codes, channels)
    implementations = {"encnet_jax": ours(given)}
    if 4 * batch * pixels * codes * channels <= _MOST.value * 2**30:
        implementations |= {
            "naive_reference": literal(given),
            "naive_reference torch": literal_torch(given),
        }
    expected = exact(given)
    found: dict[str, Any] = {}
    for name, implementation in implementations.items():
        result = np.asarray(implementation.forward.wait(implementation.forward.call()))[
            0
        ]
        error = abs(result - expected).max() / abs(expected).max()
        if error > 1e-4:
            raise RuntimeError(f"{name}: differs from float64 by {error:.1e}")
        found[name] = dict(error=error, temporary_bytes=implementation.memory)
    timing: dict[str, Any] = dict(rounds=_ROUNDS.value, seconds=_SECONDS.value)
    for part in ("forward", "gradients"):
        candidates = {
            name: getattr(implementation, part)
            for name, implementation in implementations.items()
        }
        for name, seconds in medians(candidates, **timing).items():
            found[name][part] = seconds
    return found


def rows(case: str, found: dict[str, Any]) -> str:
    """Formats lines of a Markdown table, relative to this package."""
    first = found["encnet_jax"]
    lines = []
    for name, row in found.items():
        memory = row["temporary_bytes"] / 2**20
        lines.append(
            f"| {case} | {name} | {1e3 * row['forward']:.1f} ms "
            f"| {1e3 * row['gradients']:.1f} ms "
            f"| {row['gradients'] / first['gradients']:.1f} x | {memory:.1f} MiB "
            f"| {row['temporary_bytes'] / first['temporary_bytes']:.0f} x "
            f"| {row['error']:.0e} |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Runs the benchmark, prints a table, and writes the results."""
    cli.reject_positional(arguments)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cases = [(int(pixels), 32) for pixels in _PIXELS.value]
    cases += [(3600, int(codes)) for codes in _CODES.value]
    record = BenchmarkRecord(Path(_OUTPUT.value)) if _OUTPUT.value else None
    if record:
        record.start(resume=True)
        record.check_settings({"batch": _BATCH.value, "channels": _CHANNELS.value})
    print("| n, k | code | forward | with gradients | | temporary memory | | error |")
    print("|---|---|---|---|---|---|---|---|")
    for pixels, codes in dict.fromkeys(cases):
        found = measure(_BATCH.value, pixels, codes, _CHANNELS.value)
        case = f"{pixels}, {codes}"
        print(rows(case, found), flush=True)
        if record:
            record.put("done", case, found)


if __name__ == "__main__":
    cli.run(main)
