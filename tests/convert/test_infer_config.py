"""Tests of encnet_jax.convert.infer_config: the network inferred from weights."""

from pathlib import Path

import numpy as np
import pytest
from torch_networks import fcn_weights, full_shapes, small_weights

from encnet_jax.convert.infer_config import describe_torch_weights, open_weights
from encnet_jax.errors import UserError

RESNET50S = dict(
    backbone="resnet50", stem="deep", stem_width=64, avg_down=False, width=64
)
PYTORCH_ENCODING = RESNET50S | dict(
    name="encnet",
    head_channels=512,
    num_codes=32,
    se_loss=True,
    aux_head=True,
    align_corners=True,
    unbiased_running_var=False,
    output_stride=8,
)
EXPECTED = {
    "encnet_resnet50s_ade20k": PYTORCH_ENCODING | dict(num_classes=150, lateral=False),
    "encnet_resnet50s_pcontext": PYTORCH_ENCODING | dict(num_classes=59, lateral=True),
    "mmseg_encnet_r50_d8": PYTORCH_ENCODING
    | dict(
        num_classes=19,
        lateral=False,
        stem_width=32,
        align_corners=False,
        unbiased_running_var=True,
    ),
    "backbone_resnet50_dilated": RESNET50S | dict(stem="plain"),
    "torchvision_resnet18": RESNET50S | dict(stem="plain", backbone="resnet18"),
    "torchvision_resnet50": RESNET50S | dict(stem="plain"),
    "timm_resnet50d": RESNET50S | dict(stem_width=32, avg_down=True),
}
SOURCES = {
    "encnet_resnet50s_ade20k": "pytorch_encoding",
    "encnet_resnet50s_pcontext": "pytorch_encoding",
    "mmseg_encnet_r50_d8": "mmseg",
    "timm_resnet50d": "timm",
}


def empty(shapes):
    return {name: np.broadcast_to(np.float32(0), s) for name, s in shapes.items()}


@pytest.mark.parametrize("case", EXPECTED)
def test_original_networks_are_inferred_from_keys_and_shapes(case):
    description = describe_torch_weights(empty(full_shapes(case)))
    assert description.settings == EXPECTED[case]
    assert description.source == SOURCES.get(case, "torchvision")
    assert description.backbone_only == ("num_classes" not in EXPECTED[case])
    pytorch_encoding = description.source == "pytorch_encoding"
    assert description.resize_align_corners == pytorch_encoding
    assert description.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "name"),
    [
        ((2, 2, 2, 2), False, "resnet18"),
        ((3, 4, 6, 3), False, "resnet34"),
        ((3, 4, 6, 3), True, "resnet50"),
        ((3, 4, 23, 3), True, "resnet101"),
        ((3, 8, 36, 3), True, "resnet152"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "pretrained.", "backbone."])
def test_every_depth_is_inferred(blocks, bottleneck, name, prefix):
    shapes = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,)}
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            for layer in range(1, 4 if bottleneck else 3):
                shapes[f"layer{stage}.{block}.conv{layer}.weight"] = (64, 64, 1, 1)
    weights = empty({prefix + key: shape for key, shape in shapes.items()})
    assert describe_torch_weights(weights).settings["backbone"] == name


def backbone_weights(case, prefix):
    weights = small_weights(case)
    kept = {k: v for k, v in weights.items() if k.startswith(prefix)}
    return {name.removeprefix(prefix): array for name, array in kept.items()}


def test_bare_backbones_of_both_originals_are_recognized():
    encoding = describe_torch_weights(
        backbone_weights("encnet_resnet50s_ade20k", "pretrained.")
    )
    assert (encoding.source, encoding.settings["stem_width"]) == (
        "pytorch_encoding",
        64,
    )
    mmseg = describe_torch_weights(backbone_weights("mmseg_encnet_r50_d8", "backbone."))
    assert (mmseg.source, mmseg.settings["stem_width"]) == ("mmseg", 32)
    assert encoding.backbone_only and mmseg.backbone_only


def test_missing_branches_are_inferred():
    weights = small_weights("encnet_resnet50s_ade20k")
    part = {k: v for k, v in weights.items() if "selayer" not in k}
    part = {k: v for k, v in part.items() if "auxlayer" not in k}
    settings = describe_torch_weights(part).settings
    assert not settings["se_loss"] and not settings["aux_head"]


def test_fcn_is_distinguished_from_encnet():
    description = describe_torch_weights(fcn_weights())
    assert description.settings["name"] == "fcn"
    assert str(description) == (
        "pytorch_encoding: tiny, stem deep (64), width 8, fcn of 150 classes, aux_head"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a.weight", "b.weight"], "keys of no known source (a.weight, b.weight, ...)"),
        ([], "no tensors"),
        (["backbone.layer1.0.conv1.weight", "classifier.0.weight"], "no known source"),
        (["conv1.weight", "layer1.0.conv1.weight"], "stages of [1, 0, 0, 0] basic"),
    ],
)
def test_unknown_networks_are_rejected(keys, message):
    with pytest.raises(UserError) as error:
        describe_torch_weights(empty({key: (8, 8, 1, 1) for key in keys}))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_other_head_of_mmsegmentation_is_rejected_by_a_missing_key():
    weights = small_weights("mmseg_encnet_r50_d8")
    other = {k: v for k, v in weights.items() if "enc_module" not in k}
    with pytest.raises(
        UserError, match="decode_head.enc_module.fc.0.weight is missing"
    ):
        describe_torch_weights(other)


@pytest.mark.parametrize("address", ["hf://owner/repo", "hf://", "hf://a//b"])
def test_hub_address_must_name_owner_repository_and_file(address):
    with pytest.raises(UserError, match=r"must be hf://OWNER/REPO\[@REVISION\]/FILE"):
        open_weights(address)


def test_hub_file_is_downloaded_by_huggingface_hub(monkeypatch):
    import huggingface_hub

    file = Path(__file__).parents[1] / "torch_files" / "checkpoint_zip.pth"
    requested = []

    def download(self, repo_id, filename, revision):
        requested.append((repo_id, filename, revision))
        return str(file)

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", download)
    entries, name = open_weights("hf://owner/repo/sub/file.pth")
    assert requested == [("owner/repo", "sub/file.pth", None)]
    assert name == "hf://owner/repo/sub/file.pth"
    assert entries.keys() == open_weights(file)[0].keys()
