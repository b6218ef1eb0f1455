"""Small heads of the baselines: what `make_heads.py` and the test of them share.

The heads were written in plain torch for this, after the shapes and the order of layers
in PyTorch-Encoding, torchvision and mmsegmentation, which share both but for what the
docstrings in `encnet_jax.models.heads` name.
"""

from pathlib import Path

import numpy as np

from .recipe import draw

STORED = Path(__file__).with_name("heads.npz")
SEED = 16120105
FEATURES, CHANNELS, CLASSES = 16, 8, 2
# No grid divides the first; every dilated kernel reaches across the second.
SIZES = {"psp": (13, 20), "aspp": (39, 14)}
# Head and setting -> name of the stored logits, in eval mode and in train mode.
CASES = {
    "psp_align_corners": ("psp", dict(align_corners=True)),
    "psp_half_pixel": ("psp", dict(align_corners=False)),
    "aspp_stride_8": ("aspp", dict(output_stride=8)),
    "aspp_stride_16": ("aspp", dict(output_stride=16)),
}

# Name of a convolution with batch norm -> input channels, output channels, kernel size.
_LAYERS = {
    "psp": {
        **{f"pyramid.{i}": (FEATURES, FEATURES // 4, 1) for i in range(4)},
        "project": (2 * FEATURES, CHANNELS, 3),
    },
    "aspp": {
        "views.0": (FEATURES, CHANNELS, 1),
        **{f"views.{i}": (FEATURES, CHANNELS, 3) for i in (1, 2, 3)},
        "image": (FEATURES, CHANNELS, 1),
        "join": (5 * CHANNELS, CHANNELS, 1),
        "project": (CHANNELS, CHANNELS, 3),
    },
}


def weights(head: str) -> dict[str, np.ndarray]:
    """Returns the pseudo-random weights of a head, in the layout of torch."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (inputs, outputs, size) in _LAYERS[head].items():
        shapes[f"{layer}.conv.weight"] = (outputs, inputs, size, size)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{layer}.bn.{leaf}"] = (outputs,)
    shapes["classifier.conv.weight"] = (CLASSES, CHANNELS, 1, 1)
    shapes["classifier.conv.bias"] = (CLASSES,)
    return {name: draw(f"{head}.{name}", s, SEED) for name, s in shapes.items()}


def features(head: str) -> np.ndarray:
    """Returns the pseudo-random features (b, c, h, w) that a head is given.

    Each image has its own strength in each channel: of plain noise all means over an
    image are alike, and a batch norm of them is nothing but rounding.
    """
    noise = draw(f"input.{head}", (2, FEATURES, *SIZES[head]), SEED, rule="relu_normal")
    strength = draw(f"strength.{head}", (2, FEATURES, 1, 1), SEED, rule="normal")
    return noise * np.abs(strength)
