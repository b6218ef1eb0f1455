"""Files of which Pillow reads other values than they hold."""

import io

import numpy as np
import pytest
from PIL import Image, features

from encnet_jax.data.bands import read_bands
from encnet_jax.data.image_io import decode_image, to_rgb_array
from encnet_jax.data.label_io import decode_labels
from encnet_jax.data.object_dataset import as_datasets
from encnet_jax.data.object_example import label_array, raw_bands, rgb_pixels
from encnet_jax.errors import UserError
from tests.data.jpeg2000_files import make_jpeg2000
from tests.data.png_files import make_png

needs_jpeg2000 = pytest.mark.skipif(
    not features.check("jpg_2000"), reason="Pillow is built without JPEG 2000"
)
RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def opened(data):
    return Image.open(io.BytesIO(data))


@needs_jpeg2000
@pytest.mark.parametrize("codestream", [False, True])
@pytest.mark.parametrize("bits", [3, 7, 8, 10, 12, 15, 16])
def test_gray_jpeg2000_keeps_its_values(bits, codestream):
    values = (RAMP * ((1 << bits) - 1)).astype(np.uint16)
    data = make_jpeg2000(values, bits, codestream=codestream)
    for found in (read_bands(data, "x", 1), raw_bands(opened(data), 1, "x")):
        assert found.dtype == (np.uint8 if bits <= 8 else np.uint16)
        np.testing.assert_array_equal(found[..., 0], values)
    if bits > 8:  # the file declares the range, as PGM do
        expected = np.round(values * (255 / ((1 << bits) - 1)))
        for found in (
            decode_image(data, "x"),
            decode_image(data, "x", (0, 2**bits - 1)),
        ):
            np.testing.assert_array_equal(found[..., 0], expected)
    if bits not in (8, 16):
        with pytest.raises(
            UserError, match="^x: gray values that Pillow multiplies by"
        ):
            label_array(opened(data), "x")


@needs_jpeg2000
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_signed_jpeg2000_is_refused(bits, channels):
    values = (RAMP * 100).astype(int) - 50
    values = values if channels == 1 else np.dstack([values] * channels)
    data = make_jpeg2000(values, bits, signed=True)
    for read in (
        lambda: decode_image(data, "x"),
        lambda: decode_image(data, "x", (-50, 50)),
        lambda: read_bands(data, "x", channels),
        lambda: raw_bands(opened(data), channels, "x"),
        lambda: label_array(opened(data), "x"),
    ):
        with pytest.raises(UserError, match="^x: a JPEG 2000 of signed integers, "):
            read()


@needs_jpeg2000
@pytest.mark.parametrize("codestream", [False, True])
@pytest.mark.parametrize("bits", [9, 12, 16])
def test_jpeg2000_of_more_bits_per_color_is_refused(bits, codestream):
    values = np.dstack([(RAMP * 100).astype(int)] * 3) + 2 ** (bits - 1)
    data = make_jpeg2000(values, bits, codestream=codestream)
    assert opened(data).mode == "RGB"  # 8 bits of more
    for read in (
        lambda: decode_image(data, "x"),
        lambda: rgb_pixels(opened(data), "x"),
        lambda: read_bands(data, "x", 3),
        lambda: raw_bands(opened(data), 3, "x"),
    ):
        with pytest.raises(
            UserError, match="^x: a JPEG 2000 of more than 8 bits per c"
        ):
            read()


@needs_jpeg2000
def test_jpeg2000_of_9_bits_is_not_taken_for_8():
    values = (RAMP * 511).astype(int)
    data = make_jpeg2000(values, 9)
    image = opened(data)
    assert image.mode == "L"
    assert np.asarray(image)[-1, -1] == 0  # Pillow rounds white up to black
    for read in (lambda: decode_image(data, "x"), lambda: read_bands(data, "x", 1)):
        with pytest.raises(
            UserError, match="^x: a JPEG 2000 of more than 8 bits per c"
        ):
            read()
    found = read_bands(make_jpeg2000(values, 9, codestream=True), "x", 1)
    np.testing.assert_array_equal(found[..., 0], values)


@needs_jpeg2000
def test_dark_color_of_jpeg2000_that_others_have_loaded_is_refused():
    values = np.dstack([(RAMP * 20).astype(int)] * 3)
    image = opened(make_jpeg2000(values, 8))  # or the upper 8 of 16
    image.load()
    labels = np.arange(256).reshape(16, 16) % 2
    with pytest.raises(
        UserError, match="^dataset: 1 images loaded .* value above 20: "
    ):
        as_datasets([(image, labels)], None, ("a", "b"))


@needs_jpeg2000
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg2000_of_8_bits_is_read(channels):
    values = np.dstack([(RAMP * 255).astype(int)] * channels).squeeze()
    data = make_jpeg2000(values, 8)
    expected = np.broadcast_to(values.reshape(16, 16, -1), (16, 16, 3))
    np.testing.assert_array_equal(decode_image(data, "x"), expected)
    np.testing.assert_array_equal(rgb_pixels(opened(data), "x"), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_uncompressed_sgi_of_16_bits_is_as_png(mode):
    file = io.BytesIO()
    image = Image.fromarray((RAMP * 255).astype(np.uint8)).convert(mode)
    image.save(file, "SGI", bpc=2)
    data, channels = file.getvalue(), len(mode)
    with pytest.raises(UserError, match="^x: 16 bits per color, of which only the upp"):
        read_bands(data, "x", channels)
    with pytest.raises(UserError, match="^x: .*16 bits per color, which is not read"):
        decode_labels(data, "x")
    expected = np.asarray(image.convert("RGB"))  # as of full range
    np.testing.assert_array_equal(decode_image(data, "x"), expected)


def test_signed_8_bit_tiff_is_refused_unless_it_is_bands():
    tifffile = pytest.importorskip("tifffile")
    values = (RAMP * 255).astype(int) - 128
    file = io.BytesIO()
    tifffile.imwrite(file, values.astype(np.int8), photometric="minisblack")
    data = file.getvalue()
    for read in (
        lambda: decode_image(data, "x"),
        lambda: rgb_pixels(opened(data), "x"),
        lambda: raw_bands(opened(data), 1, "x"),
        lambda: decode_labels(data, "x"),
        lambda: label_array(opened(data), "x"),
    ):
        with pytest.raises(UserError, match="^x: a .*TIFF of signed 8-bit integers, "):
            read()
    np.testing.assert_array_equal(read_bands(data, "x", 1)[..., 0], values)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_white_of_gray_png_is_255_whatever_its_bits(bits):
    white = (1 << bits) - 1
    values = (RAMP * white).astype(np.uint8)
    data = make_png(values, bits)
    for found in (read_bands(data, "x", 1), raw_bands(opened(data), 1, "x")):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found[..., 0], values * (255 // white))


def pgm(bits):
    values = (RAMP * ((1 << bits) - 1)).astype(">u2")
    header = f"P5 {values.shape[1]} {values.shape[0]} {(1 << bits) - 1}\n"
    return header.encode() + values.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        make_png((RAMP * 15).astype(np.uint8), 4),
        pgm(12),
        pytest.param(None, marks=needs_jpeg2000),
    ],
    ids=["png of 4 bits", "pgm of 12", "jpeg 2000 of 12"],
)
def test_image_that_is_read_again_is_read_alike(data):
    data = data or make_jpeg2000((RAMP * 4095).astype(np.uint16), 12)
    image = opened(data)
    for read in (
        lambda image: raw_bands(image, 1, "x"),
        to_rgb_array,
        lambda image: to_rgb_array(image, (0, 4095)),
    ):
        expected = read(opened(data))
        for _ in range(2):
            np.testing.assert_array_equal(read(image), expected)


@needs_jpeg2000
@pytest.mark.parametrize("bits", [12, 15])
def test_dark_jpeg2000_needs_a_range(bits):
    limit = 1 << (bits - 2)  # a quarter
    dark = (RAMP * (limit - 1)).astype(np.uint16)
    message = f"x: {bits}-bit values of unknown range, none above {limit - 1}: give"
    with pytest.raises(UserError, match=message):
        decode_image(make_jpeg2000(dark, bits), "x")
    found = decode_image(make_jpeg2000(dark, bits), "x", (0, limit - 1))
    assert found.max() == 255
    assert decode_image(make_jpeg2000(dark + 1, bits), "x").max() in (63, 64)
