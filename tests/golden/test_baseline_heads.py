"""The heads of PSPNet and DeepLabV3 against plain torch."""

import numpy as np
import pytest
from flax import nnx

from encnet_jax.models.heads import DeepLabV3Head, PSPHead

from .cases import nchw, nhwc
from .heads import CASES, CHANNELS, CLASSES, FEATURES, STORED, features, weights
from .modules import empty, fill

# The stored weights were drawn by their names, which are of torch's modules.
RULES = ((r"^project\.", "reduce."), (r"^join\.", "fuse."))
HEADS = {"psp": PSPHead, "aspp": DeepLabV3Head}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_head_matches_torch(case, mode):
    name, settings = CASES[case]
    head = empty(HEADS[name], FEATURES, CHANNELS, CLASSES, dropout=0.0, **settings)
    fill(head, weights(name), RULES)
    head.train() if mode == "train" else head.eval()
    actual = nchw(nnx.jit(lambda head, x: head(x))(head, nhwc(features(name))))
    with np.load(STORED) as stored:
        expected = stored[f"{case}_{mode}"]
        # As in `Case.allowed`: another order of summation, and no more.
        allowed = max(20 * stored[f"{case}_{mode}_error"], 1e-5 * abs(expected).max())
    assert expected.std() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed)
