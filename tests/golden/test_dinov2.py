"""The vision transformers of DINOv2 against timm's."""

import numpy as np
import pytest
from flax import nnx

from encnet_jax.convert.load import load_torch_weights
from encnet_jax.models.dinov2 import DINOV2, DINOv2

from .cases import nchw, nhwc
from .dinov2 import CASES, SPECS, STORED, images, state_dict
from .modules import empty


@pytest.mark.parametrize("case", CASES)
def test_features_match_timm(case, monkeypatch):
    name, _, part = CASES[case]
    monkeypatch.setitem(DINOV2, name, SPECS[name])
    model = empty(DINOv2, name)
    report = load_torch_weights(model, state_dict(name))
    assert not report.left_initialized and not report.dropped
    actual = nnx.jit(lambda model, x: model(x))(model, nhwc(images(case)))
    with np.load(STORED) as stored:
        for number, features in enumerate(actual, start=1):
            expected = stored[f"{case}_{number}"]
            assert expected.std() > 0.5
            np.testing.assert_allclose(
                nchw(features)[part], expected, rtol=0, atol=1e-4
            )
