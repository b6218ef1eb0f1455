"""COCO-Stuff 164k, 171 classes.

    python -m encnet_jax.data configs/coco_stuff.py
    python train.py --config=configs/coco_stuff.py:r50   # or r101
    python evaluate.py --config=configs/coco_stuff.py:r50 \
        --scales=0.5,0.75,1,1.25,1.5,1.75 --flip

No EncNet is published on this data set, by the paper, PyTorch-Encoding, or
mmsegmentation, so there is no expected score. The schedule is that of mmsegmentation's
other networks (80k iterations of 16 crops of 512, SGD 0.01, poly); everything else is
as for ADE20K. Not trained here.
"""

from ml_collections import ConfigDict

from encnet_jax.config import check_variant, pretrained_default


def get_config(backbone: str = "r50") -> ConfigDict:
    """Returns the configuration; `backbone` is `r50` or `r101`."""
    check_variant(__file__, backbone, ("r50", "r101"))
    config = pretrained_default(backbone)
    config.total_steps = 80_000
    config.eval_every = 8_000
    config.log_every = 50
    config.data.name = "coco_stuff"
    # Images differ in size: windows of one shape compile once.
    config.evaluation.mode = "slide"
    config.data.base_size = 640  # the long side of most images
    config.data.crop_size = 512
    return config
