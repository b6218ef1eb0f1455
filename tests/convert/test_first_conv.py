"""The first convolution of RGB weights in models of other channels."""

import jax
import numpy as np
import pytest
from flax import nnx

from encnet_jax.convert.first_conv import FIRST_KERNELS, extend_kernel, fit_first_kernel
from encnet_jax.convert.load import load_torch_weights
from encnet_jax.errors import UserError
from tests.convert.test_load import ADE, TIMM, abstract_model, small_weights

KERNEL = np.arange(1 * 1 * 3 * 2, dtype=np.float32).reshape(1, 1, 3, 2)


def test_extended_by_hand():
    red, green, blue = KERNEL[0, 0]
    mean = (red + green + blue) / 3
    five = extend_kernel(KERNEL, 5)[0, 0]
    np.testing.assert_allclose(five, [red, green, blue, mean, mean])
    chosen = extend_kernel(KERNEL, 5, (3, 2, 1))[0, 0]
    np.testing.assert_allclose(chosen, [mean, blue, green, red, mean])
    np.testing.assert_array_equal(
        extend_kernel(KERNEL, 3, (2, 1, 0))[0, 0], [blue, green, red]
    )
    twice = extend_kernel(KERNEL, 4, (3, 1, 3))[0, 0]  # that of the image that is shown
    np.testing.assert_allclose(twice, [mean, green, mean, red + blue])
    for channels in (1, 2):  # gray images are answered alike
        fewer = extend_kernel(KERNEL, channels)
        np.testing.assert_allclose(fewer.sum(2), KERNEL.sum(2), rtol=1e-6)


# A plain stem, a deep one, and that of PyTorch-Encoding.
@pytest.mark.parametrize("case", ["torchvision_resnet18", TIMM, ADE])
def test_extended_and_reported(case):
    weights = small_weights(case)
    model = abstract_model(weights, in_channels=5)
    report = load_torch_weights(model, weights, head="skip")
    key = next(k for k, path in report.loaded.items() if path in FIRST_KERNELS)
    there = np.einsum("oihw->hwio", weights[key])
    kernel = np.asarray(model.backbone.stem[0].conv.kernel[...])
    np.testing.assert_array_equal(kernel[:, :, :3], there)
    for channel in (3, 4):
        np.testing.assert_allclose(kernel[:, :, channel], there.mean(2), atol=1e-6)
    assert "first convolution: 5 instead of 3 channels; 0, 1, 2 have" in str(report)
    fitting = abstract_model(weights)
    assert "first" not in str(load_torch_weights(fitting, weights, head="skip"))


@pytest.mark.parametrize("case", ["torchvision_resnet18", ADE])
def test_three_bands_get_the_kernels_of_their_colors(case):
    weights = small_weights(case)
    kernels = []
    for rgb_channels in ((), (0, 1, 2), (2, 1, 0), (1,)):
        model = abstract_model(weights)
        settings = dict(head="skip", rgb_channels=rgb_channels)
        report = str(load_torch_weights(model, weights, **settings))
        kernels.append(np.asarray(model.backbone.stem[0].conv.kernel[...]))
        text = "first convolution: 2, 1, 0 have the kernels of red, green and blue"
        assert (text in report) == (rgb_channels == (2, 1, 0))
        assert ("first convolution" in report) == (rgb_channels == (2, 1, 0))
    for kernel in (kernels[1], kernels[2][:, :, ::-1], kernels[3]):
        np.testing.assert_array_equal(kernel, kernels[0])


@pytest.mark.parametrize("channels", [(0, 1, 7), (3, 2, 1), (-1, 0, 1)])
def test_channel_that_there_is_not_changes_nothing(channels):
    weights = dict(reversed(small_weights("torchvision_resnet18").items()))
    model = abstract_model(weights)
    load_torch_weights(model, weights, head="skip")
    before = jax.tree.map(np.asarray, nnx.state(model))
    other = {key: array + 1 for key, array in weights.items()}
    message = rf"^rgb_channels=\[{channels[0]}, .*: must be from 0 to 2, of 3 channels"
    with pytest.raises(UserError, match=message):
        load_torch_weights(model, other, head="skip", rgb_channels=channels)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


@pytest.mark.parametrize("banded", [False, True])
def test_three_bands_of_another_run_stay_in_order(banded):
    # A run on RGB images has the kernels in their order, one on bands in that of these.
    path = FIRST_KERNELS[0]
    stored, wanted = {path: KERNEL}, {path: np.zeros_like(KERNEL)}
    text = fit_first_kernel(stored, wanted, (2, 1, 0), banded=banded)
    assert ("2, 1, 0 have" in text) != banded
    expected = KERNEL if banded else KERNEL[:, :, ::-1]
    np.testing.assert_array_equal(stored[path], expected)
    more = {path: KERNEL}, {path: np.zeros((1, 1, 4, 2))}
    assert "2, 1, 0 have" in fit_first_kernel(*more, (2, 1, 0), banded=banded)
