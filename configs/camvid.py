"""CamVid, 11 classes, from scratch.

    python train.py --config=configs/camvid.py --config.data.data_dir=DIR

EncNet on a ResNet-34 with logits at stride 4, on the 480x360 images: 16,000 steps of
batch 16 (about 700 epochs of the 367 images, as nothing is pretrained). Batches are
cropped on the device, as the data set fits in its memory. Trained for 13,871 steps it
reached 64.4 on test, see docs/results.md.

`weighted` weights the classes as SegNet does; `cpu` is a small network, a ResNet-18 of
half the width with stages 3 and 4 at stride 16:

    python train.py --config=configs/camvid.py:cpu --config.data.data_dir=DIR

`dinov2` trains only the head, on frozen features of DINOv2 ViT-S/14 from the Hugging
Face hub, at 672x504 pixels, multiples of its patches of 14. Not trained yet.

FC-DenseNet103 from scratch: 66.9 (arXiv 1611.09326). Val is seven seconds of a drive
that is also in train, and 171 of the 233 images of test are of a drive of their own.
To choose settings, hold out a drive of train:

    python -m benchmarks.camvid --hold_out=0006R0 --data_dir=DIR
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
    """Returns the configuration; `size`: `gpu`, `weighted`, `cpu`, `dinov2`."""
    check_variant(__file__, size, ("gpu", "weighted", "cpu", "dinov2"))
    config = default()
    config.data.name = "camvid"
    config.data.base_size = 480  # the images are 480x360, multiples of 8
    config.data.color_jitter = 0.3  # test has many frames at dusk, training few
    config.data.cache_on_device = True
    # Poles are 1 to 3 pixels wide: at stride 8 they cannot be drawn.
    config.model.decoder_stride = 4
    config.model.align_corners = False  # 360 and 480 are not a multiple of 8 plus 1
    config.model.pad_to_stride = True
    config.model.scale_init = "scaled"
    config.model.stem_width = 32
    config.loss.class_balance = "log"
    config.optimizer.head_lr_mult = 1.0  # nothing is pretrained
    config.optimizer.ema_decay = 0.999
    config.evaluation.split = "val"
    if size == "cpu":
        return _cpu(config)
    if size == "dinov2":
        return _dinov2(config)
    if size == "weighted":
        config.loss.class_balance = ""
        config.loss.class_weights = SEGNET_WEIGHTS
    config.total_steps = 16_000
    config.batch_size = 16
    config.learning_rate = 0.02
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 500
    config.log_every = 50
    config.eval_every = 1000
    config.checkpoint_every = 1000
    config.model.backbone = "resnet34"
    config.data.crop_size = 360
    config.data.scale_range = (0.75, 2.0)
    # Training enlarges images by 1.4 on average. 704 was chosen on val, where 640 to
    # 768 are within 0.3. Both sides, 704 and 528, are multiples of 8.
    config.evaluation.base_size = 704
    return config


def _cpu(config: ConfigDict) -> ConfigDict:
    config.total_steps = 2200
    config.batch_size = 8
    config.learning_rate = 2e-3
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.02
    config.optimizer.warmup_steps = 50
    config.optimizer.ema_decay = 0.998
    config.log_every = 20
    config.eval_every = 200
    config.checkpoint_every = 50
    config.model.backbone = "resnet18"
    config.model.output_stride = 16
    # 512x384 and crops of 288 are multiples of 16; 480x360 is not.
    config.data.base_size = 512
    config.model.width = 32
    config.model.head_channels = 128
    config.data.crop_size = 288
    config.data.scale_range = (0.5, 1.5)
    return config


def _dinov2(config: ConfigDict) -> ConfigDict:
    config.total_steps = 4000
    config.batch_size = 16
    config.learning_rate = 1e-3
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 150
    config.log_every = 50
    config.eval_every = 500
    config.checkpoint_every = 500
    config.model.backbone = "dinov2_vits14"
    config.model.weights = (
        "hf://timm/vit_small_patch14_dinov2.lvd142m/model.safetensors"
    )
    config.model.freeze_backbone = True
    config.model.decoder_stride = 8  # all stages have stride 14
    config.data.base_size = 672
    config.data.crop_size = 504
    config.data.scale_range = (0.75, 2.0)
    return config
