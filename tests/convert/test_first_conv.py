"""The first convolution of RGB weights in models of other channels."""

import numpy as np
import pytest

from encnet_jax.convert.first_conv import FIRST_KERNEL, extend_kernel
from encnet_jax.convert.load import load_torch_weights
from tests.convert.test_load import ADE, TIMM, abstract_model, small_weights

KERNEL = np.arange(1 * 1 * 3 * 2, dtype=np.float32).reshape(1, 1, 3, 2)


def test_extended_by_hand():
    red, green, blue = KERNEL[0, 0]
    mean = (red + green + blue) / 3
    five = extend_kernel(KERNEL, 5)[0, 0]
    np.testing.assert_allclose(five, [red, green, blue, mean, mean])
    chosen = extend_kernel(KERNEL, 5, (3, 2, 1))[0, 0]
    np.testing.assert_allclose(chosen, [mean, blue, green, red, mean])
    for channels in (1, 2):  # gray images are answered alike
        fewer = extend_kernel(KERNEL, channels)
        np.testing.assert_allclose(fewer.sum(2), KERNEL.sum(2), rtol=1e-6)


# A plain stem, a deep one, and that of PyTorch-Encoding.
@pytest.mark.parametrize("case", ["torchvision_resnet18", TIMM, ADE])
def test_extended_and_reported(case):
    weights = small_weights(case)
    model = abstract_model(weights, in_channels=5)
    report = load_torch_weights(model, weights, head="skip")
    key = next(k for k, path in report.loaded.items() if path == FIRST_KERNEL)
    there = np.einsum("oihw->hwio", weights[key])
    kernel = np.asarray(model.backbone.stem[0].conv.kernel[...])
    np.testing.assert_array_equal(kernel[:, :, :3], there)
    for channel in (3, 4):
        np.testing.assert_allclose(kernel[:, :, channel], there.mean(2), atol=1e-6)
    assert "first convolution: 5 instead of 3 channels; 0, 1, 2 have" in str(report)
    fitting = abstract_model(weights)
    assert "first" not in str(load_torch_weights(fitting, weights, head="skip"))
