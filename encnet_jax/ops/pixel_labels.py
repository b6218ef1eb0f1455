"""What every loss of pixels asks of its labels: their shape, and which name a class."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Integer

NO_CLASS = -1


def check_pixels(logits: jax.Array, labels: jax.Array) -> None:
    """Checks that logits and labels are those of the same images.

    It reads shapes and dtypes alone, and so leaves nothing in a compiled program.
    Unchecked, labels of one image would be repeated for all images of the logits.

    Args:
        logits: Must be (b, h, w, n).
        labels: Must be integers (b, H, W), of any H and W.

    Raises:
        ValueError: Other shapes, or two sizes of batch.
        TypeError: Labels that are no integers.
    """
    ranks = logits.ndim, labels.ndim
    if ranks != (4, 3) or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            f"labels of {labels.shape} for logits of {logits.shape}: must be "
            "(b, H, W) for (b, h, w, n)"
        )
    check_integers("labels", labels)


def check_integers(name: str, labels: jax.Array | np.ndarray) -> None:
    """Raises `TypeError` for labels that are neither integers nor Booleans."""
    if not (jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == bool):
        raise TypeError(f"{name} of {labels.dtype}: must be integers")


def has_class(
    labels: Integer[Array, "*shape"] | Bool[Array, "*shape"], num_classes: int
) -> Bool[Array, "*shape"]:
    """Returns which labels are 0 to num_classes - 1."""
    # In uint8 a bound of 300 would be one of 44.
    labels = labels.astype(jnp.int32)
    return (labels >= 0) & (labels < num_classes)


def known_labels(
    labels: Integer[Array, "*shape"] | Bool[Array, "*shape"],
    num_classes: int,
    ignore_label: int = NO_CLASS,
) -> Int32[Array, "*shape"]:
    """Returns the labels, and `NO_CLASS` where they are to be ignored.

    Args:
        labels: Any integers of up to 32 bits.
        num_classes: Number of classes n; labels that are not 0 to n - 1 are ignored.
        ignore_label: Another label to ignore; matters if it is 0 to n - 1.
    """
    known = has_class(labels, num_classes)
    labels = labels.astype(jnp.int32)
    if 0 <= ignore_label < num_classes:
        known &= labels != ignore_label
    return jnp.where(known, labels, NO_CLASS)
