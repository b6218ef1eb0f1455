"""Sliding windows against naive references, written out step by step for one image."""

import math
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.inference import sliding_window
from encnet_jax.inference.placement import resized
from encnet_jax.inference.score_map import ScoreMapPool, ScoreMapSharding
from encnet_jax.inference.sliding_window import (
    make_forward_fn,
    merge_hflip,
    run_sliding_window,
)
from encnet_jax.inference.tta import MmsegProtocol, PyTorchEncodingProtocol
from encnet_jax.models.segmentation import SegmentationModel, SegmentationOutput
from encnet_jax.ops.resize import interpolation_matrix
from encnet_jax.run.sharding import batch_sharded, mesh_of
from encnet_jax.run.state import split_model

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
KERNEL = np.random.default_rng(5).normal(0, 1, (5, 5, 3, 4)).astype(np.float32)


def network(images):
    """A 5x5 convolution; windows are padded with zeros."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        jnp.asarray(images), KERNEL, (1, 1), "SAME", dimension_numbers=layout
    )


def image_of(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def resize(image, size, align_corners=False):
    rows = interpolation_matrix(image.shape[0], size[0], align_corners)
    columns = interpolation_matrix(image.shape[1], size[1], align_corners)
    return np.einsum("ah,hwc,bw->abc", rows, image.astype(np.float64), columns)


def mmseg_by_hand(image, sizes, crop, stride, flip):
    """Softmax scores of views of the given sizes, averaged; crop 0: whole images."""
    total = np.zeros((*image.shape[:2], 4))
    for size in sizes:
        normalized = (np.rint(resize(image, size)) / 255 - MEAN) / STD
        for mirrored in (False, True)[: 1 + flip]:
            logits = np.zeros((*size, 4))
            count = np.zeros((*size, 1))
            view = normalized[:, ::-1] if mirrored else normalized
            height, width = (min(crop or s, s) for s in size)
            for i in range(max(math.ceil((size[0] - height) / stride), 0) + 1):
                for j in range(max(math.ceil((size[1] - width) / stride), 0) + 1):
                    bottom = min(i * stride + height, size[0])
                    right = min(j * stride + width, size[1])
                    box = np.s_[bottom - height : bottom, right - width : right]
                    window = np.asarray(view[box], np.float32)
                    logits[box] += np.asarray(network(window[None])[0])
                    count[box] += 1
            logits /= count
            logits = resize(logits[:, ::-1] if mirrored else logits, image.shape[:2])
            odds = np.exp(logits - logits.max(-1, keepdims=True))
            total += odds / odds.sum(-1, keepdims=True)
    return total


def scores_of(protocol, images, batch_size=3, devices=1):
    """Returns the scores of images and the shapes that were compiled."""
    mesh = mesh_of(jax.devices()[:devices])
    sharding = ScoreMapSharding(4, protocol.softmax, mesh)
    shapes = []

    @jax.jit
    def apply(windows):
        shapes.append(windows.shape)
        return *merge_hflip(network(windows), None, False, sharding), None

    finished = run_sliding_window(
        enumerate(images),
        lambda windows: apply(jax.device_put(windows, batch_sharded(mesh))),
        protocol,
        ScoreMapPool(sharding),
        batch_size,
    )
    return [image.score_map.scores() for image in finished], shapes


def mmseg(**settings):
    defaults = dict(
        base_size=0,
        short_size=0,
        crop_size=0,
        scales=(1.0,),
        flip=False,
        stride=0,
        align_corners=False,
        mean=MEAN,
        std=STD,
    )
    return MmsegProtocol(**{**defaults, **settings})


@pytest.mark.parametrize("protocol", ["pytorch_encoding", "mmseg"])
def test_threads_that_make_the_views_change_nothing(monkeypatch, protocol):
    images = [image_of(45, 61), image_of(61, 45), image_of(40, 40), image_of(45, 61)]
    settings = dict(crop_size=24, scales=(1.0, 1.49), flip=True)
    if protocol == "mmseg":
        protocol = mmseg(stride=16, **settings)
    else:
        protocol = PyTorchEncodingProtocol(
            base_size=48, stride=0, align_corners=True, mean=MEAN, std=STD, **settings
        )
    threads, views = [], type(protocol).views

    def spied(self, image):
        threads.append(threading.current_thread() is threading.main_thread())
        yield from views(self, image)

    monkeypatch.setattr(type(protocol), "views", spied)
    expected, _ = scores_of(protocol, images)
    assert threads == [True] * 4
    threads.clear()
    monkeypatch.setattr(sliding_window, "images_ahead", lambda mesh: 2)
    actual, _ = scores_of(protocol, images)
    assert threads.count(True) == 1 and threads.count(False) == 3
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_fault_in_a_thread_that_makes_views_ends_the_evaluation(monkeypatch):
    monkeypatch.setattr(sliding_window, "images_ahead", lambda mesh: 2)
    views = MmsegProtocol.views

    def faulty(protocol, image):
        if image.shape[0] == 30:
            assert threading.current_thread() is not threading.main_thread()
            raise ValueError("fault of a view")
        return views(protocol, image)

    monkeypatch.setattr(MmsegProtocol, "views", faulty)
    images = [image_of(45, 61), image_of(45, 61), image_of(30, 30)]
    with pytest.raises(ValueError, match="^fault of a view$"):
        scores_of(mmseg(crop_size=24), images)


def test_views_are_made_ahead_for_accelerators_alone():
    device = SimpleNamespace(platform="gpu")
    mesh = SimpleNamespace(devices=np.array([device], object))
    assert sliding_window.images_ahead(mesh) > 0
    assert sliding_window.images_ahead(mesh_of(jax.devices()[:1])) == 0


def test_slide_moves_the_last_windows_inwards_and_averages_softmax():
    image = image_of(45, 61)
    protocol = mmseg(crop_size=24, stride=16, scales=(1.0, 1.49), flip=True)
    (actual,), shapes = scores_of(protocol, [image])
    expected = mmseg_by_hand(image, [(45, 61), (67, 91)], 24, 16, True)
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    assert shapes == [(3, 24, 24, 3)]


def test_slide_takes_two_thirds_of_the_window_as_stride():
    image = image_of(40, 50)
    (actual,), _ = scores_of(mmseg(crop_size=32), [image])
    expected = mmseg_by_hand(image, [(40, 50)], 32, 21, False)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_windows_smaller_than_the_crop_are_not_padded_nor_mixed_with_others():
    images = [image_of(20, 50), image_of(40, 33), image_of(20, 50)]
    actual, shapes = scores_of(mmseg(crop_size=32, stride=20), images)
    for image, scores in zip(images, actual):
        expected = mmseg_by_hand(image, [image.shape[:2]], 32, 20, False)
        np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert sorted(shapes) == [(2, 20, 32, 3), (3, 32, 32, 3)]


def test_whole_images_pass_in_one_piece_within_both_bounds():
    image = image_of(30, 90)
    # At most 80 and 20 pixels: the short side binds, 90 * 20 / 30 = 60.
    protocol = mmseg(base_size=80, short_size=20, scales=(1.0, 2.0), flip=True)
    (actual,), shapes = scores_of(protocol, [image])
    expected = mmseg_by_hand(image, [(20, 60), (40, 120)], 0, 1, True)
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    assert shapes == [(2, 20, 60, 3), (2, 40, 120, 3)]


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_scores_are_the_same_bits_on_many_devices(devices):
    images = [image_of(45, 61), image_of(300, 270)]
    protocol = mmseg(crop_size=24, stride=16, flip=True)
    one, _ = scores_of(protocol, images, batch_size=2)
    many, _ = scores_of(protocol, images, batch_size=2 * devices, devices=devices)
    for a, b in zip(one, many):
        np.testing.assert_array_equal(a, b)


def test_scores_do_not_depend_on_the_images_in_the_same_batch():
    protocol = PyTorchEncodingProtocol(
        base_size=40,
        crop_size=24,
        scales=(0.5, 1.0, 1.75),
        flip=False,
        stride=0,
        align_corners=True,
        mean=MEAN,
        std=STD,
    )
    images = [image_of(h, w) for h, w in ((30, 50), (3, 2), (264, 31), (1, 1))]
    together, shapes = scores_of(protocol, images, batch_size=5)
    assert shapes == [(5, 24, 24, 3)]
    for image, scores in zip(images, together):
        (single,), _ = scores_of(protocol, [image], batch_size=1)
        np.testing.assert_allclose(scores, single, rtol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(7, 5), (1, 40), (23, 11), (60, 1)])
def test_resized_is_the_interpolation_written_as_matrices(size, align_corners):
    image = image_of(23, 11)
    actual = resized(image, size, align_corners)
    assert actual.dtype == np.float32
    expected = resize(image, size, align_corners)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_logits_of_windows_are_resized_in_float32():
    class HalfLogits(SegmentationModel):
        """Logits of 1 and a little, at stride 8; the differences need many digits."""

        def __init__(self):
            self.align_corners = True
            self.bias = nnx.Param(jnp.ones(()))

        def forward_low_res(self, images):
            logits = self.bias[...] + images[:, ::8, ::8] / 128
            return SegmentationOutput(logits.astype(jnp.bfloat16))

    model = HalfLogits()
    sharding = ScoreMapSharding(3, True, mesh_of(jax.devices()[:1]))
    model_def, params, batch_stats = split_model(model)
    windows = np.random.default_rng(0).normal(size=(2, 25, 25, 3)).astype(np.float32)
    forward = make_forward_fn(model_def, mmseg(crop_size=25), sharding)
    scores, *_ = forward(params, batch_stats)(windows)
    logits = np.asarray(model.forward_low_res(windows).logits, np.float64)
    expected = [resize(image, (25, 25), True) for image in logits]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_scores_of_huge_logits_are_finite():
    sharding = ScoreMapSharding(2, False, mesh_of(jax.devices()))
    logits = jnp.broadcast_to(jnp.array([60.0, 2.0]), (16, 1, 1, 2))
    scores, _ = jax.jit(lambda x: merge_hflip(x, None, True, sharding))(logits)
    # The mirror image doubles them: to 120, beyond the range of float32's powers.
    expected = [np.exp(80.0), np.exp(4.0)]
    np.testing.assert_allclose(scores[0, 0, 0, :2], expected, rtol=1e-5)
