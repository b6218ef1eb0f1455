"""Vision transformers of DINOv2: what `make_dinov2.py` and the test of them share."""

from pathlib import Path

import numpy as np

from encnet_jax.models.dinov2 import ViTSpec

from .recipe import draw

STORED = Path(__file__).with_name("dinov2.npz")
SEED = 23040719
SMALL = ViTSpec(features=24, blocks=4, heads=2)
SPECS = {"small": SMALL, "dinov2_vits14": ViTSpec(384, 12, 6)}
# Case -> network; size of the images; part of each map, (b, c, h, w), that is stored.
CASES = {
    "native_grid": ("small", (518, 518), np.s_[:, ::3, ::9, ::9]),
    "smaller_grid": ("small", (98, 98), np.s_[:]),
    "wider_and_lower": ("small", (28, 574), np.s_[:, ::2]),
    "taller": ("small", (126, 42), np.s_[:]),
    "vits14": ("dinov2_vits14", (56, 84), np.s_[:, ::8]),
}


def state_dict(network: str) -> dict[str, np.ndarray]:
    """Returns the pseudo-random weights of a network, by the names of timm."""
    spec = SPECS[network]
    c = spec.features
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, c),
        "pos_embed": (1, 1 + spec.grid**2, c),
        "patch_embed.proj.weight": (c, 3, 14, 14),
        "patch_embed.proj.bias": (c,),
    }
    for block in (f"blocks.{i}" for i in range(spec.blocks)):
        for number in (1, 2):
            shapes[f"{block}.norm{number}.weight"] = (c,)
            shapes[f"{block}.norm{number}.bias"] = (c,)
            shapes[f"{block}.ls{number}.gamma"] = (c,)
        for layer, (features_out, features_in) in {
            "attn.qkv": (3 * c, c),
            "attn.proj": (c, c),
            "mlp.fc1": (4 * c, c),
            "mlp.fc2": (c, 4 * c),
        }.items():
            shapes[f"{block}.{layer}.weight"] = (features_out, features_in)
            shapes[f"{block}.{layer}.bias"] = (features_out,)
    shapes |= {"norm.weight": (c,), "norm.bias": (c,)}
    # Gains of LayerScale far from the 1e-5 they start at: blocks shall matter.
    rules = {"gamma": "normal", "cls_token": "normal", "pos_embed": "normal"}
    return {
        key: draw(key, shape, SEED, rule=rules.get(key.rpartition(".")[2], ""))
        for key, shape in shapes.items()
    }


def images(case: str) -> np.ndarray:
    """Returns the pseudo-random images (b, 3, h, w) that a network is given."""
    return draw(f"input.{case}", (1, 3, *CASES[case][1]), SEED, rule="normal")
