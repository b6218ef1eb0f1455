"""Flax NNX modules; `create_model` builds each of them from its name."""

from encnet_jax.models.registry import create_model

__all__ = ["create_model"]
