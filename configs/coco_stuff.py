"""COCO-Stuff 164k, 171 classes.

    python -m encnet_jax.data configs/coco_stuff.py
    python train.py --config=configs/coco_stuff.py:r50   # or r101
    python evaluate.py --config=configs/coco_stuff.py:r50 \
        --scales=0.5,0.75,1,1.25,1.5,1.75 --flip

Neither the paper nor PyTorch-Encoding nor mmsegmentation has an EncNet on this set, so
there is no expected score. The schedule is mmsegmentation's for its other networks
there (80k iterations of 16 crops of 512, SGD 0.01, poly); the rest is as for ADE20K.
"""

from ml_collections import ConfigDict

from encnet_jax.config import IMAGENET_WEIGHTS, default


def get_config(backbone: str = "r50") -> ConfigDict:
    """Returns the configuration; `backbone` is `r50` or `r101`."""
    if backbone not in ("r50", "r101"):
        raise ValueError(f"coco_stuff.py:{backbone}: allowed are r50, r101")
    config = default()
    config.total_steps = 80_000
    config.eval_every = 8_000
    config.log_every = 50
    config.model.backbone = {"r50": "resnet50", "r101": "resnet101"}[backbone]
    config.model.weights = IMAGENET_WEIGHTS[config.model.backbone]
    config.data.name = "coco_stuff"
    # Images of many sizes in windows of one: a single program is compiled.
    config.evaluation.mode = "slide"
    config.data.base_size = 640  # the long side of most images
    config.data.crop_size = 512
    return config
