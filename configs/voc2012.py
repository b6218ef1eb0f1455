"""PASCAL VOC 2012, 21 classes, in the three stages of the paper.

    python train.py --config=configs/voc2012.py:coco-r101      # optional, see below
    python train.py --config=configs/voc2012.py:aug-r101
    python train.py --config=configs/voc2012.py:finetune-r101
    python evaluate.py --config=configs/voc2012.py:finetune-r101 \
        --scales=0.5,0.75,1,1.25,1.5,1.75 --flip

`aug`: VOC and the images of SBD without VOC's validation, 80 epochs at 0.001, from
ImageNet. `finetune`: VOC's own labels, 50 epochs at 0.0001, from the best of
`runs/voc2012-aug-...`. `coco`: COCO images with more than 1,000 pixels of the 20
classes, 30 epochs at 0.004; then give its workdir to the next stage:
`--config=configs/voc2012.py:aug-r101 --config.model.weights=runs/voc2012-coco-r101`.
All at batch 16, lateral links, crops of 480 from long sides of 520 times 0.5 to 2
(PyTorch-Encoding; the paper's epochs are not checked). For the test server train the
last stage with `--config.data.train_split=trainval`.

Mean IoU on the test server, R101: paper 82.9, with COCO 85.9 (PyTorch-Encoding the
same). mmsegmentation has the configs and publishes no figures. Figures on val of
PyTorch-Encoding's own script would be contaminated: it trains on val.
"""

from ml_collections import ConfigDict

from encnet_jax.config import IMAGENET_WEIGHTS, default

BATCH = 16
# Stage -> data set, its images, epochs, learning rate. How many images of COCO have
# enough pixels is not published: about 92,000, by which the steps are counted.
STAGES = {
    "coco": ("coco_voc", 92_000, 30, 0.004),
    "aug": ("voc2012_aug", 10_582, 80, 0.001),
    "finetune": ("voc2012", 1_464, 50, 0.0001),
}
BACKBONES = {"r50": "resnet50", "r101": "resnet101"}


def get_config(stage: str = "aug-r50") -> ConfigDict:
    """Returns the configuration; `stage` is coco, aug or finetune, -r50 or -r101."""
    name, _, backbone = stage.partition("-")
    if name not in STAGES or backbone not in BACKBONES:
        allowed = ", ".join(f"{s}-{b}" for s in STAGES for b in BACKBONES)
        raise ValueError(f"voc2012.py:{stage}: allowed are {allowed}")
    dataset, images, epochs, rate = STAGES[name]
    config = default()
    config.total_steps = epochs * (images // BATCH)
    config.learning_rate = rate
    config.batch_size = BATCH
    config.eval_every = max(1, epochs // 10) * (images // BATCH)
    config.log_every = 50
    config.model.backbone = BACKBONES[backbone]
    config.model.weights = IMAGENET_WEIGHTS[config.model.backbone]
    if name == "finetune":
        config.model.weights = f"runs/voc2012-aug-{backbone}"
    config.model.lateral = True
    config.data.name = dataset
    # Images of many sizes in windows of one: a single program is compiled.
    config.evaluation.mode = "slide"
    return config
