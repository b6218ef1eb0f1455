"""The prediction functions equal the model in eval mode, at every image size."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from encnet_jax.errors import UserError
from encnet_jax.inference.folding import InferenceModel
from encnet_jax.inference.predict_fn import (
    make_label_fn,
    make_predict_fn,
    make_probability_fn,
    resized_shape,
    whole_image_logits,
)
from encnet_jax.inference.sliding_window import make_score_fn
from encnet_jax.inference.tta import MmsegProtocol
from encnet_jax.models import create_model
from encnet_jax.models.segmentation import SegmentationModel, SegmentationOutput
from encnet_jax.ops.normalize import normalize
from encnet_jax.ops.resize import resize_bilinear
from encnet_jax.run.sharding import create_mesh
from encnet_jax.run.state import split_model
from tests.random_module import random_module

NORMALIZATION = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)


def small_model(name="encnet"):
    model = random_module(
        create_model,
        name,
        num_classes=3,
        backbone="tiny",
        stem="plain",
        width=2,
        head_channels=4,
        num_codes=2,
        aux_head=False,
        dropout=0.5,
    )
    # Statistics of no batch.
    model.head.reduce.norm.mean[...] += 0.1
    return model


class Network(SegmentationModel):
    """A network of a function, by default with the images as logits."""

    def __init__(self, function=SegmentationOutput, align_corners=True):
        self.forward_low_res, self.align_corners = function, align_corners


def images_of(*size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def test_normalize_gives_hand_computed_values():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    actual = normalize(jnp.asarray(images), (0.5, 0.1, 0.25), (0.5, 0.2, 0.25))
    np.testing.assert_allclose(actual.ravel(), [-1, 0.5, 3], atol=1e-6)


@pytest.mark.parametrize(
    "size, base_size, expected",
    [
        ((360, 480), 0, (360, 480)),
        ((360, 480), 240, (180, 240)),
        ((480, 361), 240, (240, 181)),
        ((5, 7), 14, (10, 14)),
        ((100, 1), 10, (10, 1)),
        ((1, 1), 10, (10, 10)),
    ],
)
def test_resized_shape_has_the_requested_long_side(size, base_size, expected):
    assert resized_shape(size, base_size) == expected
    assert resized_shape(size, np.uint16(base_size)) == expected


@pytest.mark.parametrize("base_size", [-1, 0.0, 0.5, 520.0, "520", None])
def test_long_side_is_an_integer_of_at_least_0(base_size):
    message = f"base_size={base_size!r}: must be an integer of at least 0"
    with pytest.raises(UserError, match=re.escape(message)):
        resized_shape((480, 640), base_size)


@pytest.fixture(scope="module")
def predict():
    """Returns a model in training mode, a copy's results in eval mode, and more."""
    model = small_model()
    images = images_of(2, 33, 47)
    function = make_predict_fn(model)
    was_training = not model.head.reduce.norm.use_running_average
    reference = small_model()
    reference.eval()
    inputs = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    apply = nnx.jit(lambda model, inputs: model(inputs).logits)
    logits = np.asarray(apply(reference, jnp.asarray(inputs, jnp.float32)))
    return model, was_training, function, images, logits


def test_predict_fn_equals_the_model_in_eval_mode(predict):
    _, _, function, images, logits = predict
    labels = function(images)
    assert labels.shape == (2, 33, 47) and labels.dtype == jnp.int32
    ordered = np.sort(logits, -1)
    clear = ordered[..., -1] - ordered[..., -2] > 1e-4
    assert clear.mean() > 0.99 and len(np.unique(logits.argmax(-1))) > 1
    np.testing.assert_array_equal(labels[clear], logits.argmax(-1)[clear])


def test_folded_model_has_no_batch_norm_and_no_training_heads():
    model = random_module(
        create_model,
        "encnet",
        num_classes=3,
        backbone="tiny",
        width=2,
        se_stages=(3, 4),
    )
    _, *trained = split_model(model)
    folded = InferenceModel(model)
    arrays = folded.arrays(*trained)
    assert model.aux_head is not None and model.head.reduce.norm is not None
    assert jax.tree.map(np.shape, arrays) == jax.tree.map(np.shape, folded.shapes())
    # Host arrays: nothing was compiled or moved to a device.
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(arrays))
    names = {str(path[0]) for path, _ in jax.tree.flatten_with_path(arrays[0])[0]}
    assert names == {"['backbone']", "['head']"}
    # Only the norm over the codewords is left, which follows no convolution.
    assert len(jax.tree.leaves(arrays[1])) == 2


def test_predict_fn_copies_the_weights_and_does_not_modify_the_model(predict):
    model, was_training, function, images, _ = predict
    assert was_training
    before = function(images)
    kernel = model.head.classifier.conv.kernel
    old = kernel[...]
    kernel[...] = -old
    np.testing.assert_array_equal(function(images), before)
    kernel[...] = old


def test_labels_do_not_depend_on_the_batch(predict):
    _, _, function, images, _ = predict
    agreeing = function(images[:1]) == function(images)[:1]
    assert agreeing.mean() > 0.99


@pytest.mark.parametrize("size", [(1, 1), (7, 200), (65, 33), (97, 1)])
@pytest.mark.parametrize("base_size", [0, 40])
def test_any_size_gives_labels_of_that_size(size, base_size):
    function = make_predict_fn(small_model("fcn"), base_size=base_size)
    labels = jax.eval_shape(function, jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8))
    assert labels.shape == (1, *size)


def test_base_size_sets_the_size_in_the_network_not_of_the_logits():
    seen = []

    def network(images):
        seen.append(images)
        odds = jnp.array([[1.0, 3.0, 1 / 3]])
        return SegmentationOutput(images, se_logits=jnp.log(odds))

    model = Network(network)
    images = np.zeros((1, 20, 40, 3), np.uint8)
    images[:, :, 20:] = 255
    logits, presence = whole_image_logits(model, images, **NORMALIZATION, base_size=10)
    assert seen[0].shape == (1, 5, 10, 3) and logits.shape == (1, 20, 40, 3)
    # Left and right halves of black and white, resized twice.
    expected = [(value - IMAGENET_MEAN[0]) / IMAGENET_STD[0] for value in (0, 1)]
    np.testing.assert_allclose(logits[0, :, [0, -1], 0].T, [expected] * 20, rtol=1e-5)
    np.testing.assert_allclose(presence, [[0.5, 0.75, 0.25]], rtol=1e-5)


def test_model_without_se_branch_gives_no_presence():
    _, presence = whole_image_logits(
        Network(), np.zeros((1, 2, 2, 3), np.uint8), **NORMALIZATION
    )
    assert presence is None


@pytest.mark.parametrize("align_corners", [False, True])
def test_image_and_logits_are_resized_by_the_given_convention(align_corners):
    image = np.random.default_rng(0).integers(0, 256, (1, 6, 9, 3), np.uint8)
    mean, std = (0.0, 0.0, 0.0), (1 / 255,) * 3
    logits, _ = whole_image_logits(
        Network(), image, mean=mean, std=std, base_size=18, align_corners=align_corners
    )
    options = {"align_corners": align_corners}
    larger = resize_bilinear(image.astype(np.float32), (12, 18), **options)
    expected = resize_bilinear(larger, (6, 9), **options)
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    # Corner pixels keep their values only if corners are aligned.
    kept = np.allclose(logits[0, 0, 0], image[0, 0, 0], atol=1e-3)
    assert kept == align_corners


def columns_of_eight(images):
    """Returns logits by which feature i of 8 columns is of class i."""
    b, h, w, _ = images.shape
    count = -(-w // 8)
    logits = jnp.broadcast_to(10 * jnp.eye(count), (b, -(-h // 8), count, count))
    return SegmentationOutput(logits)


class NetworkDef(NamedTuple):
    """A definition of a network without arrays."""

    network: Network

    def merge(self, params, batch_stats):
        return self.network


# Of 20 pixels, the number of features and the widths of the first three.
@pytest.mark.parametrize(
    "divisor, align_corners, count, widths",
    [
        (8, False, 3, [8, 8, 4]),
        (1, False, 3, [7, 6, 7]),  # a third each, squeezed from 24 pixels
        (8, True, 4, [5, 8, 7]),  # on 0, 8 and 16; of equal ones the first
        (1, True, 3, [5, 10, 5]),  # on 0, 9.5 and 19
    ],
)
def test_padding_keeps_features_at_their_pixels(divisor, align_corners, count, widths):
    network = Network(columns_of_eight, align_corners)
    if divisor > 1:
        network.size_divisor, network.size_remainder = divisor, int(align_corners)
    images = np.zeros((1, 20, 20, 3), np.uint8)
    expected = np.repeat([0, 1, 2], widths)
    labels = make_label_fn(NetworkDef(network))({}, {}, images).labels
    np.testing.assert_array_equal(labels[0, 0], expected)
    np.testing.assert_array_equal(labels[0, :, 0], 0)
    for values in (
        make_probability_fn(NetworkDef(network))({}, {}, images),
        whole_image_logits(network, images, **NORMALIZATION)[0],
    ):
        assert values.shape == (1, 20, 20, count)
        np.testing.assert_array_equal(values[0, 0].argmax(-1), expected)


@pytest.mark.parametrize("divisor, widths", [(8, [8, 8, 4]), (1, [7, 6, 7])])
def test_windows_are_padded_likewise(divisor, widths):
    network = Network(columns_of_eight, align_corners=False)
    network.size_divisor = divisor
    protocol = MmsegProtocol(
        base_size=0,
        short_size=0,
        crop_size=0,  # the whole image
        scales=(1.0,),
        flip=False,
        stride=0,
        align_corners=False,
        **NORMALIZATION,
    )
    score_fn = make_score_fn(NetworkDef(network), 3, protocol, create_mesh(1))
    image = np.zeros((20, 20, 3), np.uint8)
    (result,) = score_fn({}, {}, [(0, image)], 1)
    labels = result.score_map.scores().argmax(-1)
    np.testing.assert_array_equal(labels[0], np.repeat([0, 1, 2], widths))
