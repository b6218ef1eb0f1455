"""CamVid, 11 classes, trained from scratch: the yardstick without pretraining.

Full size, for one GPU:

    python train.py --config=configs/camvid.py --config.data.data_dir=DIR

ResNet-50 EncNet; a schedule of about 700 epochs of the 367 images, since nothing is
pretrained; aims at the 66.9 % test mean IoU of FC-DenseNet103 (arXiv 1611.09326, from
scratch at 360x480). Batches are made on the device: the set fits in its memory.

Small, for two CPU cores, at half resolution and scored at 360x480:

    python train.py --config=configs/camvid.py:cpu --config.data.data_dir=DIR

ResNet-18 of half the width, about 50 epochs. Scores of both: docs/results.md. Choose on
val, report test: val is seven seconds of a drive that training saw, test is not.
"""

from ml_collections import ConfigDict

from encnet_jax.config import default

# Median-frequency weights of SegNet (arXiv 1511.00561), used by `weighted`: rare
# classes gain, frequent ones lose.
SEGNET_WEIGHTS = (
    *(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826),
    *(9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
)


def get_config(size: str = "gpu") -> ConfigDict:
    """Returns the configuration; `size` is `gpu`, `weighted` (classes) or `cpu`."""
    if size not in ("gpu", "weighted", "cpu"):
        raise ValueError(f"camvid.py:{size}: allowed are gpu, weighted, cpu")
    config = default()
    config.data.name = "camvid"
    config.data.color_jitter = 0.3  # test has dusk frames; training few
    config.optimizer.head_lr_mult = 1.0  # nothing is pretrained
    config.evaluation.split = "val"
    if size == "cpu":
        return _cpu(config)
    if size == "weighted":
        config.loss.class_weights = SEGNET_WEIGHTS
    config.total_steps = 16_000
    config.batch_size = 16
    config.learning_rate = 0.02
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 5e-4
    config.log_every = 50
    config.eval_every = 1000
    config.checkpoint_every = 1000
    config.model.stem_width = 32
    config.model.lateral = True
    config.data.base_size = 480  # the images are 480x360
    config.data.crop_size = 360
    config.data.cache_on_device = True
    return config


def _cpu(config: ConfigDict) -> ConfigDict:
    config.total_steps = 2200
    config.batch_size = 8
    config.learning_rate = 0.04
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 5e-4
    config.log_every = 20
    config.eval_every = 200
    config.checkpoint_every = 50
    config.model.backbone = "resnet18"
    config.model.stem_width = 32
    config.model.width = 32
    config.model.head_channels = 128
    config.data.base_size = 240
    config.data.crop_size = 192
    config.evaluation.base_size = 240
    return config
