"""Tests of decoding: any image file becomes upright uint8 RGB."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, features

from encnet_jax.data.image_io import (
    decode_image,
    ensure_rgb_bytes,
    image_size,
    set_max_image_pixels,
    to_rgb_array,
)
from encnet_jax.data.label_io import decode_labels
from encnet_jax.errors import UserError
from tests.data.png_files import GRAY, chunk, make_png
from tests.data.png_files import RGB as PNG_RGB

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


@pytest.mark.parametrize(
    "depth, values, gray", [(2, [1, 2], 170), (4, [1, 2], 34), (16, [0, 32896], 128)]
)
def test_transparent_gray_is_told_in_units_of_the_file(depth, values, gray):
    key = chunk(b"tRNS", struct.pack(">H", values[0]))
    result = decode_image(make_png([values], depth, GRAY, key), "name")
    np.testing.assert_array_equal(result, [[[255] * 3, [gray] * 3]])


def test_transparent_color_of_16_bits_is_refused():
    key = chunk(b"tRNS", struct.pack(">3H", 256, 256, 256))
    data = make_png([[[256] * 3, [65535] * 3]], 16, PNG_RGB, key)
    with pytest.raises(UserError, match="^name: 16 bits per color, one of .* transp"):
        decode_image(data, "name")


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
    multiplied = Image.fromarray(np.array([[[100, 255], [0, 0]]], np.uint8)).convert(
        "La"
    )
    found = to_rgb_array(multiplied)
    np.testing.assert_array_equal(found, [[[100] * 3, [255] * 3]])


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


RANGE = (100, 4195)


@pytest.mark.parametrize(
    "kind, dtype", [("PNG", "u2"), ("TIFF", "u2"), ("TIFF", "i4"), ("TIFF", "f4")]
)
def test_value_range_is_scaled_to_8_bits_and_clipped(kind, dtype):
    values = np.array([[100, 4195, 2147, 1124, 0, 5000]]).astype(dtype)
    data = stored(values, kind)
    # 819 is a fifth of the range of 4095.
    result = decode_image(stored(values - values + 919, kind), "name", RANGE)
    assert (result == 51).all()
    result = decode_image(data, "name", RANGE)
    np.testing.assert_array_equal(result[0, :, 0], [0, 255, 127, 64, 0, 255])
    np.testing.assert_array_equal(result, result[..., :1].repeat(3, -1))
    again = decode_image(ensure_rgb_bytes(data, "name", RANGE), "name")
    np.testing.assert_array_equal(again, result)


def test_floats_from_0_to_1_and_missing_values():
    values = np.array([[0, 0.2, 1, np.nan, np.inf, -np.inf]], np.float32)
    result = decode_image(stored(values, "TIFF"), "name", (0, 1))
    assert result[0, :, 0].tolist() == [0, 51, 255, 0, 255, 0]
    # A range below 0, as of signed values.
    result = decode_image(stored(values[:, :3], "TIFF"), "name", (-1, 1))
    assert result[0, :, 0].tolist() == [128, 153, 255]


@pytest.mark.parametrize(
    "values, kind, message",
    [
        (np.array([[0, 0.5]], np.float32), "TIFF", "floats of unknown range"),
        (np.array([[0, 200]], np.float32), "TIFF", "floats of unknown range"),
        (np.array([[0, 65535]], np.int32), "TIFF", "32-bit or signed integers"),
        (np.array([[0, 4095]], np.uint16), "PNG", "16-bit values .* none above 4095"),
        (np.array([[9, 16383]], np.uint16), "TIFF", "16-bit .* none above 16383"),
    ],
)
@pytest.mark.parametrize("read", [decode_image, ensure_rgb_bytes])
def test_values_of_unknown_range_are_named_with_the_remedy(values, kind, message, read):
    with pytest.raises(UserError, match=f"photo: {message}.*value_range.*8 bits") as e:
        read(stored(values, kind), "photo")
    assert "\n" not in str(e.value)


def test_dark_16_bit_images_of_given_range_and_black_ones_are_read():
    dark = np.array([[0, 10 * 257, 20 * 257]], np.uint16)
    result = decode_image(stored(dark), "name", (0, 65535))
    assert result[0, :, 0].tolist() == [0, 10, 20]
    assert decode_image(stored(dark * 0), "name").max() == 0


def test_8_bit_images_ignore_the_value_range():
    np.testing.assert_array_equal(decode_image(stored(RGB), "name", RANGE), RGB)
    data = stored(RGB)
    assert ensure_rgb_bytes(data, "name", RANGE) is data


def test_pgm_files_declare_their_range():
    data = b"P5 3 1 4095\n" + np.array([0, 819, 4095], ">u2").tobytes()
    assert decode_image(data, "name")[0, :, 0].tolist() == [0, 51, 255]
    assert decode_image(data, "name", (0, 1638))[0, :, 0].tolist() == [0, 128, 255]
    assert decode_image(b"P2 2 1 4095\n819 4095", "name")[0, :, 0].tolist() == [51, 255]
    assert decode_image(b"P1 2 1\n0 1", "name")[0, :, 0].tolist() == [255, 0]
    full = b"P5 3 1 65535\n" + np.array([0, 13107, 65535], ">u2").tobytes()
    assert decode_image(full, "name")[0, :, 0].tolist() == [0, 51, 255]


def test_color_of_16_bits_is_read_at_full_range_only():
    values = RGB.astype(int) * 257
    data = make_png(values, 16, PNG_RGB)
    np.testing.assert_array_equal(decode_image(data, "name"), RGB)
    again = decode_image(ensure_rgb_bytes(data, "name"), "name")
    np.testing.assert_array_equal(again, RGB)
    np.testing.assert_array_equal(decode_image(data, "name", (0, 65535)), RGB)
    with pytest.raises(UserError, match="photo: 16 bits per color.*does not apply"):
        decode_image(data, "photo", (0, 4095))
    twelve = make_png(values // 16, 16, PNG_RGB)
    for read in (decode_image, ensure_rgb_bytes):
        with pytest.raises(UserError, match="photo: 16 bits per color .* to 8 bits"):
            read(twelve, "photo")


def test_more_pixels_are_allowed_by_the_setting_without_a_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = stored(RGB)  # 35 pixels; Pillow warns from 11, and refuses from 21
    with pytest.raises(UserError, match="photo: .*35 pixels") as raised:
        decode_image(data, "photo")
    assert "data.max_image_pixels (--max_image_pixels)" in str(raised.value)
    set_max_image_pixels(34)
    with pytest.raises(UserError, match="photo: .*35 pixels.* limit of 34"):
        ensure_rgb_bytes(data, "photo")
    set_max_image_pixels(35)
    with warnings.catch_warnings(record=True) as caught:
        np.testing.assert_array_equal(decode_image(data, "photo"), RGB)
        Image.open(io.BytesIO(data)).crop((0, 0, 7, 5))
    assert not caught
    set_max_image_pixels(0)
    np.testing.assert_array_equal(decode_image(data, "photo"), RGB)


def tiff(values, *, photometric=1):
    """Returns a TIFF file of one row of unsigned integers, as Pillow writes none."""
    bits = 8 * values.dtype.itemsize
    data = values.astype(f"<u{values.dtype.itemsize}").tobytes()
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8}
    tags |= {277: 1, 278: 1, 279: len(data), 339: 1}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in tags.items())
    directory = struct.pack("<H", len(tags)) + fields + struct.pack("<I", 0)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def test_32_bit_values_above_the_signed_range_are_bright():
    image = decode_image(tiff(np.array([0, 2**31, 2**32 - 1], "u4")), "a", (0, 2**32))
    assert image[0, :, 0].tolist() == [0, 128, 255]


def test_deep_images_with_0_as_white_are_named():
    data = tiff(np.array([0, 40000], "u2"), photometric=0)
    with pytest.raises(UserError, match="a: more than 8 bits with 0 as white"):
        decode_image(data, "a")


def pages_of(*shapes, dtype=np.uint8, last=None):
    """Returns a TIFF with a page per shape; `last` are settings of the last one."""
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for index, shape in enumerate(shapes):
            settings = dict(photometric="rgb" if len(shape) == 3 else "minisblack")
            settings |= (last or {}) if index == len(shapes) - 1 else {}
            masks = settings.get("subfiletype") == 4
            writer.write(np.ones(shape, bool if masks else dtype), **settings)
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("decode", [decode_image, ensure_rgb_bytes])
def test_channels_in_pages_of_their_own_are_named(decode, dtype):
    data = pages_of(*3 * [(5, 7)], (2, 3), (5, 7), dtype=dtype)
    with pytest.raises(UserError) as caught:
        decode(data, "a.tif", (0, 255))
    assert str(caught.value) == (
        "a.tif: a TIFF of 4 gray pages of 7x5 pixels; must be one page, unless the "
        "training sets data.channels"
    )


@pytest.mark.parametrize(
    "shapes, last",
    [
        ([(8, 6), (4, 3), (2, 2)], {}),  # a pyramid
        ([(8, 6), (8, 6)], dict(subfiletype=1)),  # that of another page
        ([(8, 6), (8, 6)], dict(subfiletype=4)),  # a mask
        ([(8, 6), (8, 6, 3)], {}),
        ([(8, 6, 3), (8, 6, 3)], {}),
    ],
)
def test_first_page_is_the_image(shapes, last):
    assert decode_image(pages_of(*shapes, last=last), "name").shape == (8, 6, 3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_beyond_the_first_page_plays_no_part():
    data = pages_of((80, 60), (80, 60))
    for end in range(len(data) // 2 + 8, len(data) // 2 + 200, 64):  # in its header
        assert decode_image(data[:end], "name").shape == (80, 60, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation_is_the_image(kind):
    frames = [np.full((8, 6), value, np.uint8) for value in (0, 255)]
    more = [Image.fromarray(frames[1])]
    result = decoded(frames[0], kind, save_all=True, append_images=more)
    np.testing.assert_array_equal(result, np.zeros((8, 6, 3)))


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 7 5\n%%EndComments\n"
    b"0 0 7 5 rectfill\nshowpage\n%%EOF\n"
)


@pytest.mark.parametrize(
    "data",
    [EPS, b"\0\0\1\xb3\0\x70\x05" + bytes(40), b"GRIB" + bytes(3) + b"\1" + bytes(40)],
    ids=["EPS", "MPEG", "GRIB"],
)
def test_content_of_no_raster_format_is_refused_whatever_the_name(data, monkeypatch):
    assert Image.open(io.BytesIO(data)).size  # Pillow itself takes it
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)
    for read in (decode_image, image_size, decode_labels, ensure_rgb_bytes):
        with pytest.raises(UserError, match="^e.png: cannot .*: unknown format$"):
            read(data, "e.png")


@pytest.mark.parametrize(
    "raised, message",
    [
        (RuntimeError("Failed to decode frame"), "Failed to decode frame"),
        (NotImplementedError("Unimplemented pixel format 7"), "Unimplemented pixel.*7"),
        (EOFError(), "EOFError"),
        (AttributeError("no\nattribute."), "no attribute"),
    ],
)
def test_whatever_pillow_raises_is_one_line(raised, message, monkeypatch):
    def load(image):
        raise raised

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.getexif", load)
    for read in (decode_image, decode_labels, ensure_rgb_bytes):
        with pytest.raises(UserError, match=f"^a: cannot .* image: {message}$"):
            read(stored(RGB), "a")


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "SPIDER"])
def test_damaged_files_are_one_line(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    good = np.frombuffer(stored(RGB[..., 0], kind), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = good.copy()
        places = rng.integers(0, min(len(data), 300), 4)
        data[places] = rng.integers(0, 256, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                decode_image(data.tobytes(), "a")
            except UserError as error:
                assert "\n" not in str(error)
