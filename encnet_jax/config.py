"""The default configuration, one comment per key; `config_checks` checks its values.

A file in `configs/` calls `default()` and sets what its recipe changes; flags override
both: `--config.learning_rate=0.02`.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

import encnet_jax
from encnet_jax.errors import UserError
from encnet_jax.files import user_path, whole_file
from encnet_jax.migrations import migrate_config

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
    # Stop after this many evaluations without a new best score; 0: never.
    config.early_stopping = 0
    config.checkpoint_every = 1000  # steps; every evaluation saves one too
    config.tracker = ""  # wandb or trackio, besides TensorBoard; empty: neither
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
    model.backbone = "resnet50"  # resnet18, 34, 50, 101, 152, tiny; dinov2_vits14, b14
    model.stem = "deep"  # three 3x3 convolutions; plain: one 7x7
    model.stem_width = 64  # channels of the deep stem; mmsegmentation: 32
    model.avg_down = False  # average pooling in strided shortcuts (D variant)
    model.lateral = False  # lateral links from stages 2 and 3 to the head
    model.align_corners = True  # of the upsampling; mmsegmentation: False
    model.pad_to_stride = False  # in prediction, to sizes that fit output_stride
    model.num_codes = 32  # codewords (paper); 0: global average pooling
    # Initial scales of the codewords: original ([-1, 0)), or scaled ([-1/channels, 0)).
    model.scale_init = "original"
    model.code_reduction = "mean"  # over codewords; paper: sum
    model.gate = "residual"  # relu(x + x * gate); plain: x * gate (paper)
    model.se_loss = True  # predict class presence
    model.se_stages = (4,)  # stages to predict it from; paper: (3, 4)
    model.aux_head = True  # auxiliary FCN head on stage 3
    model.output_stride = 8  # 8, 16 or 32
    model.decoder_stride = 8  # encnet, fcn; 4: logits at stride 4, by a link to stage 1
    model.width = 64  # channels of the first stage before expansion
    model.freeze_backbone = False  # keep its weights and running statistics
    model.remat = ()  # stages recomputed in the backward pass, to save memory
    model.head_channels = 512  # channels of the head
    # Initial convolutions of the head: pytorch_encoding (PyTorch's default) or mmseg.
    model.head_init = "pytorch_encoding"
    model.dropout = 0.1  # rate before each classifier
    # 3x3 convolutions: lax, space_to_batch (dilated ones), winograd; auto: by platform.
    model.conv_impl = "auto"
    model.scale_drop = False  # encnet14: random scales in place of learned ones
    model.unbiased_running_var = False  # of batch norm; mmsegmentation: True
    # Initial weights: a .pth or .safetensors file or hf://... of the backbone; the
    # workdir of an earlier run, or a model folder; empty: from scratch.
    model.weights = ""
    model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU; or either
    return model


def _data() -> ConfigDict:
    data = ConfigDict()
    data.name = ""  # key of data.registry.DATASETS; every config sets it
    data.data_dir = config_dict.placeholder(str)  # see docs/data.md
    data.train_split = "train"
    # Of the images: 3, as 8-bit RGB; others are read as bands, see docs/data.md.
    data.channels = 3
    # Values that are black and white, (low, high), or a pair for each channel; images
    # are then read as bands. Empty: that in classes.json, or all 8 or 16 bits.
    data.value_range = ()
    data.base_size = 520  # pixels of the long side at scale 1
    data.crop_size = 480  # pixels, height and width
    data.scale_range = (0.5, 2.0)  # of random resizing; (1.0, 1.0): none
    data.flip = True  # horizontal, with probability 1/2
    data.color_jitter = 0.0  # brightness, contrast, saturation times 1 +- this
    data.rotation = 0.0  # degrees, random within +- this; paper: 10
    # Share of the crops that are centered at a pixel of a class drawn from the image's.
    data.class_crop_rate = 0.0
    data.pad = 0  # classification: black border in pixels before the crop; CIFAR: 4
    data.cache_on_device = False  # keep the data set on the device and augment there
    data.resize = "host"  # where crops are resized otherwise, or device
    # Pixels, height and width, to which images are padded for resizing on the device;
    # 0: enough for any image.
    data.padded_size = 0
    data.max_image_pixels = 0  # allows images over Pillow's limit of 179 million
    return data


def _loss() -> ConfigDict:
    loss = ConfigDict()
    loss.se_weight = 0.2  # alpha of the paper
    loss.aux_weight = 0.2  # PyTorch-Encoding; mmsegmentation: 0.4
    loss.class_weights = ()  # one per class, at least 0; empty: equal
    # Class weights computed from the training split: median_frequency (SegNet), or log,
    # 1/ln(1.02 + share of the labeled pixels) (ENet); empty: loss.class_weights.
    loss.class_balance = ""
    loss.label_smoothing = 0.0  # share of the target spread over all classes
    # Share of labeled pixels that count, those of the highest cross-entropy; 1: all.
    loss.hard_pixel_fraction = 1.0
    # Of Lovász-softmax on the main head, relative to its cross-entropy; 0: none.
    loss.lovasz_weight = 0.0
    loss.normalize_by = "valid"  # pixels that the mean is over; mmsegmentation: all
    return loss


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.name = "sgd"  # or adamw
    optimizer.schedule = "poly"  # or cosine
    optimizer.power = 0.9  # of poly
    optimizer.warmup_steps = 0  # of linear increase from 0
    optimizer.min_learning_rate = 0.0  # after all steps; mmsegmentation: 1e-4
    optimizer.momentum = 0.9  # of adamw: decay of the first moment
    optimizer.nesterov = False  # of sgd
    optimizer.beta2 = 0.999  # of adamw: decay of the second moment
    optimizer.weight_decay = 1e-4  # of every parameter; adamw: not of vectors
    optimizer.max_grad_norm = 0.0  # gradients are clipped to this norm; 0: not
    # Decay of the moving averages of the weights, which then are evaluated; 0: none.
    optimizer.ema_decay = 0.0
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
    # Pixels of the long side in the network; 0: data.base_size. mmseg: an upper bound;
    # 0: none.
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
    evaluation.boundary_iou = False  # evaluate.py: score pixels near boundaries too
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


def recipes() -> dict[str, Path]:
    """Returns the files in `configs/` by name, `camvid` for `configs/camvid.py`."""
    package = Path(__file__).parent
    # Installed from a wheel inside the package, in a clone beside it.
    folder = package / "configs"
    if not folder.is_dir():
        folder = package.parent / "configs"
    files = sorted(folder.glob("[!_]*.py"))
    return {path.stem: path for path in files}


def find_config(config: str) -> str:
    """Returns the path of a configuration, with its `:ARG` if it has one.

    Args:
        config: `NAME` or `NAME:ARG` of a recipe, or the path of a Python file.

    Raises:
        UserError: There is neither, which names the recipes; or the file is no Python.
    """
    name, colon, argument = config.partition(":")
    known = recipes()
    if name in known:
        return f"{known[name]}{colon}{argument}"
    path = user_path(name) if name else Path()
    if not os.path.isfile(path):
        raise UserError(f"neither a file nor a recipe; recipes are {', '.join(known)}")
    if path.suffix.lower() in (".json", ".toml", ".yaml", ".yml"):
        raise UserError(f"{path}: a configuration is a Python file, NAME.py")
    return f"{path}{colon}{argument}"


def leaves(config: ConfigDict, group: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each key with its group, `data.name`, and its value."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{group}{key}.")
        else:
            yield f"{group}{key}", value


def plain(value: Any) -> Any:
    """Returns a value as JSON holds it, with lists in place of tuples."""
    return [*map(plain, value)] if isinstance(value, tuple | list) else value


def save_config(config: ConfigDict, path: str | Path) -> None:
    """Writes a configuration as JSON."""
    with whole_file(user_path(path)) as file:
        file.write((json.dumps(config.to_dict(), indent=2) + "\n").encode())


def load_config(path: str | Path) -> ConfigDict:
    """Reads a stored configuration, of this version or an older one.

    Raises:
        UserError: The file is missing, a folder, or holds no configuration.
    """
    path = user_path(path)
    if os.path.isdir(path):  # unlike those of `Path`, these two never raise
        raise UserError(f"{path}: a folder; give its file, {path / 'config.json'}")
    if not os.path.isfile(path):
        raise UserError(f"{path}: missing; is {path.parent} the workdir of a run?")
    config = default()
    groups = [name for name, value in config.items() if isinstance(value, ConfigDict)]
    try:
        stored = migrate_config(json.loads(path.read_text()))
        missing = [name for name in groups if not isinstance(stored.get(name), dict)]
        config.unlock()
        config.update(stored)
        unknown = dict(leaves(config)).keys() - dict(leaves(default())).keys()
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: not the configuration of a run: {error}") from error
    if missing:
        raise UserError(f"{path}: not the configuration of a run: {missing[0]} is none")
    if unknown:
        raise UserError(
            f"{path}: {min(unknown)}: no such key of the configuration in version "
            f"{encnet_jax.__version__} of encnet_jax; was it written by a newer one?"
        )
    return config.lock()


def default_workdir(config: str) -> Path:
    """Returns `runs/NAME` for `NAME` or `DIR/NAME.py`, `runs/NAME-ARG` for `:ARG`."""
    path, _, argument = config.partition(":")
    name = Path(path).stem
    return Path("runs") / (f"{name}-{argument}" if argument else name)
