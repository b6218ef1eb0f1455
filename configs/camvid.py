"""CamVid, 11 classes, from scratch.

    python train.py --config=configs/camvid.py --config.data.data_dir=DIR

EncNet-50 on the 480x360 images, 16,000 steps of batch 16 (about 700 epochs of the 367
images, as nothing is pretrained). Batches are cropped on the device, as the data set
fits in its memory. One H100: 17 min for 14,000 steps.

`weighted` weights the loss of each class; `cpu` is a small network at half resolution:

    python train.py --config=configs/camvid.py:cpu --config.data.data_dir=DIR

ResNet-18 of half the width, 2,200 steps of batch 8 (about 50 epochs), scored at
480x360. Two CPU cores: 84 min.

Expected mean IoU on test at the last step: 60 (`gpu`), 42 (`cpu`); see docs/results.md.
FC-DenseNet103 from scratch: 66.9 (arXiv 1611.09326). The numbers of both recipes were
chosen here. Select on val, report test: val is seven seconds of a drive that is also in
the training set, test is another drive.
"""

from ml_collections import ConfigDict

from encnet_jax.config import check_variant, default

# Median-frequency weights of SegNet (arXiv 1511.00561), of `weighted`: they
# raise rare classes and lower frequent ones.
SEGNET_WEIGHTS = (
    *(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826),
    *(9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
)


def get_config(size: str = "gpu") -> ConfigDict:
    """Returns the configuration; `size` is `gpu`, `weighted` or `cpu`."""
    check_variant(__file__, size, ("gpu", "weighted", "cpu"))
    config = default()
    config.data.name = "camvid"
    config.data.color_jitter = 0.3  # test has many frames at dusk, training few
    config.optimizer.head_lr_mult = 1.0  # nothing is pretrained
    config.evaluation.split = "val"
    config.model.align_corners = False  # 360 and 480 are not a multiple of 8 plus 1
    config.model.scale_init = "scaled"
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
