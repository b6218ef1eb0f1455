"""Backbones: the residual networks of torchvision, timm and EncNet."""

import jax
import numpy as np
import pytest
from flax import nnx

from encnet_jax.convert.load import load_torch_weights
from encnet_jax.models.layers import max_pool
from encnet_jax.models.resnet import ResNet

from .cases import Case, load_case, nchw, nhwc
from .modules import empty

_SETTINGS = {
    "backbone_resnet50_dilated": dict(name="resnet50", stem="plain"),
    "torchvision_resnet18": dict(name="resnet18", stem="plain", output_stride=32),
    "torchvision_resnet50": dict(name="resnet50", stem="plain", output_stride=32),
    "timm_resnet50d": dict(
        name="resnet50", stem_width=32, avg_down=True, output_stride=32
    ),
}


@pytest.mark.parametrize("name", _SETTINGS)
def test_backbone_matches(name, check):
    case = load_case(name)
    weights = case.weights()
    model = empty(ResNet, **_SETTINGS[name])
    account = load_torch_weights(model, weights)
    assert not account.left_initialized
    dropped = {k for k in account.dropped if not k.endswith("num_batches_tracked")}
    assert dropped == {"fc.weight", "fc.bias"} & weights.keys()
    model.eval()
    for entry, value in _results(case, model, weights).items():
        check(case, entry, value)


def _results(case: Case, model: ResNet, weights) -> dict[str, np.ndarray]:
    """Returns what the case stores, by its names and in its layout."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def apply(state, images):
        model = nnx.merge(graphdef, state)
        stem = images
        for layer in model.stem:
            stem = layer(stem)
        return max_pool(stem), model(images)

    stem, stages = apply(state, nhwc(case.input("image")))
    stem, stages = nchw(stem), [nchw(stage) for stage in stages]
    if "c4" in case.arrays:
        return {"stem": stem[:, ::8]} | {f"c{i + 1}": s for i, s in enumerate(stages)}
    means = [stage.mean((2, 3), dtype=np.float64) for stage in stages]
    # The classifier is no part of our backbones; it sees every channel of the features.
    logits = means[3] @ weights["fc.weight"].T + weights["fc.bias"]
    return {
        "stem": stem,
        **{f"layer{i + 1}_channel_means": mean for i, mean in enumerate(means)},
        "features": stages[3],
        "logits": logits,
    }
