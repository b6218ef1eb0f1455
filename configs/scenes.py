"""The embedded default: drawn pictures in which only the context decides.

Command:   python train.py --config=configs/scenes.py
Hardware:  2 CPU cores.
Scores:    docs/results.md.

`python train.py --config=configs/scenes.py:fcn` trains a baseline on the same backbone:
`fcn`, `pspnet` or `deeplabv3`; `encnet` is the default.
"""

from ml_collections import ConfigDict

from encnet_jax.config import default


def get_config(model: str = "encnet") -> ConfigDict:
    """Returns the configuration; `model` is `encnet` or a baseline."""
    if model not in ("encnet", "fcn", "pspnet", "deeplabv3"):
        raise ValueError(
            f"scenes.py:{model}: allowed are encnet, fcn, pspnet, deeplabv3"
        )
    config = default()
    config.total_steps = 600
    config.batch_size = 16
    config.learning_rate = 0.02
    config.log_every = 10
    config.eval_every = 200
    config.checkpoint_every = 100

    config.model.name = model
    # Sees about 79 pixels: less than lies between the objects and what tells the scene.
    config.model.backbone = "tiny"
    config.model.stem = "plain"
    config.model.width = 16
    config.model.head_channels = 64
    # Of 16 or more codewords such a short training leaves most without pixels.
    config.model.num_codes = 4
    config.model.aux_head = False

    config.data.name = "scenes"
    # Whole pictures: a crop could cut off what tells the scene.
    config.data.base_size = 128
    config.data.crop_size = 128
    config.data.scale_range = (1.0, 1.0)

    # Faster than the backbone, as in the originals; ten times is too fast from scratch.
    config.optimizer.head_lr_mult = 5.0
    config.evaluation.split = "validation"
    config.evaluation.batch_size = 16
    return config
