"""Tests of encnet_jax.convert.infer_config and torch_names: what weights tell."""

from pathlib import Path

import numpy as np
import pytest
from torch_networks import fcn_weights, full_shapes, small_weights

from encnet_jax.convert.infer_config import describe_torch_weights, open_weights
from encnet_jax.errors import UserError

RESNET50S = dict(
    backbone="resnet50", stem="deep", stem_width=64, avg_down=False, width=64
)
ENCODING = RESNET50S | dict(
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
    "encnet_resnet50s_ade20k": ENCODING | dict(num_classes=150, lateral=False),
    "encnet_resnet50s_pcontext": ENCODING | dict(num_classes=59, lateral=True),
    "mmseg_encnet_r50_d8": ENCODING
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
def test_originals_networks_are_told_from_names_and_shapes(case):
    description = describe_torch_weights(empty(full_shapes(case)))
    assert description.settings == EXPECTED[case]
    assert description.source == SOURCES.get(case, "torchvision")
    assert description.backbone_only == ("num_classes" not in EXPECTED[case])
    encoding = description.source == "pytorch_encoding"
    assert description.resize_align_corners == encoding
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
def test_every_depth_is_told(blocks, bottleneck, name, prefix):
    shapes = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,)}
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            for layer in range(1, 4 if bottleneck else 3):
                shapes[f"layer{stage}.{block}.conv{layer}.weight"] = (64, 64, 1, 1)
    weights = empty({prefix + key: shape for key, shape in shapes.items()})
    assert describe_torch_weights(weights).settings["backbone"] == name


def bare(case, prefix):
    weights = small_weights(case)
    kept = {k: v for k, v in weights.items() if k.startswith(prefix)}
    return {name.removeprefix(prefix): array for name, array in kept.items()}


def test_bare_backbones_of_both_originals_are_recognized():
    encoding = describe_torch_weights(bare("encnet_resnet50s_ade20k", "pretrained."))
    assert (encoding.source, encoding.settings["stem_width"]) == (
        "pytorch_encoding",
        64,
    )
    mmseg = describe_torch_weights(bare("mmseg_encnet_r50_d8", "backbone."))
    assert (mmseg.source, mmseg.settings["stem_width"]) == ("mmseg", 32)
    assert encoding.backbone_only and mmseg.backbone_only


def test_branches_that_are_missing_are_told():
    weights = small_weights("encnet_resnet50s_ade20k")
    part = {k: v for k, v in weights.items() if "selayer" not in k}
    part = {k: v for k, v in part.items() if "auxlayer" not in k}
    settings = describe_torch_weights(part).settings
    assert not settings["se_loss"] and not settings["aux_head"]


def test_fcn_is_told_from_encnet():
    description = describe_torch_weights(fcn_weights())
    assert description.settings["name"] == "fcn"
    assert str(description) == (
        "pytorch_encoding: tiny, stem deep (64), width 8, fcn of 150 classes, aux_head"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.weight", "b.weight"], "a.weight, b.weight, ...) are of no known source"),
        ([], "no tensors"),
        (["backbone.layer1.0.conv1.weight", "classifier.0.weight"], "no known source"),
        (["conv1.weight", "layer1.0.conv1.weight"], "stages of [1, 0, 0, 0] basic"),
    ],
)
def test_unknown_networks_are_refused(names, message):
    with pytest.raises(UserError) as error:
        describe_torch_weights(empty({name: (8, 8, 1, 1) for name in names}))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_other_head_of_mmsegmentation_is_refused_by_what_is_missing():
    weights = small_weights("mmseg_encnet_r50_d8")
    other = {k: v for k, v in weights.items() if "enc_module" not in k}
    with pytest.raises(
        UserError, match="decode_head.enc_module.fc.0.weight is missing"
    ):
        describe_torch_weights(other)


@pytest.mark.parametrize("address", ["hf://owner/repo", "hf://", "hf://a//b"])
def test_address_of_the_hub_must_name_owner_repository_and_file(address):
    with pytest.raises(UserError, match="hf://OWNER/REPO/FILE"):
        open_weights(address)


def test_file_of_the_hub_is_downloaded_by_its_library(monkeypatch):
    import huggingface_hub

    file = Path(__file__).parents[1] / "torch_files" / "checkpoint_zip.pth"
    asked = []

    def download(repo_id, filename):
        asked.append((repo_id, filename))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    entries, name = open_weights("hf://owner/repo/sub/file.pth")
    assert asked == [("owner/repo", "sub/file.pth")]
    assert name == "hf://owner/repo/sub/file.pth"
    assert entries.keys() == open_weights(file)[0].keys()
