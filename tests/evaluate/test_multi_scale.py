"""Multi-scale scores of any function: what it is called with, and must return."""

import numpy as np
import pytest

from encnet_jax.evaluate import multi_scale_scores

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def scores(predict, **settings):
    """Returns the scores of an image of 20 x 24 pixels, in windows of 8 x 8."""
    image = np.random.default_rng(0).standard_normal((20, 24, 3), np.float32)
    others = dict(num_classes=4, base_size=24, crop_size=8, scales=(1.0,), flip=False)
    others |= dict(mean=MEAN, std=STD)
    return multi_scale_scores(predict, image, **{**others, **settings})


def constant(classes):
    """Returns a function whose logits are 0, 1, 2, ... in every pixel."""
    return lambda windows: np.zeros((*windows.shape[:3], classes)) + np.arange(classes)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("classes", [1, 3, 5])
def test_logits_of_other_classes_are_refused(classes, flip):
    np.testing.assert_allclose(
        scores(constant(4), flip=flip)[3, 5],
        np.exp(np.arange(4.0) * (1 + flip)),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match=f"num_classes=4: must be {classes}, that of"):
        scores(constant(classes), flip=flip)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("flip", [False, True])
def test_predict_is_called_with_one_shape(flip, batch_size):
    shapes = set()

    def predict(windows):
        shapes.add(windows.shape)
        return constant(4)(windows)

    scores(predict, flip=flip, batch_size=batch_size)
    count = max(batch_size // 2 * 2, 2) if flip else batch_size
    assert shapes == {(count, 8, 8, 3)}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("batch_size", [0, -3])
def test_batches_of_no_window_are_refused(batch_size, flip):
    message = f"batch_size={batch_size}: must be at least 1"
    with pytest.raises(ValueError, match=message):
        scores(constant(4), flip=flip, batch_size=batch_size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(scales=()), r"scales=\(\): must be one or more numbers above 0"),
        (dict(scales=(1, -0.5)), r"scales=\(1, -0.5\): must be one or more numbers"),
        (dict(base_size=0), "base_size=0: must be an integer of at least 1"),
        (dict(crop_size=8.5), "crop_size=8.5: must be an integer of at least 1"),
    ],
)
def test_sizes_and_scales_that_make_no_window_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        scores(constant(4), **settings)
    expected = scores(constant(4), scales=(0.5, 1))
    found = scores(constant(4), scales=np.array([0.5, 1]), base_size=np.int64(24))
    np.testing.assert_array_equal(found, expected)
