"""The default configuration, one comment a key, and its validation.

A file in `configs/` calls `default()` and overrides what its recipe needs; the command
line overrides that: `--config.learning_rate=0.02`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from encnet_jax.errors import UserError
from encnet_jax.migrations import CONFIG_KEYS, CONFIG_VALUES, migrate_config

# ImageNet weights of the networks here: deep stem of 64 channels for 50 and 101 (timm's
# copies of GluonCV's v1s, which PyTorch-Encoding's own agree with in every shape).
IMAGENET_WEIGHTS = {
    "resnet18": "hf://timm/resnet18.tv_in1k/model.safetensors",
    "resnet50": "hf://timm/resnet50s.gluon_in1k/model.safetensors",
    "resnet101": "hf://timm/resnet101s.gluon_in1k/model.safetensors",
}


def default() -> ConfigDict:
    """Returns the default tree: EncNet-50 by the recipe of PyTorch-Encoding."""
    config = ConfigDict()
    config.seed = 0  # of weights, order, augmentation and dropout
    config.total_steps = 0  # optimizer steps; every config sets it
    config.batch_size = 16  # images an optimizer step, over all devices and hosts
    config.grad_accum_steps = 1  # equal parts in which a batch passes the network
    config.learning_rate = 0.01  # at the start
    config.log_every = 10  # steps between lines of metrics
    config.eval_every = 1000  # steps between evaluations; the last step always is one
    config.checkpoint_every = 1000  # steps between checkpoints; evaluations save too

    config.model = model = ConfigDict()
    # For pixels encnet, fcn, pspnet, deeplabv3; for whole images resnet14, se_resnet14,
    # encnet14.
    model.name = "encnet"
    model.backbone = "resnet50"  # resnet18 34 50 101 152, tiny
    model.stem = "deep"  # three 3x3 convolutions; plain: one 7x7
    model.stem_width = 64  # of the deep stem: 64 PyTorch-Encoding, 32 mmsegmentation
    model.avg_down = False  # average pooling in strided shortcuts: the D variant
    model.lateral = False  # join stages 2 and 3 in the head
    model.align_corners = True  # of the upsampling; mmsegmentation: False
    model.num_codes = 32  # codewords (paper); 0: global average pooling
    model.se_loss = True  # predict which classes are present
    model.se_stages = (4,)  # released code; (3, 4): paper
    model.aux_head = True  # FCN head on stage 3
    model.output_stride = 8  # 8, 16 or 32
    model.width = 64  # channels of the first stage
    model.remat = ()  # stages computed again in the backward pass, to save memory
    model.head_channels = 512  # width of the head
    model.dropout = 0.1  # before the classifiers
    # How 3x3 convolutions are computed: direct, phases (the dilated ones), winograd;
    # auto: by platform.
    model.conv_impl = "auto"
    model.scale_drop = False  # encnet14: draw the scales anew in every step
    model.unbiased_running_var = False  # mmsegmentation: True
    # Where training starts: a .pth or .safetensors file or hf://... for the backbone,
    # or the workdir of an earlier run; none: from scratch.
    model.weights = ""
    model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU; or one of the two

    config.data = data = ConfigDict()
    data.name = (
        ""  # a key of encnet_jax.data.registry.DATASETS; every config sets it
    )
    data.data_dir = config_dict.placeholder(str)  # where; see docs/data.md
    data.train_split = "train"  # split to train on
    data.base_size = 520  # pixels of the long side at scale 1
    data.crop_size = 480  # pixels, height and width of the crop
    data.scale_range = (0.5, 2.0)  # of the random scale; (1.0, 1.0): none
    data.flip = True  # mirror left and right with probability 1/2
    data.color_jitter = 0.0  # brightness, contrast, saturation by 1 -+ this
    data.pad = 0  # black border, pixels, of images in classes; CIFAR: 4
    data.cache_on_device = False  # keep the set on the device and augment there
    data.resize = "host"  # where other crops are resized; device: from canvases
    data.padded_size = 0  # pixels, height and width of these; 0: enough for any picture

    config.loss = loss = ConfigDict()
    loss.se_weight = 0.2  # alpha of the paper
    loss.aux_weight = 0.2  # PyTorch-Encoding; mmsegmentation: 0.4
    loss.class_weights = ()  # one a class, or none
    loss.normalize_by = "valid"  # pixels the mean is over; mmsegmentation: all

    config.optimizer = optimizer = ConfigDict()
    optimizer.schedule = "poly"  # or cosine
    optimizer.power = 0.9  # of poly
    optimizer.warmup_steps = 0  # of linear rise before it
    optimizer.min_learning_rate = 0.0  # of poly; mmsegmentation: 1e-4
    optimizer.momentum = 0.9
    optimizer.nesterov = False
    optimizer.weight_decay = 1e-4  # of every parameter
    optimizer.head_lr_mult = 10.0  # rate of all but the backbone, relative to it

    config.evaluation = evaluation = ConfigDict()
    evaluation.split = "val"  # scored while training, and by evaluate.py
    evaluation.batch_size = 8  # images or windows together on a device; mirrored count
    # encoding: windows of many scales as PyTorch-Encoding; mmseg: as mmsegmentation.
    evaluation.protocol = "pytorch_encoding"
    # whole: images as they are, compiled for each size; slide: windows of one shape,
    # for sets of many sizes. With scales `encoding` always takes windows.
    evaluation.mode = "whole"
    # Pixels of the long side in the network, 0: as it is; mmseg: at most, 0: no bound.
    # With windows of `encoding`, 0: data.base_size.
    evaluation.base_size = 0
    evaluation.short_size = 0  # mmseg: pixels of the short side at most; 0: no bound
    # How whole images and mmseg's logits are resized; imports of PyTorch-Encoding's
    # weights set True.
    evaluation.align_corners = False
    evaluation.scales = ()  # of the size above: many scales; none: that size alone
    evaluation.flip = False  # and the mirror image; not of whole images of `encoding`
    evaluation.crop_size = 0  # pixels of a window; 0: data.crop_size
    evaluation.stride = 0  # pixels between windows; 0: two thirds of crop_size
    evaluation.object_sizes = False  # evaluate.py scores small and large objects too
    evaluation.absent_classes = (
        "skip"  # classes in neither labels nor predictions; or zero
    )

    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # devices that share the batch; -1: all
    return config


def validate(config: ConfigDict) -> None:
    """Raises `UserError` for the first value out of range; reads no data.

    The settings of the model are checked by `run.model_config.check_config`.
    """
    _check_names(config)
    _check_numbers(config)
    _check_choices(config)
    if config.batch_size % config.grad_accum_steps:
        raise UserError(
            f"batch_size={config.batch_size}: must be a multiple of "
            f"grad_accum_steps={config.grad_accum_steps}"
        )
    low, high = (*config.data.scale_range, 0.0)[:2]
    if len(config.data.scale_range) != 2 or not 0 < low <= high:
        raise UserError(
            f"data.scale_range={tuple(config.data.scale_range)}: two numbers are "
            "needed, 0 < least <= greatest"
        )
    _check_evaluation(config)
    if config.optimizer.warmup_steps >= config.total_steps:
        raise UserError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps}: must be below "
            f"total_steps={config.total_steps}"
        )


def _check_names(config: ConfigDict) -> None:
    """Raises for a key that is unknown, or was renamed, and for a renamed value."""
    known = dict(_leaves(default()))
    for key, value in _leaves(config):
        if key not in known:
            if key in CONFIG_KEYS:
                raise UserError(f"{key}: is now called {CONFIG_KEYS[key]}")
            raise UserError(f"{key}: no such key of the configuration")
        values = CONFIG_VALUES.get(key, {})
        if isinstance(value, str) and value in values:
            raise UserError(f"{key}={value!r}: is now {values[value]!r}")


def _leaves(config: ConfigDict, group: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{group}{key}.")
        else:
            yield f"{group}{key}", value


def _check_evaluation(config: ConfigDict) -> None:
    settings = config.evaluation
    if any(scale <= 0 for scale in settings.scales):
        raise UserError(f"evaluation.scales={tuple(settings.scales)}: must be above 0")
    encoding = settings.protocol == "pytorch_encoding"
    if encoding and settings.mode == "whole" and settings.flip and not settings.scales:
        raise UserError(
            "evaluation.flip=True: needs evaluation.scales, such as (1.0,), or "
            "evaluation.mode=slide"
        )
    crop = settings.crop_size or config.data.crop_size
    if settings.stride > crop:
        raise UserError(
            f"evaluation.stride={settings.stride}: windows of {crop} pixels would "
            "leave gaps"
        )
    if encoding and settings.short_size:
        raise UserError(
            f"evaluation.short_size={settings.short_size}: only with "
            "evaluation.protocol=mmseg; allowed is 0"
        )


def _check_numbers(config: ConfigDict) -> None:
    at_least = {
        "seed": 0,
        "total_steps": 1,
        "batch_size": 1,
        "grad_accum_steps": 1,
        "log_every": 1,
        "eval_every": 1,
        "checkpoint_every": 1,
        "data.base_size": 1,
        "data.crop_size": 1,
        "data.padded_size": 0,
        "data.pad": 0,
        "loss.se_weight": 0,
        "loss.aux_weight": 0,
        "optimizer.power": 0,
        "optimizer.warmup_steps": 0,
        "optimizer.min_learning_rate": 0,
        "optimizer.weight_decay": 0,
        "optimizer.head_lr_mult": 0,
        "evaluation.batch_size": 1,
        "evaluation.base_size": 0,
        "evaluation.short_size": 0,
        "evaluation.crop_size": 0,
        "evaluation.stride": 0,
    }
    for key, least in at_least.items():
        value = _get(config, key)
        if not value >= least:
            raise UserError(f"{key}={value}: must be at least {least}")
    if config.seed >= 2**32:
        raise UserError(f"seed={config.seed}: must be below 2^32")
    if not config.learning_rate > 0:
        raise UserError(f"learning_rate={config.learning_rate}: must be above 0")
    for key in ("optimizer.momentum", "data.color_jitter"):
        if not 0 <= _get(config, key) < 1:
            raise UserError(f"{key}={_get(config, key)}: must be in 0 up to 1")
    if config.mesh.data != -1 and config.mesh.data < 1:
        raise UserError(f"mesh.data={config.mesh.data}: -1 (all) or at least 1")


def _check_choices(config: ConfigDict) -> None:
    choices = {
        "data.resize": ("host", "device"),
        "model.dtype": ("auto", "float32", "bfloat16"),
        "loss.normalize_by": ("valid", "all"),
        "optimizer.schedule": ("poly", "cosine"),
        "evaluation.protocol": ("pytorch_encoding", "mmseg"),
        "evaluation.mode": ("whole", "slide"),
        "evaluation.absent_classes": ("skip", "zero"),
    }
    for key, allowed in choices.items():
        if _get(config, key) not in allowed:
            names = ", ".join(allowed)
            raise UserError(f"{key}={_get(config, key)!r}: allowed are {names}")


def _get(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def save_config(config: ConfigDict, path: Path) -> None:
    """Writes a configuration as JSON."""
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(path: Path) -> ConfigDict:
    """Reads what `save_config` wrote.

    Raises:
        UserError: The file is missing or no JSON.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; is {path.parent} the workdir of a training?")
    try:
        stored = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    config = default()
    config.unlock()
    config.update(migrate_config(stored))
    return config.lock()


def default_workdir(config_file: str) -> Path:
    """Returns `runs/NAME` for `configs/NAME.py`, and `runs/NAME-ARG` for `:ARG`."""
    path, _, argument = config_file.partition(":")
    name = Path(path).stem
    return Path("runs") / (f"{name}-{argument}" if argument else name)
