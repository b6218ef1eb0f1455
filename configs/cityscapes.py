"""Cityscapes, 19 classes.

    python -m encnet_jax.data configs/cityscapes.py      # lists the files it needs
    python train.py --config=configs/cityscapes.py:r50   # or r101
    python evaluate.py --config=configs/cityscapes.py:r50 \
        --scales=0.75,1,1.25,1.5,1.75,2,2.25 --flip

Recipe of PyTorch-Encoding (its author in issue 186; no weights were published): SGD
0.01 at batch 16, poly, 240 epochs, crops of 768 from long sides of 2048 times 0.5 to 2.
mmsegmentation trains 40k or 80k iterations of 8 crops of 512x1024 or 769x769.

Published, on validation: mean IoU, single scale, and multi-scale and flipped.

| | R50 | R101 |
|---|---|---|
| mmsegmentation, 512x1024, 40k | 75.67, 77.08 | 75.81, 77.21 |
| mmsegmentation, 512x1024, 80k | 77.94, 79.13 | 78.55, 79.47 |
| mmsegmentation, 769x769, 80k | 77.44, 78.72 | 76.10, 76.97 |
| PaddleSeg, ResNet101_vd, 80k (single, flip) | | 79.42, 80.02 |

The paper does not report Cityscapes. Not trained here.
"""

from ml_collections import ConfigDict

from encnet_jax.config import check_variant, pretrained_default

EPOCH = 2_975 // 16  # steps


def get_config(backbone: str = "r50") -> ConfigDict:
    """Returns the configuration; `backbone` is `r50` or `r101`."""
    check_variant(__file__, backbone, ("r50", "r101"))
    config = pretrained_default(backbone)
    config.total_steps = 240 * EPOCH
    config.eval_every = 20 * EPOCH
    config.log_every = 50
    config.data.name = "cityscapes"
    config.data.base_size = 2048
    config.data.crop_size = 768
    config.evaluation.batch_size = 1  # of 2048x1024
    return config
