"""Multi-scale evaluation of PyTorch-Encoding with windows and mirror images."""

import jax
import numpy as np
import pytest

from encnet_jax.evaluate import multi_scale_scores

from .cases import load_case, nchw, nhwc


@pytest.fixture(scope="module")
def scored():
    """Returns a function of image, scales and flip, and the shapes it compiled."""
    case = load_case("multi_eval")
    kernel = case.arrays["conv_weight"].transpose(2, 3, 1, 0)
    shapes = []

    @jax.jit
    def predict(images):
        shapes.append(images.shape)
        numbers = ("NHWC", "HWIO", "NHWC")
        logits = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )
        return logits + case.arrays["conv_bias"]

    def scores(image, scales, flip):
        settings = case.facts["config"]
        result = multi_scale_scores(
            predict,
            nhwc(case.input(image))[0],
            num_classes=settings["nclass"],
            base_size=settings["base_size"],
            crop_size=settings["crop_size"],
            scales=scales,
            flip=flip,
            mean=settings["mean"],
            std=settings["std"],
        )
        return nchw(result[None])

    return case, scores, shapes


@pytest.mark.parametrize("image", ["a", "b"])
def test_scores_and_classes_match(scored, check, image):
    case, scores, shapes = scored
    result = scores(image, case.facts["config"]["scales"], True)
    check(case, f"scores_{image}", result)
    expected = case.arrays[f"argmax_{image}"]
    # Two classes that are equal to six digits may change places.
    assert (result.argmax(1) != expected).mean() < 1e-3
    assert set(shapes) == {(8, 48, 48, 3)}, "one shape for all sizes"


@pytest.mark.parametrize("image", ["a", "b"])
def test_scores_without_mirror_match(scored, check, image):
    case, scores, _ = scored
    result = scores(image, case.facts["config"]["scales"], False)
    check(case, f"scores_noflip_{image}", result)


@pytest.mark.parametrize("image", ["a", "b"])
@pytest.mark.parametrize("scale", [0.5, 1, 1.75])
def test_each_kind_of_scale_matches(scored, check, image, scale):
    case, scores, _ = scored
    name = f"scores_{image}_scale_{scale}_only"
    check(case, name, scores(image, [scale], True))
    assert np.isfinite(case.allowed(name))
