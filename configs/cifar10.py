"""CIFAR-10: Context Encoding Modules in every block of a 14-layer network.

    python train.py --config=configs/cifar10.py:encnet_16k64d --config.data.data_dir=DIR
    python evaluate.py --config=configs/cifar10.py:encnet_16k64d ...

Variants: `encnet_KkWd` with K codewords and width W, `resnet_Wd`, `se_resnet_Wd`. A
`-drop` at the end draws the scales at random in every step instead of learning them, as
for the authors' published weights.

Recipe of PyTorch-Encoding v0.4.3: 600 epochs of batch 128, SGD 0.1 with momentum 0.9,
weight decay 5e-4, cosine to 0, padding of 4 pixels, random crop, flip. (Its batch norm
saw 64 images on each of two GPUs; here it sees all 128.) To train for less time,
shorten the schedule by `--config.total_steps` rather than stop early: half of the gain
comes in the last quarter.

Published test error in percent (paper, table 5):

| | parameters | error |
|---|---|---|
| resnet_64d | 2.78 M | 4.93 |
| se_resnet_64d | 2.80 M | 4.65 |
| encnet_16k64d | 3.51 M | 3.96 |
| encnet_32k128d | 16.79 M | 3.45 (3.35 with the published weights) |

Hardware, times, and scores of runs: docs/results.md. The data set is read by TFDS's
builder, which downloads it unless a prepared copy is in `data.data_dir`.
"""

import re

from ml_collections import ConfigDict

from encnet_jax.config import default
from encnet_jax.errors import UserError

EPOCH = 50_000 // 128  # steps
_PATTERN = re.compile(r"(resnet|se_resnet|encnet)_(?:(\d+)k)?(\d+)d(-drop)?")


def get_config(name: str = "encnet_16k64d") -> ConfigDict:
    """Returns the configuration of a variant such as `encnet_16k64d`."""
    parts = _PATTERN.fullmatch(name)
    if not parts or (parts[1] == "encnet") != bool(parts[2]):
        raise UserError(
            f"cifar10.py:{name}: allowed are encnet_16k64d, encnet_16k64d-drop, "
            "resnet_64d, se_resnet_64d, or these with other numbers"
        )
    kind, codes, width, drop = parts.groups()
    if drop and kind != "encnet":
        raise UserError(f"cifar10.py:{name}: only encnet has a -drop variant")
    config = default()
    config.total_steps = 600 * EPOCH
    config.batch_size = 128
    config.learning_rate = 0.1
    config.log_every = 50
    config.eval_every = 10 * EPOCH
    config.checkpoint_every = 10 * EPOCH
    config.model.name = f"{kind}14"
    config.model.width = int(width)
    config.model.num_codes = int(codes or 32)
    config.model.scale_drop = bool(drop)
    config.data.name = "cifar10"
    config.data.base_size = config.data.crop_size = 32
    config.data.pad = 4
    config.data.cache_on_device = True
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 5e-4
    config.optimizer.head_lr_mult = 1.0  # there is no backbone
    config.evaluation.split = "test"  # there is no third split
    config.evaluation.batch_size = 500
    return config
