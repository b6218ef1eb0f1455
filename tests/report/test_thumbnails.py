"""Thumbnails of label maps: nearest pixels, and back from text."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from encnet_jax.report import thumbnails


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (400, 7), (360, 480), (129, 128)])
def test_labels_survive_as_text(shape):
    labels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = thumbnails.labels_from_text(thumbnails.labels_to_text(labels))
    assert max(found.shape) <= 128 and min(found.shape) >= 1
    if max(shape) <= 128:
        np.testing.assert_array_equal(found, labels)
    else:
        np.testing.assert_array_equal(found, thumbnails.shrink_labels(labels))


def test_a_pixel_is_the_one_at_its_center():
    labels = np.arange(9, dtype=np.uint8)[None].repeat(9, 0)
    assert thumbnails.resample_labels(labels, (1, 3)).tolist() == [[1, 4, 7]]
    assert thumbnails.resample_labels(labels[:, :2], (1, 4)).tolist() == [[0, 0, 1, 1]]


def test_damaged_text_is_an_error():
    for text in ("", "?", base64.b64encode(b"no image").decode()):
        with pytest.raises((ValueError, OSError)):
            thumbnails.labels_from_text(text)


def test_colors_and_errors():
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    colors = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    image = np.asarray(opened(thumbnails.labels_uri(labels, colors)).convert("RGB"))
    assert image.tolist() == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [0, 0, 0]]]
    predictions = np.array([[0, 0], [2, 2]], np.uint8)
    uri = thumbnails.errors_uri(labels, predictions)
    right, wrong, unlabeled = (list(color) for color in thumbnails.ERROR_COLORS)
    found = np.asarray(opened(uri).convert("RGB")).tolist()
    assert found == [[right, wrong], [right, unlabeled]]


def test_images_keep_their_shape():
    image = np.zeros((300, 100, 3), np.uint8)
    assert opened(thumbnails.image_uri(image, 150)).size == (50, 150)
    assert opened(thumbnails.image_uri(image[:9, :1], 150)).size == (1, 9)
