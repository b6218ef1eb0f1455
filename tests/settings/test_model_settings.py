"""Each key of `model`, by the network that `train` builds."""

import jax.numpy as jnp
import pytest
from flax import nnx

from encnet_jax.models.cifar import DropEncoding
from encnet_jax.models.layers import BatchNorm, Conv
from encnet_jax.models.registry import create_model
from encnet_jax.models.segmentation import FCN
from encnet_jax.train import trainer
from tests.settings.toy import Finished, toy_config, toy_dataset


def modules(model, kind):
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, kind)]


def blocks(model):
    return [len(stage) for stage in model.backbone.stages]


def kernel(conv):
    return conv.kernel.shape


# Key, value, what of the network it sets, and that.
CASES = [
    ("name", "fcn", type, FCN),
    ("backbone", "resnet18", blocks, [2, 2, 2, 2]),
    ("stem", "plain", lambda m: kernel(m.backbone.stem[0].conv), (7, 7, 3, 8)),
    ("stem_width", 32, lambda m: kernel(m.backbone.stem[0].conv), (3, 3, 3, 32)),
    ("avg_down", True, lambda m: m.backbone.stages[1][0].shortcut.pool, 2),
    ("lateral", True, lambda m: kernel(m.head.fuse.conv), (3, 3, 48, 16)),
    ("align_corners", False, lambda m: m.align_corners, False),
    ("pad_to_stride", True, lambda m: m.size_divisor, 8),
    ("num_codes", 6, lambda m: m.head.context.encoding.codewords.shape, (6, 16)),
    ("code_reduction", "sum", lambda m: m.head.context.code_reduction, "sum"),
    ("gate", "plain", lambda m: m.head.context.residual, False),
    ("decoder_stride", 4, lambda m: m.head.decoder is None, False),
    ("freeze_backbone", True, lambda m: m.freeze_backbone, True),
    ("se_loss", False, lambda m: m.head.context.se_head, None),
    ("se_stages", (3,), lambda m: m.head.context.se_head, None),
    ("aux_head", False, lambda m: m.aux_head, None),
    ("output_stride", 16, lambda m: m.backbone.stages[2][0].layers[1].conv.stride, 2),
    ("width", 12, lambda m: m.backbone.features, (48, 96, 192, 384)),
    ("remat", (2, 3), lambda m: m.backbone.remat, (2, 3)),
    ("head_channels", 24, lambda m: kernel(m.head.classifier.conv), (1, 1, 24, 2)),
    ("dropout", 0.4, lambda m: m.head.classifier.dropout.rate, 0.4),
    (
        "conv_impl",
        "lax",  # 1x1 convolutions are always matrix products
        lambda m: {conv.impl for conv in modules(m, Conv)},
        {"lax", "gemm"},
    ),
    (
        "unbiased_running_var",
        True,
        lambda m: {norm.unbiased_running_var for norm in modules(m, BatchNorm)},
        {True},
    ),
    (
        "dtype",
        "bfloat16",
        lambda m: {jnp.dtype(conv.dtype).name for conv in modules(m, Conv)},
        {"bfloat16"},
    ),
]


def built(monkeypatch, tmp_path, abstract=True, **changes):
    """Returns the network of a run, if `abstract` without its arrays."""
    found = []

    def create(rngs, **settings):
        def build():
            return create_model(**settings)

        found.append(nnx.eval_shape(build) if abstract else build())
        raise Finished

    monkeypatch.setattr(trainer, "create_model", create)
    config = toy_config(**changes)
    with pytest.raises(Finished):
        trainer.train(config, tmp_path, (toy_dataset(), toy_dataset()))
    return found[0]


@pytest.mark.parametrize(
    ("key", "value", "of", "expected"),
    [pytest.param(*c, id=c[0], marks=pytest.mark.sets(f"model.{c[0]}")) for c in CASES],
)
def test_network(key, value, of, expected, monkeypatch, tmp_path):
    # Small; the widths of a bottleneck are four times these.
    small = {"name": "encnet", "backbone": "tiny", "width": 8, "head_channels": 16}
    settings = {f"model.{k}": v for k, v in {**small, key: value}.items()}
    assert of(built(monkeypatch, tmp_path, **settings)) == expected


@pytest.mark.sets("model.head_init")
def test_start_of_heads(monkeypatch, tmp_path):
    settings = dict(name="fcn", backbone="tiny", width=2, stem="plain", aux_head=False)
    settings |= dict(head_channels=4, head_init="mmseg")
    settings = {f"model.{k}": v for k, v in settings.items()}
    model = built(monkeypatch, tmp_path, abstract=False, **settings)
    # Uniform in +-1/2 otherwise.
    assert not model.head.classifier.conv.bias[...].any()


@pytest.mark.sets("model.scale_init")
@pytest.mark.parametrize("scale_init, least", [("original", -1), ("scaled", -1 / 4)])
def test_start_of_scales(monkeypatch, tmp_path, scale_init, least):
    settings = dict(name="encnet", backbone="tiny", width=2, stem="plain")
    settings |= dict(head_channels=4, num_codes=32, scale_init=scale_init)
    settings = {f"model.{k}": v for k, v in settings.items()}
    model = built(monkeypatch, tmp_path, abstract=False, **settings)
    scales = model.head.context.encoding.scale[...]
    assert least <= scales.min() < 0.8 * least and scales.max() < 0


@pytest.mark.sets("model.scale_drop")
def test_random_scales(monkeypatch, tmp_path):
    settings = {"name": "encnet14", "backbone": "resnet50", "width": 8}
    settings |= {"num_codes": 2, "scale_drop": True}
    monkeypatch.setattr(trainer.settings, "check_task", lambda *_: None)
    model = built(
        monkeypatch, tmp_path, **{f"model.{k}": v for k, v in settings.items()}
    )
    encodings = [block.attention.encoding for block in model.blocks]
    assert {type(encoding) for encoding in encodings} == {DropEncoding}
