"""The default configuration, one comment per key, and the checks of its values.

A file in `configs/` calls `default()` and sets what its recipe changes; flags override
both: `--config.learning_rate=0.02`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from encnet_jax.errors import UserError
from encnet_jax.migrations import CONFIG_KEYS, CONFIG_VALUES, migrate_config

# Variant of a file in `configs/` -> backbone and its ImageNet weights. For 50 and 101
# timm's copies of GluonCV's v1s, whose deep stem of 64 channels is that of
# PyTorch-Encoding's own weights, in every shape.
PRETRAINED_BACKBONES = {
    "r18": ("resnet18", "hf://timm/resnet18.tv_in1k/model.safetensors"),
    "r50": ("resnet50", "hf://timm/resnet50s.gluon_in1k/model.safetensors"),
    "r101": ("resnet101", "hf://timm/resnet101s.gluon_in1k/model.safetensors"),
}


def default() -> ConfigDict:
    """Returns the default tree: EncNet-50 by the recipe of PyTorch-Encoding."""
    config = ConfigDict()
    config.seed = 0  # of initial weights, data order, augmentation and dropout
    config.total_steps = 0  # optimizer steps; every config sets it
    config.batch_size = 16  # images per optimizer step, over all devices and hosts
    config.grad_accum_steps = 1  # micro-batches per optimizer step
    config.learning_rate = 0.01  # initial; after the warm-up, if there is one
    config.log_every = 10  # steps
    config.eval_every = 1000  # steps; the last step is always evaluated
    config.checkpoint_every = 1000  # steps; every evaluation saves one too
    config.model = _model()
    config.data = _data()
    config.loss = _loss()
    config.optimizer = _optimizer()
    config.evaluation = _evaluation()
    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # devices that share a batch; -1: all
    return config


def _model() -> ConfigDict:
    model = ConfigDict()
    # Segmentation: encnet, fcn, pspnet, deeplabv3.
    # Classification: resnet14, se_resnet14, encnet14.
    model.name = "encnet"
    model.backbone = "resnet50"  # resnet18, 34, 50, 101, 152, or tiny
    model.stem = "deep"  # three 3x3 convolutions; plain: one 7x7
    model.stem_width = 64  # channels of the deep stem; mmsegmentation: 32
    model.avg_down = False  # average pooling in strided shortcuts (D variant)
    model.lateral = False  # lateral links from stages 2 and 3 to the head
    model.align_corners = True  # of the upsampling; mmsegmentation: False
    model.num_codes = 32  # codewords (paper); 0: global average pooling
    model.se_loss = True  # predict class presence
    model.se_stages = (4,)  # stages to predict it from; paper: (3, 4)
    model.aux_head = True  # auxiliary FCN head on stage 3
    model.output_stride = 8  # 8, 16 or 32
    model.width = 64  # channels of the first stage before expansion
    model.remat = ()  # stages recomputed in the backward pass, to save memory
    model.head_channels = 512  # channels of the head
    # Initial convolutions of the head: pytorch_encoding (PyTorch's default) or mmseg.
    model.head_init = "pytorch_encoding"
    model.dropout = 0.1  # rate before each classifier
    # 3x3 convolutions: lax, space_to_batch (dilated ones), winograd; auto: by platform.
    model.conv_impl = "auto"
    model.scale_drop = False  # encnet14: random scales in place of learned ones
    model.unbiased_running_var = False  # of batch norm; mmsegmentation: True
    # Initial weights: a .pth or .safetensors file or hf://... of the backbone, or the
    # workdir of an earlier run; empty: from scratch.
    model.weights = ""
    model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU; or either
    return model


def _data() -> ConfigDict:
    data = ConfigDict()
    data.name = ""  # key of data.registry.DATASETS; every config sets it
    data.data_dir = config_dict.placeholder(str)  # see docs/data.md
    data.train_split = "train"
    data.base_size = 520  # pixels of the long side at scale 1
    data.crop_size = 480  # pixels, height and width
    data.scale_range = (0.5, 2.0)  # of random resizing; (1.0, 1.0): none
    data.flip = True  # horizontal, with probability 1/2
    data.color_jitter = 0.0  # brightness, contrast, saturation times 1 +- this
    data.pad = 0  # classification: black border in pixels before the crop; CIFAR: 4
    data.cache_on_device = False  # keep the data set on the device and augment there
    data.resize = "host"  # where crops are resized otherwise, or device
    # Pixels, height and width, to which images are padded for resizing on the device;
    # 0: enough for any image.
    data.padded_size = 0
    return data


def _loss() -> ConfigDict:
    loss = ConfigDict()
    loss.se_weight = 0.2  # alpha of the paper
    loss.aux_weight = 0.2  # PyTorch-Encoding; mmsegmentation: 0.4
    loss.class_weights = ()  # one per class, at least 0; empty: equal
    # Class weights computed from the training split: median_frequency (SegNet), or log,
    # 1/ln(1.02 + share of the labeled pixels) (ENet); empty: loss.class_weights.
    loss.class_balance = ""
    loss.normalize_by = "valid"  # pixels that the mean is over; mmsegmentation: all
    return loss


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.schedule = "poly"  # or cosine
    optimizer.power = 0.9  # of poly
    optimizer.warmup_steps = 0  # of linear increase from 0
    optimizer.min_learning_rate = 0.0  # of poly; mmsegmentation: 1e-4
    optimizer.momentum = 0.9
    optimizer.nesterov = False
    optimizer.weight_decay = 1e-4  # of every parameter
    optimizer.head_lr_mult = 10.0  # learning rate outside the backbone, relative to it
    return optimizer


def _evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.split = "val"  # for evaluation during training and by evaluate.py
    evaluation.batch_size = 8  # images or windows per device; flipped ones count
    # pytorch_encoding: multi-scale windows as there; mmseg: as in mmsegmentation.
    evaluation.protocol = "pytorch_encoding"
    # whole: each image at once, compiled for each size; slide: windows of one shape,
    # for data sets of many sizes. pytorch_encoding with scales always takes windows.
    evaluation.mode = "whole"
    # Pixels of the long side in the network; 0: that of the image, or data.base_size
    # for windows of pytorch_encoding. mmseg: an upper bound; 0: none.
    evaluation.base_size = 0
    evaluation.short_size = 0  # mmseg: bound of the short side in pixels; 0: none
    # How whole images and mmseg's logits are resized. Runs imported from
    # PyTorch-Encoding's weights set True.
    evaluation.align_corners = False
    evaluation.scales = ()  # relative to the size above; empty: single scale
    evaluation.flip = False  # average with the mirror image; needs windows or mmseg
    evaluation.crop_size = 0  # pixels of a window; 0: data.crop_size
    evaluation.stride = 0  # pixels between windows; 0: two thirds of crop_size
    evaluation.object_sizes = False  # evaluate.py: score small and large objects too
    # skip: classes in neither labels nor predictions are left out of means; or zero.
    evaluation.absent_classes = "skip"
    return evaluation


def pretrained_default(backbone: str) -> ConfigDict:
    """Returns the default tree with a key of `PRETRAINED_BACKBONES`."""
    config = default()
    config.model.backbone, config.model.weights = PRETRAINED_BACKBONES[backbone]
    return config


def check_variant(file: str, variant: str, allowed: Iterable[str]) -> None:
    """Raises `UserError` for an unknown argument of a file in `configs/`."""
    allowed = tuple(allowed)
    if variant not in allowed:
        raise UserError(
            f"{Path(file).name}:{variant}: allowed are {', '.join(allowed)}"
        )


def validate(config: ConfigDict) -> None:
    """Raises `UserError` for the first key or value that is not allowed.

    Reads no data. `run.model_config.check_config` checks model and loss as well.
    """
    values = dict(leaves(config))
    _check_names(values)
    _check_numbers(values)
    _check_choices(values)
    if config.batch_size % config.grad_accum_steps:
        raise UserError(
            f"batch_size={config.batch_size}: must be a multiple of "
            f"grad_accum_steps={config.grad_accum_steps}"
        )
    low, high = (*config.data.scale_range, 0.0)[:2]
    if len(config.data.scale_range) != 2 or not 0 < low <= high:
        raise UserError(
            f"data.scale_range={tuple(config.data.scale_range)}: must be two numbers, "
            "0 < low <= high"
        )
    _check_evaluation(config)
    if config.optimizer.warmup_steps >= config.total_steps:
        raise UserError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps}: must be below "
            f"total_steps={config.total_steps}"
        )


def _check_names(values: dict[str, Any]) -> None:
    """Raises for unknown and renamed keys, and for renamed values."""
    known = dict(leaves(default()))
    for key, value in values.items():
        if key not in known:
            if key in CONFIG_KEYS:
                raise UserError(f"{key}: is now called {CONFIG_KEYS[key]}")
            raise UserError(f"{key}: no such key of the configuration")
        renamed = CONFIG_VALUES.get(key, {})
        if isinstance(value, str) and value in renamed:
            raise UserError(f"{key}={value!r}: is now {renamed[value]!r}")


def leaves(config: ConfigDict, group: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each key with its group, `data.name`, and its value."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{group}{key}.")
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
            f"evaluation.short_size={settings.short_size}: must be 0 without "
            "evaluation.protocol=mmseg"
        )


def _check_numbers(values: dict[str, Any]) -> None:
    at_least = {
        1: "total_steps batch_size grad_accum_steps log_every eval_every "
        "checkpoint_every data.base_size data.crop_size evaluation.batch_size",
        0: "seed data.padded_size data.pad loss.se_weight loss.aux_weight "
        "optimizer.power optimizer.warmup_steps optimizer.min_learning_rate "
        "optimizer.weight_decay optimizer.head_lr_mult evaluation.base_size "
        "evaluation.short_size evaluation.crop_size evaluation.stride",
    }
    for least, keys in at_least.items():
        for key in keys.split():
            if not values[key] >= least:
                raise UserError(f"{key}={values[key]}: must be at least {least}")
    if values["seed"] >= 2**32:
        raise UserError(f"seed={values['seed']}: must be below 2^32")
    if not values["learning_rate"] > 0:
        raise UserError(f"learning_rate={values['learning_rate']}: must be above 0")
    for key in ("optimizer.momentum", "data.color_jitter"):
        if not 0 <= values[key] < 1:
            raise UserError(f"{key}={values[key]}: must be at least 0 and below 1")
    devices = values["mesh.data"]
    if devices != -1 and devices < 1:
        raise UserError(f"mesh.data={devices}: must be -1 (all) or at least 1")


def _check_choices(values: dict[str, Any]) -> None:
    choices = {
        "data.resize": ("host", "device"),
        "model.dtype": ("auto", "float32", "bfloat16"),
        "loss.normalize_by": ("valid", "all"),
        "loss.class_balance": ("", "median_frequency", "log"),
        "optimizer.schedule": ("poly", "cosine"),
        "evaluation.protocol": ("pytorch_encoding", "mmseg"),
        "evaluation.mode": ("whole", "slide"),
        "evaluation.absent_classes": ("skip", "zero"),
    }
    for key, allowed in choices.items():
        if values[key] not in allowed:
            names = ", ".join(name or "''" for name in allowed)
            raise UserError(f"{key}={values[key]!r}: allowed are {names}")


def save_config(config: ConfigDict, path: Path) -> None:
    """Writes a configuration as JSON."""
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(path: Path) -> ConfigDict:
    """Reads a stored configuration, of this version or an older one.

    Raises:
        UserError: The file is missing or not JSON.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; is {path.parent} the workdir of a run?")
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
