"""What `impl="auto"` stands for: the one place that knows about platforms."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

# Operation -> platform -> the fastest implementation, as measured: on CPU by
# benchmarks/inference.py and training.py, on GPU by benchmarks/accelerator.py (see
# docs/design/gpu.md). TPU is not measured: it gets what its matrix units are made for.
_AUTO = {
    "conv": {"cpu": "winograd", "gpu": "space_to_batch", "tpu": "lax"},
    "add_bias": {"cpu": "float32", "gpu": "compute_dtype", "tpu": "float32"},
    "resize_argmax": {"cpu": "scan", "gpu": "lerp", "tpu": "matmul"},
    "resize_logits": {"cpu": "matmul", "gpu": "lerp", "tpu": "matmul"},
    "resized_cross_entropy": {"cpu": "scan", "gpu": "one_pass", "tpu": "scan"},
    "class_presence": {
        "cpu": "scatter",
        "gpu": "compare_pixels",
        "tpu": "compare_rows",
    },
}


def auto_impl(operation: str) -> str:
    """Returns the fastest implementation on the default backend.

    For choices that are made when a model is built; `dispatch` chooses when a function
    is lowered, which may be for another platform (export).
    """
    return _AUTO[operation].get(jax.default_backend(), _AUTO[operation]["tpu"])


def dispatch(
    operation: str, impls: Mapping[str, Callable[..., Any]], impl: str, *arrays: Any
) -> Any:
    """Calls an implementation, for `"auto"` that of the platform lowered for.

    Raises:
        ValueError: An unknown `impl`.
    """
    if impl != "auto":
        check_impl(impl, impls)
        return impls[impl](*arrays)
    fastest = {platform: impls[name] for platform, name in _AUTO[operation].items()}
    return jax.lax.platform_dependent(
        *arrays,
        cpu=fastest["cpu"],
        cuda=fastest["gpu"],
        rocm=fastest["gpu"],
        default=fastest["tpu"],
    )


def check_impl(impl: str, allowed: Mapping[str, Any]) -> None:
    """Raises `ValueError` for an implementation that there is not."""
    if impl not in allowed:
        names = ", ".join(map(repr, ("auto", *allowed)))
        raise ValueError(f"impl={impl!r}: allowed are {names}")
