"""Trained models scored on a split of a data set."""

from typing import Any

__all__ = ["multi_scale_scores"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        # On first use: importing JAX takes a second.
        from encnet_jax.evaluate import multi_scale

        return getattr(multi_scale, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
