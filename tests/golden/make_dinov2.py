"""Writes `dinov2.npz` with timm: `python -m tests.golden.make_dinov2` (timm 1.0.31).

Outputs in float64 of blocks at four depths after the final norm, and how far timm's own
float32 is from them.
"""

import numpy as np
import timm
import torch

from .dinov2 import CASES, SPECS, STORED, images, state_dict


def _network(name: str) -> torch.nn.Module:
    spec = SPECS[name]
    network = timm.create_model(
        "vit_small_patch14_dinov2.lvd142m",
        pretrained=False,
        dynamic_img_size=True,
        embed_dim=spec.features,
        depth=spec.blocks,
        num_heads=spec.heads,
    )
    weights = {key: torch.tensor(v) for key, v in state_dict(name).items()}
    network.load_state_dict(weights, strict=True)
    return network.eval()


def main() -> None:
    """Writes the file."""
    arrays = {}
    for case, (name, _, part) in CASES.items():
        network = _network(name)
        depths = [len(network.blocks) * i // 4 - 1 for i in (1, 2, 3, 4)]
        single, exact = (
            network.to(dtype).forward_intermediates(
                torch.tensor(images(case), dtype=dtype),
                depths,
                norm=True,
                intermediates_only=True,
            )
            for dtype in (torch.float32, torch.float64)
        )
        for number, (of32, of64) in enumerate(zip(single, exact), start=1):
            arrays[f"{case}_{number}"] = of64.detach().numpy()[part].astype(np.float32)
            arrays[f"{case}_{number}_error"] = (of32 - of64).abs().max().detach()
    np.savez_compressed(STORED, **arrays)


if __name__ == "__main__":
    main()
