"""Whole networks of both originals in eval mode, with their weights imported."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from encnet_jax.convert.load import LoadReport, load_torch_weights
from encnet_jax.models import create_model

from .cases import load_case, nchw, nhwc
from .modules import MMSEG, PYTORCH_ENCODING, empty, our_name
from .spies import named_results, spy_on

_SETTINGS = {
    "encnet_resnet50s_ade20k": dict(num_classes=150),
    "encnet_resnet50s_pcontext": dict(num_classes=59, lateral=True),
    "mmseg_encnet_r50_d8": dict(num_classes=19, stem_width=32, align_corners=False),
}


@pytest.mark.parametrize("name", _SETTINGS)
def test_network_matches(name, check):
    case = load_case(name)
    model = empty(create_model, "encnet", **_SETTINGS[name])
    account = load_torch_weights(model, case.weights())
    _check_account(account, name)
    model.eval()
    found = _results(model, nhwc(case.input("image")))
    for entry in case.arrays:
        if entry == "main_argmax":
            _check_classes(case, found["main"])
        else:
            check(case, entry, _part(found, entry))


def _check_account(account: LoadReport, name: str) -> None:
    """Asserts that each entry went where the table of the tests says."""
    mmseg = name.startswith("mmseg")
    assert account.source == ("mmseg" if mmseg else "pytorch_encoding")
    assert not account.left_initialized
    assert all(k.endswith("num_batches_tracked") for k in account.dropped)
    rules = MMSEG if mmseg else PYTORCH_ENCODING
    for theirs, ours in account.loaded.items():
        assert ours == our_name(theirs, rules)


def _results(model: nnx.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    graphdef, state = nnx.split(model)

    @jax.jit
    def apply(state, images):
        model = nnx.merge(graphdef, state)
        log = spy_on(model)
        return named_results(model(images), log)

    results = apply(state, images)
    return {k: nchw(v) if v.ndim == 4 else np.asarray(v) for k, v in results.items()}


def _part(found: dict[str, np.ndarray], entry: str) -> np.ndarray:
    """Returns what a case stores by a name like `c3_channels_step_64`."""
    if entry in found:
        return found[entry]
    name, kind, *numbers = re.fullmatch(
        r"(\w+?)_(channels_step|channel_means|classes)_?(?:(\d+)(?:_to_(\d+))?)?", entry
    ).groups()
    if kind == "channel_means":
        return found[name].mean((2, 3), dtype=np.float64)
    if kind == "channels_step":
        return found[name][:, :: int(numbers[0])]
    return found[name][:, int(numbers[0]) : int(numbers[1]) + 1]


def _check_classes(case, logits: np.ndarray) -> None:
    """Asserts that every pixel has its class, but for those where two are level."""
    differs = logits.argmax(1) != case.arrays["main_argmax"]
    best = np.sort(logits, axis=1)[:, -2:]
    assert (np.diff(best, axis=1)[:, 0][differs] < 1e-3).all()
    # At most those that the case counts.
    assert (
        differs.sum() <= case.facts["argmax_margin"]["pixels_with_margin_below_0.001"]
    )
