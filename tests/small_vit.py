"""A vision transformer of a few channels, as a backbone by name."""

import functools

import pytest

from encnet_jax.models import registry
from encnet_jax.models.dinov2 import DINOV2, DINOv2, ViTSpec

NAME = "dinov2_small"


def add_small_vit(monkeypatch: pytest.MonkeyPatch) -> str:
    """Registers the backbone until the end of a test; returns its name."""
    monkeypatch.setitem(DINOV2, NAME, ViTSpec(features=8, blocks=4, heads=2, grid=3))
    monkeypatch.setitem(registry.BACKBONES, NAME, functools.partial(DINOv2, NAME))
    return NAME
