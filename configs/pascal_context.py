"""PASCAL-Context, 59 classes; background is ignored.

    python -m encnet_jax.data configs/pascal_context.py
    python train.py --config=configs/pascal_context.py:r50       # or r101
    python evaluate.py --config=configs/pascal_context.py:r50 \
        --scales=0.5,0.75,1,1.25,1.5,1.75 --flip

Recipe of PyTorch-Encoding: SGD 0.001 at batch 16, poly, 80 epochs, lateral links, crops
of 480 from long sides of 520 times 0.5 to 2. (The paper's 50 epochs are from memory of
it, not checked.)

Validation, pixel accuracy / mean IoU over 59 classes:

| | R50 | R101 |
|---|---|---|
| paper, ablation (table 1), single scale | 79.4 / 49.2 | 80.4 / 51.7 |
| the same without the SE loss | 78.1 / 47.6 | |
| paper, dilated FCN | 73.4 / 41.0 | |
| paper, several scales and mirrored | | 81.2 / 52.6 |
| PyTorch-Encoding (v1.0 and later), several scales | 79.2 / 51.0 | 80.7 / 54.1 |

mmsegmentation publishes no EncNet here. Over 60 classes the paper counts the background
as wholly wrong: 52.6 x 59/60 = 51.7.

Classes are in the official order; `pascal_context_sorted` has that of the weights of
PyTorch-Encoding and mmsegmentation, `pascal_context_60` background and then that.
"""

from ml_collections import ConfigDict

from encnet_jax.config import IMAGENET_WEIGHTS, default

EPOCH = 4_998 // 16  # steps


def get_config(backbone: str = "r50") -> ConfigDict:
    """Returns the configuration; `backbone` is `r50` or `r101`."""
    if backbone not in ("r50", "r101"):
        raise ValueError(f"pascal_context.py:{backbone}: allowed are r50, r101")
    config = default()
    config.total_steps = 80 * EPOCH
    config.learning_rate = 0.001
    config.eval_every = 5 * EPOCH
    config.log_every = 50
    config.model.backbone = {"r50": "resnet50", "r101": "resnet101"}[backbone]
    config.model.weights = IMAGENET_WEIGHTS[config.model.backbone]
    config.model.lateral = True
    config.data.name = "pascal_context"
    # Images of many sizes in windows of one: a single program is compiled.
    config.evaluation.mode = "slide"
    return config
