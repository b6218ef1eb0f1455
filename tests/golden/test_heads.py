"""The head of PyTorch-Encoding on given features, with and without lateral links."""

import jax
import pytest
from flax import nnx

from encnet_jax.models.encnet import EncodingHead

from .cases import load_case, nchw, nhwc
from .modules import PYTORCH_ENCODING, empty, fill
from .spies import spy_on_head


@pytest.mark.parametrize("lateral", [False, True], ids=["plain", "lateral"])
def test_head_matches(lateral, check):
    case = load_case("enc_head_lateral" if lateral else "enc_head_plain")
    head = empty(
        EncodingHead,
        (256, 512, 1024, 2048),
        512,
        13,
        lateral=lateral,
        num_codes=32,
        se_loss=True,
        dropout=0.1,
    )
    fill(head, case.weights(), PYTORCH_ENCODING)
    head.eval()
    c2, c3, c4 = (nhwc(case.input(name)) for name in ("c2", "c3", "c4"))
    graphdef, state = nnx.split(head)

    @jax.jit
    def apply(state, stages):
        head = nnx.merge(graphdef, state)
        log = spy_on_head(head)
        logits, se_logits = head([stages[0], *stages])  # stage 1 is unused
        return logits, se_logits, log

    logits, se_logits, log = apply(state, (c2, c3, c4))
    check(case, "logits", nchw(logits))
    check(case, "se_logits", se_logits)
    check(case, "conv5_channels_0_to_504_step_8", nchw(log["reduce"])[:, ::8])
    if lateral:
        check(case, "fused_channels_0_to_504_step_8", nchw(log["fuse"])[:, ::8])
    check(case, "encoded", log["encoded"])
    check(case, "gamma", jax.nn.sigmoid(log["gate"]))
