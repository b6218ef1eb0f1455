"""Distribution of the initial values of every array of every network.

Expected are those of PyTorch-Encoding: He's normal distribution by fan-out in the
backbone; PyTorch's default, uniform in +-1/sqrt(fan-in), for all other weights and for
biases.
"""

import functools

import jax
import pytest
from flax import nnx

from encnet_jax.models import create_model
from encnet_jax.models.registry import CIFAR_MODELS, SEGMENTATION_MODELS
from encnet_jax.run.state import flatten_paths

BACKBONE = dict(backbone="tiny", stem_width=32, width=16)
# With every part that a network can have.
SETTINGS = {
    "encnet": dict(lateral=True, se_stages=(3, 4), num_codes=16, head_channels=32),
    "fcn": dict(head_channels=32),
    "pspnet": dict(head_channels=32),
    "deeplabv3": dict(head_channels=32),
    "resnet14": dict(width=16),
    "se_resnet14": dict(width=32),
    "encnet14": dict(width=16, num_codes=16),
}
NETWORKS = [(name, "pytorch_encoding") for name in SETTINGS] + [
    (name, "mmseg") for name in SEGMENTATION_MODELS
]


@functools.cache
def initial(name, head_init):
    """Returns the initial parameters and statistics by path."""
    settings = dict(SETTINGS[name])
    if name in SEGMENTATION_MODELS:
        settings |= BACKBONE | {"head_init": head_init}
    key = jax.random.key(1, impl="rbg")  # compiles faster than the default
    model = create_model(name, num_classes=50, rngs=nnx.Rngs(key), **settings)
    params, stats = (
        flatten_paths(nnx.to_pure_dict(nnx.state(model, kind)))
        for kind in (nnx.Param, nnx.BatchStat)
    )
    return jax.device_get(params), jax.device_get(stats)


def normal(deviation):
    return "normal", 0.0, deviation


def uniform(low, high):
    return "uniform", (low + high) / 2, (high - low) / 12**0.5


def expected(path, params, head_init):
    """Returns the distribution of an array: its kind, mean and standard deviation."""
    *_, layer, name = path.split(".")
    shape = params[path].shape
    if layer == "encoding":
        if name == "scale":
            return uniform(-1, 0)
        bound = (shape[0] * shape[1]) ** -0.5  # of codewords (k, c)
        return uniform(-bound, bound)
    if "norm" in layer:
        return normal(0) if name == "bias" else ("normal", 1.0, 0.0)
    kernel = params[path.removesuffix(name) + "kernel"]
    fan_in, fan_out = kernel[..., 0].size, kernel.size // kernel.shape[-2]
    convolves = kernel.ndim == 4
    if path.startswith("backbone."):
        assert convolves and name == "kernel"
        return normal((2 / fan_out) ** 0.5)
    if convolves and head_init == "mmseg":
        if ".classifier." not in path:
            return normal((2 / fan_out) ** 0.5)
        return normal(0.01 if name == "kernel" else 0)
    return uniform(-(fan_in**-0.5), fan_in**-0.5)


def check(values, kind, mean, deviation):
    """Checks mean, standard deviation, range and kurtosis by what chance allows."""
    if deviation == 0:
        assert (values == mean).all()
        return
    scores = (values.ravel() - mean) / deviation
    limit, spread = (6, 0.71) if kind == "normal" else (3**0.5 + 1e-6, 0.45)
    assert abs(scores).max() <= limit
    margin = 5 * scores.size**-0.5
    assert abs(scores.mean()) < margin
    assert abs(scores.std() - 1) < spread * margin + 1 / scores.size
    if scores.size > 2000:  # 3 of a normal, 1.8 of a uniform distribution
        kurtosis = (scores**4).mean()
        assert abs(kurtosis - (3 if kind == "normal" else 1.8)) < 0.6


@pytest.mark.parametrize(("name", "head_init"), NETWORKS)
def test_every_array_has_its_distribution(name, head_init):
    params, statistics = initial(name, head_init)
    for path, values in params.items():
        kind, mean, deviation = expected(path, params, head_init)
        try:
            check(values, kind, mean, deviation)
        except AssertionError as error:
            text = f"{path} {values.shape}: {kind}, mean {mean}, deviation {deviation}"
            raise AssertionError(text) from error
    for path, values in statistics.items():
        assert (values == (1 if path.endswith("var") else 0)).all(), path


def test_networks_have_the_layers_that_are_checked():
    assert {*SETTINGS} == {*SEGMENTATION_MODELS, *CIFAR_MODELS}
    found = {path for network in NETWORKS for path in initial(*network)[0]}
    parts = (
        "backbone.stages.1.0.shortcut.projection.conv.kernel",
        "head.context.encoding.codewords head.context.encoding.scale",
        "head.context.gate.kernel head.context.se_head.bias head.lateral.0.conv.kernel",
        "head.fuse.conv.kernel stage3_context.gate.bias stage3_reduce.conv.kernel",
        "head.pyramid.3.conv.kernel head.views.2.conv.kernel head.image.conv.kernel",
        "aux_head.classifier.conv.bias blocks.0.attention.encoding.scale",
        "blocks.0.attention.excite.bias blocks.2.shortcut.bias stem.bias linear.bias",
    )
    assert not {*" ".join(parts).split()} - found
