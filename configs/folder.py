"""Your own images: a folder with classes.json, images/ and labels/ (docs/data.md).

    python -m encnet_jax.data configs/folder.py --config.data.data_dir=DIR
    python train.py --config=configs/folder.py:r50 --config.data.data_dir=DIR \
        --workdir=runs/mine

ResNet-50 from ImageNet (or `r18`, `r101`), 20,000 steps: about 300 epochs of a thousand
images. The settings to adapt first:

- `total_steps`
- `data.base_size`, the long side of your images, and `data.crop_size`
- `learning_rate`: 0.001 for few images, 0.01 for large data sets
- `batch_size` if memory is short; scale `learning_rate` with it, or keep both and set
  `grad_accum_steps`
- `loss.class_balance`, "median_frequency" or "log", if classes are rare
"""

from ml_collections import ConfigDict

from encnet_jax.config import (
    PRETRAINED_BACKBONES,
    check_variant,
    pretrained_default,
)


def get_config(backbone: str = "r50") -> ConfigDict:
    """Returns the configuration; `backbone` is `r18`, `r50` or `r101`."""
    check_variant(__file__, backbone, PRETRAINED_BACKBONES)
    config = pretrained_default(backbone)
    config.total_steps = 20_000
    config.learning_rate = 0.004
    if backbone == "r18":
        config.model.stem = "plain"
    config.data.name = "folder"
    # Images differ in size: windows of one shape compile once.
    config.evaluation.mode = "slide"
    config.data.color_jitter = 0.2
    return config
