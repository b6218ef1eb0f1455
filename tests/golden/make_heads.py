"""Writes `heads.npz` with torch: `python -m tests.golden.make_heads` (torch 2.13).

Logits in float64 of each case, in eval mode and in train mode without dropout, and how
far torch's own float32 is from them.
"""

import numpy as np
import torch
from torch.nn import functional as F

from .heads import CASES, STORED, features, weights


def _layer(x, w, name, training, dilation=1):
    kernel = w[f"{name}.conv.weight"]
    x = F.conv2d(
        x, kernel, padding=dilation * (kernel.shape[2] // 2), dilation=dilation
    )
    statistics = (w[f"{name}.bn.running_{s}"].clone() for s in ("mean", "var"))
    affine = (w[f"{name}.bn.{s}"] for s in ("weight", "bias"))
    return F.relu(F.batch_norm(x, *statistics, *affine, training=training))


def _psp(x, w, training, align_corners):
    joined = [x]
    for i, bins in enumerate((1, 2, 3, 6)):
        level = _layer(F.adaptive_avg_pool2d(x, bins), w, f"pyramid.{i}", training)
        joined.append(
            F.interpolate(
                level, x.shape[2:], mode="bilinear", align_corners=align_corners
            )
        )
    return torch.cat(joined, 1)


def _aspp(x, w, training, output_stride):
    rates = {8: (12, 24, 36), 16: (6, 12, 18)}[output_stride]
    views = [_layer(x, w, "views.0", training)]
    for i, rate in enumerate(rates, 1):
        views.append(_layer(x, w, f"views.{i}", training, rate))
    image = _layer(F.adaptive_avg_pool2d(x, 1), w, "image", training)
    views.append(image.expand_as(views[0]))
    return _layer(torch.cat(views, 1), w, "join", training)


def _logits(head, dtype, training, **settings):
    w = {name: torch.tensor(v, dtype=dtype) for name, v in weights(head).items()}
    x = torch.tensor(features(head), dtype=dtype)
    x = {"psp": _psp, "aspp": _aspp}[head](x, w, training, **settings)
    x = _layer(x, w, "project", training)
    x = F.conv2d(x, w["classifier.conv.weight"], w["classifier.conv.bias"])
    return x.numpy()


def main() -> None:
    """Writes the file."""
    arrays = {}
    for case, (head, settings) in CASES.items():
        for mode in ("eval", "train"):
            exact, single = (
                _logits(head, dtype, mode == "train", **settings)
                for dtype in (torch.float64, torch.float32)
            )
            arrays[f"{case}_{mode}"] = exact.astype(np.float32)
            arrays[f"{case}_{mode}_error"] = np.abs(single - exact).max()
    np.savez_compressed(STORED, **arrays)


if __name__ == "__main__":
    main()
