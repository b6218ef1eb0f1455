"""The encoding layer against its literal impl, in JAX and in PyTorch.

    python -m benchmarks.encoding [--pixels=900,3600] [--codes=32] [--output=FILE]

The literal impl makes a tensor (b, n, k, c) of the residuals of every pixel to every
codeword, as the paper's equations read; ours needs matrix products of (n, c) and (k, c)
alone. For growing numbers of pixels n and codewords k the table has the milliseconds
forward and with all gradients, the temporary memory with gradients (by XLA's analysis;
of PyTorch what the resident memory of the process grows by), and the largest error of
the result against float64. Results are compared before anything is timed. Needs the
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
_MOST = flags.DEFINE_float("most", 2.0, "GiB of residuals that the literal impl gets.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each candidate.")
_SECONDS = flags.DEFINE_float("seconds", 0.5, "Length of a turn; at least one call.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")


class Arrays(NamedTuple):
    """What all candidates get, float32.

    Attributes:
        x: Features (b, n, c).
        codewords: (k, c).
        scale: (k,), negative.
        change: (b, k, c), by which the gradients are weighted.
    """

    x: np.ndarray
    codewords: np.ndarray
    scale: np.ndarray
    change: np.ndarray


class Form(NamedTuple):
    """One way to compute the layer.

    Attributes:
        forward: Returns the result (b, k, c).
        gradients: Returns those by features, codewords and scales.
        memory: Temporary bytes with gradients.
    """

    forward: Candidate
    gradients: Candidate
    memory: int


def arrays(batch: int, pixels: int, codes: int, channels: int) -> Arrays:
    """Returns arrays as the layer meets them behind a batch norm."""
    rng = np.random.default_rng(0)
    return Arrays(
        np.maximum(rng.standard_normal((batch, pixels, channels), np.float32), 0),
        rng.standard_normal((codes, channels), np.float32) / 4,
        -rng.random(codes, np.float32) / 50,
        rng.standard_normal((batch, codes, channels), np.float32),
    )


def ours(given: Arrays) -> Form:
    """The layer of this package."""
    layer = Encoding(given.x.shape[-1], len(given.scale), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)

    def encode(x: jax.Array, codewords: jax.Array, scale: jax.Array) -> jax.Array:
        nnx.replace_by_pure_dict(state, {"codewords": codewords, "scale": scale})
        return nnx.merge(graphdef, state)(x)

    return _in_jax(encode, given)


def literal(given: Arrays) -> Form:
    """The equations as they stand, in JAX."""

    def encode(x: jax.Array, codewords: jax.Array, scale: jax.Array) -> jax.Array:
        residuals = x[:, :, None] - codewords
        weights = jax.nn.softmax(scale * jnp.square(residuals).sum(-1), axis=-1)
        return (weights[..., None] * residuals).sum(1)

    return _in_jax(encode, given)


def _in_jax(encode: Callable[..., jax.Array], given: Arrays) -> Form:
    def gradients(x, codewords, scale, change):
        result, pull = jax.vjp(encode, x, codewords, scale)
        return result, pull(change)

    *inputs, change = map(jnp.asarray, given)
    forward = jax.jit(encode)
    both = jax.jit(gradients).lower(*inputs, change).compile()
    memory: Any = both.memory_analysis()
    return Form(
        Candidate(lambda: forward(*inputs), jax.block_until_ready),
        Candidate(lambda: both(*inputs, change), jax.block_until_ready),
        memory.temp_size_in_bytes,
    )


def literal_torch(given: Arrays) -> Form:
    """The equations as they stand, in PyTorch."""
    *inputs, change = map(torch.from_numpy, given)
    varied = [tensor.clone().requires_grad_() for tensor in inputs]

    def encode(x, codewords, scale):
        residuals = x[:, :, None] - codewords
        weights = (scale * residuals.square().sum(-1)).softmax(-1)
        return (weights[..., None] * residuals).sum(1)

    def forward():
        with torch.inference_mode():
            return encode(*inputs)

    def gradients():
        result = encode(*varied)
        return result, torch.autograd.grad(result, varied, change)

    candidates = (
        Candidate(call, lambda result: result) for call in (forward, gradients)
    )
    return Form(*candidates, _growth(gradients))


def _growth(call: Callable[[], Any]) -> int:
    """Returns by how many bytes the resident memory of the process grows at most."""
    call()  # what stays is there now
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def exact(given: Arrays) -> np.ndarray:
    """Returns the result of the first image in float64."""
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
    """Returns for each impl its times, memory and error."""
    given = arrays(batch, pixels, codes, channels)
    impls = {"encnet_jax": ours(given)}
    if 4 * batch * pixels * codes * channels <= _MOST.value * 2**30:
        impls |= {"literal": literal(given), "literal torch": literal_torch(given)}
    wanted = exact(given)
    found: dict[str, Any] = {}
    for name, impl in impls.items():
        result = np.asarray(impl.forward.wait(impl.forward.call()))[0]
        error = abs(result - wanted).max() / abs(wanted).max()
        if error > 1e-4:
            raise RuntimeError(f"{name}: differs from float64 by {error:.1e}")
        found[name] = dict(error=error, temporary_bytes=impl.memory)
    timing: dict[str, Any] = dict(rounds=_ROUNDS.value, seconds=_SECONDS.value)
    for part in ("forward", "gradients"):
        candidates = {name: getattr(impl, part) for name, impl in impls.items()}
        for name, seconds in medians(candidates, **timing).items():
            found[name][part] = seconds
    return found


def rows(case: str, found: dict[str, Any]) -> str:
    """Returns lines of a Markdown table; others relative to ours."""
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
    """Measures, prints a table, and writes the file."""
    cli.reject_positional(arguments)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cases = [(int(pixels), 32) for pixels in _PIXELS.value]
    cases += [(3600, int(codes)) for codes in _CODES.value]
    record = BenchmarkRecord(Path(_OUTPUT.value)) if _OUTPUT.value else None
    if record:
        record.start(resume=True)
    print("| n, k | impl | forward | with gradients | | temporary memory | | error |")
    print("|---|---|---|---|---|---|---|---|")
    for pixels, codes in dict.fromkeys(cases):
        found = measure(_BATCH.value, pixels, codes, _CHANNELS.value)
        case = f"{pixels}, {codes}"
        print(rows(case, found), flush=True)
        if record:
            record.put("done", case, found)


if __name__ == "__main__":
    cli.run(main)
