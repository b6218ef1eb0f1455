"""Weights of DINOv2 by the names of timm, the original, and transformers."""

import numpy as np
import pytest
from flax import nnx

from encnet_jax.convert.infer_config import describe_torch_weights
from encnet_jax.convert.load import load_torch_model, load_torch_weights
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.models.dinov2 import DINOV2, DINOv2
from encnet_jax.run.state import flatten_paths
from tests.golden.dinov2 import SMALL, state_dict
from tests.golden.modules import empty

# Written from transformers' Dinov2Model, independently of `encnet_jax.convert`.
_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_BLOCK = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


def of_transformers(weights):
    found = {"embeddings.mask_token": np.zeros((1, 24), np.float32)}
    for key, value in weights.items():
        if key in _NAMES:
            found[_NAMES[key]] = value
            continue
        _, index, rest = key.split(".", 2)
        layer, leaf = rest.rsplit(".", 1)
        block = f"encoder.layer.{index}"
        if layer == "attn.qkv":
            for part, rows in zip(("query", "key", "value"), np.split(value, 3)):
                found[f"{block}.attention.attention.{part}.{leaf}"] = rows
        elif rest in _BLOCK:
            found[f"{block}.{_BLOCK[rest]}"] = value
        else:
            found[f"{block}.{_BLOCK.get(layer, layer)}.{leaf}"] = value
    return found


@pytest.fixture
def weights(monkeypatch):
    monkeypatch.setitem(DINOV2, "small", SMALL)
    return state_dict("small")


def arrays(model):
    return flatten_paths(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def test_embedding_follows_the_order_of_three_bands(weights):
    plain, ordered = empty(DINOv2, "small"), empty(DINOv2, "small")
    load_torch_weights(plain, weights)
    report = load_torch_weights(ordered, weights, rgb_channels=(2, 1, 0))
    assert "2, 1, 0 have the kernels of red, green and blue" in str(report)
    kernels = [np.asarray(m.patch_embed.kernel[...]) for m in (plain, ordered)]
    np.testing.assert_array_equal(kernels[1], kernels[0][:, :, ::-1])


def test_names_of_transformers_load_the_same_network(weights):
    ours, theirs = empty(DINOv2, "small"), empty(DINOv2, "small")
    assert load_torch_weights(ours, weights).source == "timm"
    found = of_transformers(weights)
    assert describe_torch_weights(found).settings == {"backbone": "small"}
    report = load_torch_weights(theirs, found)
    assert report.source == "transformers"
    assert report.dropped == {
        "embeddings.mask_token": "token of masked patches, for pretraining only"
    }
    # As a part of a network that classifies images.
    classifier = {f"dinov2.{key}": value for key, value in found.items()}
    third = empty(DINOv2, "small")
    load_torch_weights(third, classifier)
    for path, value in arrays(ours).items():
        assert np.abs(value).max() > 0, path
        np.testing.assert_array_equal(value, arrays(theirs)[path])
        np.testing.assert_array_equal(value, arrays(third)[path])


def test_original_is_described_and_holds_no_head(weights):
    original = weights | {"mask_token": np.zeros((1, 24), np.float32)}
    assert str(describe_torch_weights(original)) == "timm: small, backbone only"
    with pytest.raises(UserError, match="holds only a backbone .timm: small"):
        load_torch_model(original)
    report = load_torch_weights(empty(DINOv2, "small"), original)
    assert list(report.dropped) == ["mask_token"]


def test_other_transformers_are_named(weights):
    with pytest.raises(UserError, match="1 unexpected keys: reg_token"):
        load_torch_weights(
            empty(DINOv2, "small"), weights | {"reg_token": np.zeros((1, 4, 24), "f4")}
        )
    del weights["blocks.3.ls1.gamma"]
    with pytest.raises(UserError, match="of 3 blocks, 24 channels, and patches of 14 "):
        describe_torch_weights(weights)


def test_incomplete_attention_is_named(weights):
    found = of_transformers(weights)
    del found["encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(UserError, match="layer.1.attention.attention.query.bias"):
        load_torch_weights(empty(DINOv2, "small"), found)


def test_backbones_of_another_kind_do_not_fit(weights):
    resnet = nnx.eval_shape(
        lambda: create_model("fcn", num_classes=2, backbone="tiny", width=2)
    )
    with pytest.raises(UserError, match="missing keys: .*The weights are timm: small"):
        load_torch_weights(resnet, weights, head="skip")
    keys = {
        f"layer{i}.0.conv1.weight": np.zeros((4, 4, 1, 1), "f4") for i in range(1, 5)
    }
    keys["conv1.weight"] = np.zeros((4, 3, 7, 7), "f4")
    with pytest.raises(UserError, match="unexpected keys: .*missing keys"):
        load_torch_weights(empty(DINOv2, "small"), keys)
