"""A network and a backbone from outside the package, added by a line each."""

import jax.numpy as jnp
import pytest
from flax import nnx

from encnet_jax.errors import UserError
from encnet_jax.models import create_model, registry
from encnet_jax.models.heads import ClassifierHead
from encnet_jax.models.layers import BatchNorm, Conv, ConvBN
from encnet_jax.models.segmentation import SegmentationModel
from encnet_jax.models.settings import at_least, settings_of

TINY = dict(num_classes=3, backbone="tiny", stem="plain", width=2, aux_head=False)


class LinearHead(SegmentationModel):
    """A classifier on a projection of the last stage."""

    checks = SegmentationModel.checks | {"projection": at_least(1)}

    def __init__(self, num_classes, backbone, *, projection=8, rngs, **settings):
        head = nnx.Sequential(
            ConvBN(backbone.features[3], projection, rngs=rngs),
            ClassifierHead(projection, num_classes, dropout=0.0, rngs=rngs),
        )
        super().__init__(
            num_classes, backbone, head, dropout=0.0, rngs=rngs, **settings
        )


class PlainBackbone(nnx.Module):
    """Four strided convolutions."""

    checks = {"base": at_least(2)}

    def __init__(self, *, base=4, rngs):
        self.features = (base, base, 2 * base, 2 * base)
        inputs = (3, *self.features[:3])
        self.stages = nnx.List(
            [
                ConvBN(c, d, 3, stride=2, rngs=rngs)
                for c, d in zip(inputs, self.features)
            ]
        )

    def __call__(self, images):
        outputs = [images]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs[1:]


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "linear", LinearHead)
    monkeypatch.setitem(registry.BACKBONES, "plain", PlainBackbone)


def test_new_network_takes_its_own_settings_and_those_of_all(added):
    model = create_model("linear", projection=5, align_corners=False, **TINY)
    assert model.head.layers[0].conv.kernel.shape[-1] == 5
    assert model.align_corners is False and model.aux_head is None
    assert model(jnp.zeros((1, 16, 24, 3))).logits.shape == (1, 16, 24, 3)
    # Settings of other networks that segment are ignored.
    create_model("linear", num_codes=4, lateral=True, **TINY)
    with pytest.raises(
        UserError, match="model.projection=0: must be an integer of at least"
    ):
        create_model("linear", projection=0, **TINY)
    with pytest.raises(UserError, match="linear has no such setting"):
        create_model("linear", scale_drop=True, **TINY)


def test_new_backbone_serves_every_network(added):
    for name in ("encnet", "deeplabv3", "linear"):
        model = create_model(
            name, num_classes=3, backbone="plain", base=2, head_channels=4
        )
        assert isinstance(model.backbone, PlainBackbone)
        output = model(jnp.zeros((2, 32, 32, 3)))
        assert output.logits.shape == output.aux_logits.shape == (2, 32, 32, 3)
    with pytest.raises(UserError, match="model.base=1: must be an integer of at least"):
        create_model("fcn", num_classes=3, backbone="plain", base=1)


def test_unknown_names_are_answered_with_those_registered(added):
    with pytest.raises(UserError, match="model.name='unet': allowed are .*linear"):
        create_model("unet", num_classes=3)
    with pytest.raises(UserError, match="model.backbone='vgg': allowed are .*plain"):
        create_model("fcn", num_classes=3, backbone="vgg")
    with pytest.raises(TypeError, match="depth=3: no such setting of any model"):
        create_model("fcn", num_classes=3, depth=3)


def test_settings_are_the_keyword_arguments_of_a_class_and_its_bases():
    defaults = {
        key: s.default for key, s in settings_of(registry.MODELS["fcn"]).items()
    }
    assert defaults == dict(
        align_corners=True,
        pad_to_stride=False,
        aux_head=True,
        freeze_backbone=False,
        decoder_stride=8,
        head_channels=512,
        dropout=0.1,
    )


def test_layer_options_reach_every_layer():
    model = create_model(
        "encnet", dtype=jnp.bfloat16, unbiased_running_var=True, lateral=True, **TINY
    )
    layers = [layer for _, layer in nnx.iter_modules(model)]
    assert {x.dtype for x in layers if isinstance(x, Conv)} == {jnp.bfloat16}
    norms = [x for x in layers if isinstance(x, BatchNorm)]
    assert norms and all(norm.unbiased_running_var for norm in norms)


@pytest.mark.parametrize("name", ["resnet14", "se_resnet14", "fcn"])
def test_no_codewords_are_allowed_where_there_are_none_anyway(name):
    # As in 0.1.0, whose stored configurations say so.
    registry.check_model_settings(name=name, num_classes=3, num_codes=0)
    with pytest.raises(
        UserError, match="model.num_codes=-1: must be an integer of at least"
    ):
        registry.check_model_settings(name=name, num_classes=3, num_codes=-1)


def test_an_encnet14_needs_a_codeword():
    with pytest.raises(
        UserError, match="model.num_codes=0: must be an integer of at least"
    ):
        registry.check_model_settings(name="encnet14", num_classes=3, num_codes=0)
