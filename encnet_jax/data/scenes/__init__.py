"""`scenes`, a synthetic data set in which only context determines the classes."""

from encnet_jax.data.scenes.scene import (
    AMBIGUOUS,
    AMBIGUOUS_ROW,
    CLASS_NAMES,
    COLORS,
    CUE_ROWS,
    IGNORE_LABEL,
    IMAGE_SIZE,
    KINDS,
    SHAPES,
    SMALL_SIZE,
    Scene,
    draw,
)

__all__ = [
    "AMBIGUOUS",
    "AMBIGUOUS_ROW",
    "CLASS_NAMES",
    "COLORS",
    "CUE_ROWS",
    "IGNORE_LABEL",
    "IMAGE_SIZE",
    "KINDS",
    "SHAPES",
    "SMALL_SIZE",
    "Scene",
    "draw",
]
