"""EncNet in JAX/Flax: context encoding for semantic segmentation.

`Segmenter` predicts; `encnet_jax.models.create_model` builds networks.
"""

from encnet_jax.errors import UserError

__all__ = ["Segmenter", "UserError"]


def __getattr__(name: str):
    """Imports `Segmenter` when it is asked for: importing JAX takes a second."""
    if name == "Segmenter":
        from encnet_jax.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module 'encnet_jax' has no attribute {name!r}")
