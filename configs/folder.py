"""Your own pictures: a folder with classes.json, images/ and labels/ (docs/data.md).

    python -m encnet_jax.data configs/folder.py --config.data.data_dir=DIR
    python train.py --config=configs/folder.py:r50 --config.data.data_dir=DIR \
        --workdir=runs/mine

ResNet-50 from ImageNet (`r18`, `r101` likewise), 20,000 steps: about 300 epochs of a
thousand images. What most often needs another value: `total_steps`; `data.base_size`,
the long side of your pictures; `data.crop_size`; `learning_rate`, 0.001 for few
pictures, 0.01 for large sets; `batch_size` with less memory (scale `learning_rate` with
it, or keep both and set `grad_accum_steps`).
"""

from ml_collections import ConfigDict

from encnet_jax.config import IMAGENET_WEIGHTS, default

BACKBONES = {"r18": "resnet18", "r50": "resnet50", "r101": "resnet101"}


def get_config(backbone: str = "r50") -> ConfigDict:
    """Returns the configuration; `backbone` is `r18`, `r50` or `r101`."""
    if backbone not in BACKBONES:
        raise ValueError(f"folder.py:{backbone}: allowed are {', '.join(BACKBONES)}")
    config = default()
    config.total_steps = 20_000
    config.learning_rate = 0.004
    config.model.backbone = BACKBONES[backbone]
    config.model.weights = IMAGENET_WEIGHTS[config.model.backbone]
    if backbone == "r18":
        config.model.stem = "plain"
    config.data.name = "folder"
    # Images of many sizes in windows of one: a single program is compiled.
    config.evaluation.mode = "slide"
    config.data.color_jitter = 0.2
    return config
