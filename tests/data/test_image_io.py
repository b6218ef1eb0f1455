"""Tests of decoding: any image file becomes upright uint8 RGB."""

import io

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.image_io import decode_image
from encnet_jax.data.label_io import decode_labels
from encnet_jax.errors import UserError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), np.uint8)


def stored(image, kind="PNG", **settings):
    """Returns an image, or the array of one, as the bytes of a file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def decoded(*args, **settings):
    result = decode_image(stored(*args, **settings), "name")
    assert result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3
    return result


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_image_keeps_its_pixels(kind):
    np.testing.assert_array_equal(decoded(RGB, kind), RGB)


def test_jpeg_equals_pil():
    data = stored(RGB, "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data, "name"), expected)


@pytest.mark.parametrize(
    "orientation, upright",
    # EXIF 2.32, tag 274: what the stored rows and columns mean.
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: x[::-1].swapaxes(0, 1)),
        (7, lambda x: x[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda x: x[:, ::-1].swapaxes(0, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_undone(orientation, upright, kind):
    exif = Image.Exif()
    exif[274] = orientation
    np.testing.assert_array_equal(decoded(RGB, kind, exif=exif), upright(RGB))


def test_exif_orientation_of_a_jpeg_is_undone():
    exif = Image.Exif()
    exif[274] = 6
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 255  # Left half, which is on top when turned clockwise.
    result = decoded(image, "JPEG", exif=exif)
    assert result.shape == (32, 16, 3)
    assert result[:14].min() > 200 and result[18:].max() < 50


def test_gray_has_three_equal_channels():
    np.testing.assert_array_equal(decoded(RGB[..., 0]), np.stack([RGB[..., 0]] * 3, -1))


def test_black_and_white_is_0_and_255():
    bits = RGB[..., 0] > 127
    expected = np.repeat(bits[..., None] * 255, 3, -1)
    np.testing.assert_array_equal(decoded(Image.fromarray(bits)), expected)


def test_palette_becomes_its_colors():
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    palette = RNG.integers(0, 256, (6, 3), np.uint8)
    image.putpalette(palette.ravel().tolist())
    assert image.mode == "P"
    np.testing.assert_array_equal(decoded(image), palette.reshape(2, 3, 3))


def test_transparent_color_of_a_palette_becomes_white():
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    result = decoded(image, transparency=1)
    np.testing.assert_array_equal(result, [[[10, 20, 30], [255, 255, 255]]])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind):
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, :16, 1:3] = 255  # Magenta and yellow: red. The rest is paper.
    result = decoded(Image.frombytes("CMYK", (32, 16), inks.tobytes()), kind)
    assert np.abs(result[:, :14].astype(int) - [255, 0, 0]).max() < 8
    assert result[:, 18:].min() > 247


def test_transparency_is_blended_with_white():
    image = np.array(
        [[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]], np.uint8
    )
    # A fifth of (0, 100, 200) on white.
    expected = [[[10, 20, 30], [255, 255, 255], [204, 224, 244]]]
    np.testing.assert_allclose(decoded(image), expected, atol=1)


def test_gray_with_transparency_is_blended_with_white():
    image = Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8))
    assert image.mode == "LA"
    np.testing.assert_array_equal(decoded(image), [[[100] * 3, [255] * 3]])


def test_16_bit_gray_is_scaled_to_8_bits():
    values = np.array([[0, 257, 128 * 257, 65535, 257 + 100, 257 + 200]], np.uint16)
    expected = np.array([0, 1, 128, 255, 1, 2])[None, :, None].repeat(3, -1)
    np.testing.assert_array_equal(decoded(values), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])  # TIFF also warns.
@pytest.mark.parametrize("decode", [decode_image, decode_labels])
def test_truncated_file_is_named_at_any_length(kind, decode):
    data = stored(RNG.integers(0, 256, (20, 20), np.uint8), kind)
    for length in range(0, len(data) * 2 // 3, 7):
        with pytest.raises(UserError, match="photo: cannot be decoded") as raised:
            decode(data[:length], "photo")
        assert "\n" not in str(raised.value)


def test_image_of_too_many_pixels_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="photo: .*35 pixels"):
        decode_image(stored(RGB), "photo")


@pytest.mark.parametrize("mode", ["L", "P"])
def test_labels_are_gray_values_or_palette_indices(mode):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(RNG.permutation(256).astype(np.uint8).repeat(3).tolist())
    data = stored(image)
    assert Image.open(io.BytesIO(data)).mode == mode
    np.testing.assert_array_equal(decode_labels(data, "name"), labels)


def test_labels_of_few_classes_in_a_small_palette_keep_their_values():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([0, 0, 0, 9, 9, 9, 5, 5, 5])
    data = stored(image, bits=2)
    np.testing.assert_array_equal(decode_labels(data, "name"), [[0, 1, 2]])


def test_labels_of_one_bit_are_0_and_1():
    bits = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(decode_labels(stored(bits), "name"), [[1, 0]])


def test_labels_in_colors_are_named():
    with pytest.raises(UserError, match="mask: a label image of mode RGB; allowed are"):
        decode_labels(stored(RGB), "mask")
