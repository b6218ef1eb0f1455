"""Sizes to which prediction pads images, by backbone."""

import pytest
from flax import nnx

from encnet_jax.errors import UserError
from encnet_jax.models import create_model, registry
from tests.small_vit import add_small_vit


def padded(size, *, backbone="tiny", output_stride=8, align_corners=False, pads=True):
    settings = dict(output_stride=output_stride, align_corners=align_corners)
    model = nnx.eval_shape(
        lambda: create_model(
            "fcn", num_classes=2, backbone=backbone, pad_to_stride=pads, **settings
        )
    )
    return model.padded_size(size)


@pytest.mark.parametrize(
    "size, settings, expected",
    [
        ((450, 600), {}, (456, 600)),
        ((1, 7), {}, (8, 8)),
        ((450, 600), {"output_stride": 16}, (464, 608)),
        ((450, 600), {"align_corners": True}, (457, 601)),
        ((449, 1), {"align_corners": True}, (449, 1)),
        ((450, 600), {"pads": False}, (450, 600)),
        ((450, 600), {"pads": False, "align_corners": True}, (450, 600)),
    ],
)
def test_sizes_fit_the_stride(size, settings, expected):
    assert padded(size, **settings) == expected


@pytest.mark.parametrize("align_corners", [False, True])
def test_patches_fill_the_image(align_corners, monkeypatch):
    vit = add_small_vit(monkeypatch)
    found = padded((500, 672), backbone=vit, align_corners=align_corners)
    assert found == (504, 672)


def test_backbone_without_a_stride_is_named(monkeypatch):
    class Foreign(nnx.Module):
        features = (8, 8, 8, 8)

        def __init__(self, *, rngs):
            pass

        def __call__(self, images):
            raise NotImplementedError

    monkeypatch.setitem(registry.BACKBONES, "foreign", Foreign)
    with pytest.raises(UserError, match="pad_to_stride=True: Foreign has no attribute"):
        padded((8, 8), backbone="foreign")
    assert padded((9, 9), backbone="foreign", pads=False) == (9, 9)
