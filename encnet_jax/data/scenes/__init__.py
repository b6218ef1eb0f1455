"""`scenes`, the embedded data set in which only the context decides."""

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
