"""Weights of small networks under the keys of the original code bases.

The keys are those of the original state dicts (see golden/); residual stages are cut to
one block and widths to an eighth, which gives a `tiny` backbone of width 8.
"""

import json
import pathlib
import re

import numpy as np
from golden.recipe import draw

_NAMES = pathlib.Path(__file__).parent / "golden" / "data"


def full_shapes(case: str) -> dict[str, tuple[int, ...]]:
    """Returns key -> shape of an original network, in its order."""
    facts = json.loads((_NAMES / f"{case}.json").read_text())
    return {name: tuple(shape) for name, shape in facts["state_dict"].items()}


def small_shapes(case: str) -> dict[str, tuple[int, ...]]:
    """Returns key -> shape of a small network of the same kind."""
    shapes = full_shapes(case)
    plain = any(re.fullmatch(r"(\w+\.)?conv1\.weight", name) for name in shapes)
    blocks = r"layer\d\.[1-9]\d*\." if "resnet18" not in case else r"none"
    return {
        name: _small(name, shape, plain)
        for name, shape in shapes.items()
        if not re.search(blocks, name)
    }


def _small(name: str, shape: tuple[int, ...], plain: bool) -> tuple[int, ...]:
    # Classes, codewords, colors and kernel sizes are not multiples of 64.
    small = tuple(n // 8 if n % 64 == 0 else n for n in shape)
    if plain:
        return small
    if re.match(r"(pretrained\.|backbone\.)?(conv1|stem|bn1)\.", name):
        return shape  # deep stems have one of two widths
    if re.search(r"layer1\.0\.(conv1|downsample\.[01])\.weight", name) and shape[1:]:
        return (small[0], *shape[1:])
    return small


def random_weights(
    shapes: dict[str, tuple[int, ...]], seed: int = 7
) -> dict[str, np.ndarray]:
    """Returns key -> pseudorandom array, float32, or int64 for counters."""
    return {name: draw(name, shape, seed) for name, shape in shapes.items()}


def small_weights(case: str) -> dict[str, np.ndarray]:
    """Returns pseudorandom weights of a small network."""
    return random_weights(small_shapes(case))


def fcn_weights() -> dict[str, np.ndarray]:
    """Returns pseudorandom weights of a small FCN of PyTorch-Encoding.

    The keys of its head are derived from those of the auxiliary head, which is the same
    module; no state dict of the whole network is published.
    """
    shapes = small_shapes("encnet_resnet50s_ade20k")
    fcn = {k: v for k, v in shapes.items() if not k.startswith("head.")}
    for name, shape in shapes.items():
        if name.startswith("auxlayer."):
            wider = tuple({128: 256, 32: 64}.get(n, n) for n in shape)
            fcn[name.replace("auxlayer.", "head.")] = wider
    return random_weights(fcn)
