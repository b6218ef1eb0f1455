"""PASCAL-Context, 59 classes; background is ignored.

    python -m encnet_jax.data configs/pascal_context.py
    python train.py --config=configs/pascal_context.py:r50       # or r101
    python evaluate.py --config=configs/pascal_context.py:r50 \
        --scales=0.5,0.75,1,1.25,1.5,1.75 --flip

Recipe of PyTorch-Encoding: SGD 0.001 at batch 16, poly, 80 epochs, lateral links, crops
of 480 from long sides of 520 times 0.5 to 2. (The paper probably trains 50 epochs;
not verified.)

Published, on validation: pixel accuracy / mean IoU over 59 classes.

| | R50 | R101 |
|---|---|---|
| paper, ablation (table 1), single scale | 79.4 / 49.2 | 80.4 / 51.7 |
| the same without the SE loss | 78.1 / 47.6 | |
| paper, dilated FCN | 73.4 / 41.0 | |
| paper, multi-scale and flipped | | 81.2 / 52.6 |
| PyTorch-Encoding (v1.0 and later), multi-scale | 79.2 / 51.0 | 80.7 / 54.1 |

mmsegmentation publishes no EncNet here. Over 60 classes the paper counts background as
always wrong: 52.6 x 59/60 = 51.7. Not trained here.

Classes are in the official order. `pascal_context_sorted` has the order of the weights
of PyTorch-Encoding and mmsegmentation, `pascal_context_60` background and then that.
"""

from ml_collections import ConfigDict

from encnet_jax.config import check_variant, pretrained_default

EPOCH = 4_998 // 16  # steps


def get_config(backbone: str = "r50") -> ConfigDict:
    """Returns the configuration; `backbone` is `r50` or `r101`."""
    check_variant(__file__, backbone, ("r50", "r101"))
    config = pretrained_default(backbone)
    config.total_steps = 80 * EPOCH
    config.learning_rate = 0.001
    config.eval_every = 5 * EPOCH
    config.log_every = 50
    config.model.lateral = True
    config.data.name = "pascal_context"
    # Images differ in size: windows of one shape compile once.
    config.evaluation.mode = "slide"
    return config
