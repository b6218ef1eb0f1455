"""PASCAL VOC 2012, 21 classes, in the three stages of the paper.

    python train.py --config=configs/voc2012.py:coco-r101      # optional, see below
    python train.py --config=configs/voc2012.py:aug-r101
    python train.py --config=configs/voc2012.py:finetune-r101
    python evaluate.py --config=configs/voc2012.py:finetune-r101 \
        --scales=0.5,0.75,1,1.25,1.5,1.75 --flip

- `coco`: COCO images with more than 1,000 pixels of the 20 classes, 30 epochs at 0.004.
  Start the next stage from its workdir:
  `--config=configs/voc2012.py:aug-r101 --config.model.weights=runs/voc2012-coco-r101`.
- `aug`: VOC and SBD without the validation images of VOC, 80 epochs at 0.001, from
  ImageNet.
- `finetune`: VOC's own labels, 50 epochs at 0.0001, from the best checkpoint of
  `runs/voc2012-aug-...`. For the test server set `--config.data.train_split=trainval`,
  and evaluate with `--step=latest`, as val then chooses no checkpoint.

All at batch 16, lateral links, crops of 480 from long sides of 520 times 0.5 to 2
(PyTorch-Encoding; the epochs of the paper were not verified).

Published mean IoU on the test server, R101: paper 82.9, with COCO 85.9
(PyTorch-Encoding the same). mmsegmentation has the configs but no scores.
PyTorch-Encoding's own script trains on val, so its scores on val say nothing. Not
trained here.
"""

from ml_collections import ConfigDict

from encnet_jax.config import check_variant, pretrained_default

BATCH = 16
# Stage -> data set, number of images, epochs, learning rate. The number for COCO is not
# published; about 92,000 images have enough pixels.
STAGES = {
    "coco": ("coco_voc", 92_000, 30, 0.004),
    "aug": ("voc2012_aug", 10_582, 80, 0.001),
    "finetune": ("voc2012", 1_464, 50, 0.0001),
}


def get_config(stage: str = "aug-r50") -> ConfigDict:
    """Returns the configuration; `stage` is coco, aug or finetune, -r50 or -r101."""
    check_variant(
        __file__, stage, [f"{s}-{b}" for s in STAGES for b in ("r50", "r101")]
    )
    name, _, backbone = stage.partition("-")
    dataset, images, epochs, rate = STAGES[name]
    config = pretrained_default(backbone)
    config.total_steps = epochs * (images // BATCH)
    config.learning_rate = rate
    config.batch_size = BATCH
    config.eval_every = max(1, epochs // 10) * (images // BATCH)
    config.log_every = 50
    if name == "finetune":
        config.model.weights = f"runs/voc2012-aug-{backbone}"
    config.model.lateral = True
    config.data.name = dataset
    # Images differ in size: windows of one shape compile once.
    config.evaluation.mode = "slide"
    return config
