"""ADE20K scene parsing, 150 classes.

    python -m encnet_jax.data configs/ade20k.py          # downloads, prepares, checks
    python train.py --config=configs/ade20k.py:r50       # or r101
    python evaluate.py --config=configs/ade20k.py:r50 \
        --scales=0.5,0.75,1,1.25,1.5,1.75 --flip

Recipe of the paper and of PyTorch-Encoding: SGD 0.01 at batch 16, poly, 120 epochs,
crops of 480 (R50) or 576 (R101) from long sides of 520 or 640 times 0.5 to 2.
mmsegmentation trains 80k or 160k iterations of 16 crops of 512, auxiliary loss 0.4.

Published, on validation: pixel accuracy / mean IoU, multi-scale and flipped.

| | R50 | R101 |
|---|---|---|
| paper (table 4) | 79.73 / 41.11 | 81.69 / 44.65 |
| PyTorch-Encoding, retrained (v1.0 and later) | 80.1 / 41.5 | 81.3 / 44.4 |
| mmsegmentation, mean IoU at 80k and 160k | 41.17 and 41.71 | 43.61 and 44.01 |

PyTorch-Encoding trained on 4 GPUs; one takes days. Not trained here.

`paper-r50` and `paper-r101` set what the paper describes and the released code does
otherwise: the sum over codewords, the plain gate, class presence predicted from stage 3
too in place of the auxiliary head, and random rotation.
"""

from ml_collections import ConfigDict

from encnet_jax.config import check_variant, pretrained_default

EPOCH = 20_210 // 16  # steps


def get_config(variant: str = "r50") -> ConfigDict:
    """Returns the configuration; `variant` is a backbone or `paper-` and one."""
    check_variant(__file__, variant, ("r50", "r101", "paper-r50", "paper-r101"))
    form, _, backbone = variant.rpartition("-")
    config = pretrained_default(backbone)
    config.total_steps = 120 * EPOCH
    config.eval_every = 5 * EPOCH
    config.log_every = 50
    config.data.name = "ade20k"
    # Images differ in size: windows of one shape compile once.
    config.evaluation.mode = "slide"
    if backbone == "r101":
        config.data.base_size = 640
        config.data.crop_size = 576
    if form == "paper":
        config.model.code_reduction = "sum"
        config.model.gate = "plain"
        config.model.se_stages = (3, 4)
        config.model.aux_head = False
        config.data.rotation = 10.0
    return config
