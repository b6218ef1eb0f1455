"""Bands: read from files and arrays, scaled by their ranges, measured, and shown."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.augment_device import resized_batch
from encnet_jax.data.augment_host import DeviceResizer, EncodedImage, HostResizer
from encnet_jax.data.augmentation import Augmentation, jitter, sample_crop
from encnet_jax.data.bands import (
    as_bands,
    declare_bands,
    decode_pixels,
    displayed,
    read_bands,
    scale_bands,
)
from encnet_jax.data.dataset_info import DatasetInfo, info_from_json, info_to_json
from encnet_jax.data.normalization import measure_bands
from encnet_jax.data.object_dataset import as_datasets
from encnet_jax.data.object_example import raw_bands
from encnet_jax.data.tiff_file import bands_size
from encnet_jax.errors import UserError
from encnet_jax.ops.normalize import normalize, to_byte_scale
from encnet_jax.predict.read_image import read_image
from tests.data.png_files import make_png

INFO = DatasetInfo("x", ("a", "b"), ((0, 0, 0), (255, 255, 255)), {})
RNG = np.random.default_rng(0)
FIVE = RNG.integers(0, 4096, (6, 7, 5), np.uint16)


def tiff(image, **options):
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, image, **options)
    return file.getvalue()


def test_scaled_by_hand():
    raw = np.float32([[[-1, 0], [0, 51], [1, 100], [np.nan, 200]]])
    scaled = scale_bands(raw, ((-1, 1), (0, 100)), "x")
    expected = [[[0, 0], [32768, 33423], [65535, 65535], [0, 65535]]]
    np.testing.assert_array_equal(scaled, expected)
    np.testing.assert_array_equal(
        scale_bands(np.uint8([[[0, 128, 255]]]), None, "x"), [[[0, 128 * 257, 65535]]]
    )
    np.testing.assert_array_equal(scale_bands(FIVE, None, "x"), FIVE)
    with pytest.raises(UserError, match="x: float32 of unknown range, -1 to 200"):
        scale_bands(raw, None, "x")


def test_layouts_of_tiff_files():
    planes = np.moveaxis(FIVE, -1, 0)
    for data in (
        tiff(FIVE, photometric="minisblack", planarconfig="contig"),
        tiff(planes, photometric="minisblack", planarconfig="separate"),
        tiff(planes, photometric="minisblack"),  # a page for each channel
        tiff(FIVE, photometric="minisblack", planarconfig="contig", compression="zlib"),
    ):
        np.testing.assert_array_equal(read_bands(data, "x.tif", 5), FIVE)
        with pytest.raises(UserError, match="x.tif: 5 channels; 4 are expected"):
            read_bands(data, "x.tif", 4)
    rows = tiff(FIVE)  # tifffile's default: a page for each row
    np.testing.assert_array_equal(read_bands(rows, "x.tif", 5), FIVE)
    with pytest.raises(UserError, match="x.tif: 5 channels; 4 are expected"):
        read_bands(rows, "x.tif", 4)
    with pytest.raises(UserError, match="x.tif: cannot be read as a TIFF"):
        read_bands(b"II*\0" + bytes(20), "x.tif", 4)


def test_channels_too_many_are_not_decoded(monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", None)
    for pages in (np.zeros((300, 4, 5), np.uint8), np.zeros((2, 3, 4, 5), np.uint8)):
        data = tiff(pages, photometric="minisblack", compression="zlib")
        with pytest.raises(UserError, match="x.tif: [52] channels; 7 are expected"):
            read_bands(data, "x.tif", 7)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_formats_of_pillow(mode):
    channels = {"L": 1, "I;16": 1}.get(mode, len(mode))
    dtype = np.uint16 if mode == "I;16" else np.uint8
    pixels = RNG.integers(0, 256, (3, 4, channels)).astype(dtype)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    np.testing.assert_array_equal(read_bands(file.getvalue(), "x", channels), pixels)


def test_arrays():
    np.testing.assert_array_equal(as_bands(np.moveaxis(FIVE, -1, 0), 5, "x"), FIVE)
    assert as_bands(FIVE[..., 0], 1, "x").shape == (6, 7, 1)
    for array in (FIVE[0, 0], FIVE.astype(bool), FIVE[:0]):
        with pytest.raises(UserError, match="x: "):
            as_bands(array, 5, "x")


def test_declared():
    assert declare_bands(INFO, 3) is INFO and not INFO.banded
    assert declare_bands(INFO, 3, (0, 4095)).value_range == ((0, 4095),) * 3
    gray = dataclasses.replace(INFO, value_range=(0, 4095))
    assert declare_bands(gray, 3) is gray  # scaled to 8 bits, as ever
    one = declare_bands(gray, 1)
    assert one.banded and one.value_range == ((0, 4095),) and one.channels == 1
    with pytest.raises(UserError, match="2 pairs; data.channels is 5"):
        declare_bands(INFO, 5, ((0, 1), (0, 1)))
    shown = dataclasses.replace(INFO, display_channels=(4, 2, 5))
    with pytest.raises(UserError, match="allowed are 0 to 4"):
        declare_bands(shown, 5)
    stored = info_from_json(info_to_json(one), None)
    assert stored.value_range == ((0, 4095),) and stored.banded


@pytest.mark.parametrize(
    "value_range",
    [
        (0, 0),
        (5, 1),
        (0, 1, 2),
        (0,),
        (0, float("nan")),
        (0, float("inf")),
        pytest.param((0, 10**400), id="too large"),
        (0, "9"),
        ((0, 1), (0, 1), (2, 2)),
        ((0, 1), (0, 1), (0, 1, 2)),
        np.array([5, 1]),
    ],
    ids=str,
)
def test_range_that_is_none_is_named(value_range):
    message = "^value_range=.*: must be .low, high., two finite numbers, low < high"
    examples = [(FIVE[..., :3], FIVE[..., 0] % 2)]
    for declare in (
        lambda: declare_bands(INFO, 3, value_range),
        lambda: as_datasets(examples, None, ("a", "b"), value_range=value_range),
    ):
        with pytest.raises(UserError, match=message) as caught:
            declare()
        assert "\n" not in str(caught.value)


def test_range_may_be_an_array():
    info = declare_bands(INFO, 2, np.array([[0, 1], [2, 5]]))
    assert info.value_range == ((0, 1), (2, 5))
    low, high = jnp.array([1.0, 3.0])
    assert declare_bands(INFO, 2, (low, high)).value_range == ((1, 3), (1, 3))


def test_size_is_read_from_the_header():
    planes = np.moveaxis(FIVE, -1, 0)
    for data in (
        tiff(FIVE),
        tiff(planes, photometric="minisblack"),
        tiff(planes, photometric="minisblack", planarconfig="separate"),
        tiff(FIVE, photometric="minisblack", planarconfig="contig"),
    ):
        assert bands_size(data, 5, "x.tif") == (6, 7)


@pytest.mark.filterwarnings("error")
def test_marks_of_missing_values_are_the_low_end_without_a_warning():
    lowest = np.finfo(np.float32).min
    raw = np.float32([[[lowest, 0.5, -lowest, np.inf, -np.inf, np.nan]]])
    found = scale_bands(raw, ((0, 1e-3),) * 6, "x")
    assert found[0, 0].tolist() == [0, 65535, 65535, 65535, 0, 0]


def test_measured_in_the_training_split():
    images = [np.full((4, 4, 2), (v, 7), np.uint16) for v in (0, 65535)]
    labels = np.zeros((4, 4), np.uint8)
    dataset, _ = as_datasets(
        [(i, labels + (n % 2)) for n, i in enumerate(images)],
        class_names=("a", "b"),
        channels=2,
    )
    info = measure_bands(dataset)
    assert info.value_range == ((0, 65535),) * 2
    np.testing.assert_allclose(info.mean, (0.5, 7 / 65535))
    np.testing.assert_allclose(info.std, (0.5, 1))  # a constant channel
    np.testing.assert_allclose(
        normalize(dataset[1].image, info.mean, info.std)[0, 0], (1, 0), atol=1e-6
    )


def test_shown():
    info = declare_bands(INFO, 5)
    info = dataclasses.replace(info, mean=(0.5,) * 5, std=(0.1, 0.1, 0.1, 0.1, 0.25))
    pixels = np.zeros((1, 1, 5), np.uint16)
    pixels[..., 0] = 0.6 * 65535
    pixels[..., 4] = 65535
    np.testing.assert_array_equal(displayed(pixels, info), [[[191, 0, 0]]])
    shown = dataclasses.replace(info, display_channels=(4, 0, 1))
    np.testing.assert_array_equal(displayed(pixels, shown), [[[255, 191, 0]]])
    gray = dataclasses.replace(declare_bands(INFO, 1), mean=(0.5,), std=(0.25,))
    np.testing.assert_array_equal(displayed(pixels[..., 4:], gray), [[[255] * 3]])


def test_crops_of_three_bands_are_those_of_rgb():
    rgb = RNG.integers(0, 256, (40, 50, 3), np.uint8)
    bands = scale_bands(rgb, None, "x")
    augmentation = Augmentation(base_size=50, crop_size=32, rotation=20.0)
    for seed in range(6):
        params = sample_crop(augmentation, (40, 50), np.random.default_rng(seed))
        crops = []
        for pixels in (rgb, bands):
            resizer = HostResizer(augmentation, 3, pixels.dtype)
            batch = resizer.empty(1)
            resizer.fill(batch, 0, EncodedImage.open(pixels), params)
            crops.append(to_byte_scale(batch["images"][0]))
        np.testing.assert_allclose(*crops, atol=1.5)  # bytes are rounded at each step


@pytest.mark.parametrize(
    "size, jitter, rotation", [(50, 0.0, 0), (50, 0.3, 0), (50, 0.0, 20), (400, 0.0, 0)]
)
def test_device_makes_the_crops_of_the_host(size, jitter, rotation):
    height = size * 4 // 5
    pixels = np.random.default_rng(0).integers(0, 65536, (height, size, 5), np.uint16)
    if size == 400:  # more than the buffer holds: reduced by the host, so smooth
        ramps = np.add.outer(np.arange(height), np.arange(size))[..., None]
        pixels = (ramps * np.arange(20, 70, 10)).astype(np.uint16)
    augmentation = Augmentation(
        50, 32, (0.3, 2.0), color_jitter=jitter, rotation=rotation
    )
    worst = []
    for seed in range(8):
        params = sample_crop(augmentation, (height, size), np.random.default_rng(seed))
        form, batches = (augmentation, 5, np.uint16), []
        for resizer in (HostResizer(*form), DeviceResizer(augmentation, 0, *form[1:])):
            batches.append(resizer.empty(1) | {"labels": np.zeros((1, 32, 32), "u1")})
            resizer.fill(batches[-1], 0, EncodedImage.open(pixels), params)
        found, _ = resized_batch(batches[1], augmentation)
        expected = to_byte_scale(batches[0]["images"])
        worst.append(np.abs(found - expected).max())
    # The host rounds to 16 bits, and jitter amplifies that. Pixels that it has reduced
    # differ more; a shift by half a pixel would be two levels of 255 or more.
    level = 255 / 65535
    assert max(worst) <= (0.5 if size == 400 else 3 * level if jitter else level)


def test_jitter_of_five_channels_keeps_saturation():
    pixels = RNG.random((4, 4, 5), np.float32) * 255
    draws = np.float32([0.75, 0.5, 0.9])
    np.testing.assert_allclose(jitter(pixels, draws, 0.4), pixels * 1.2, atol=1e-3)


def test_decoded_as_declared():
    info = declare_bands(INFO, 5, (0, 4095))
    data = tiff(FIVE, photometric="minisblack", planarconfig="contig")
    pixels = decode_pixels(data, "x.tif", info)
    np.testing.assert_array_equal(pixels, np.rint(FIVE * (65535 / 4095)))


def test_layout_of_a_file_is_known_where_lengths_are_equal():
    image = RNG.integers(0, 4096, (5, 5, 5), np.uint16)
    planes = np.moveaxis(image, -1, 0)
    for options in ({}, {"planarconfig": "separate"}):
        file = tiff(planes, photometric="minisblack", **options)
        np.testing.assert_array_equal(read_bands(file, "x.tif", 5), image)
    row = tiff(planes[:, :1], photometric="minisblack", planarconfig="separate")
    np.testing.assert_array_equal(read_bands(row, "x.tif", 5), image[:1])


def test_tiff_of_bands_is_named_where_rgb_is_expected():
    file = tiff(FIVE, photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match="x.tif: a TIFF of 5 channels, uint16; must be"):
        decode_pixels(file, "x.tif", INFO)


def test_values_that_pillow_changes():
    def pnm(kind, channels):
        values = (FIVE[..., :channels] % 4096).astype(">u2")
        return b"P%d 7 6 4095\n" % kind + values.tobytes()

    found = read_bands(pnm(5, 1), "x.pgm", 1)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, FIVE[..., :1])
    with pytest.raises(UserError, match="x.ppm: 16 bits per color.*convert it to TIFF"):
        read_bands(pnm(6, 3), "x.ppm", 3)


@pytest.mark.parametrize(("color_type", "channels"), [(4, 2), (2, 3), (6, 4)])
def test_png_of_16_bits_per_color_is_refused(color_type, channels):
    file = make_png(np.full((2, 2, channels), 40000), 16, color_type)
    with pytest.raises(UserError, match="x.png: 16 bits per color"):
        read_bands(file, "x.png", channels)


def test_pillow_images_are_read_as_their_files():
    info = declare_bands(INFO, 3, (0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(FIVE[..., :3].astype(np.uint8))
    for kind, options in (("PNG", {"exif": exif}), ("GIF", {})):
        file = io.BytesIO()
        image.save(file, kind, **options)
        expected = decode_pixels(file.getvalue(), "x", info)
        assert expected.shape == ((7, 6, 3) if options else (6, 7, 3))
        opened = Image.open(file)
        np.testing.assert_array_equal(read_image(opened, info), expected)
        raw = raw_bands(opened, 3, "x")
        np.testing.assert_array_equal(scale_bands(raw, info.value_range, "x"), expected)


def test_byte_order_of_arrays_plays_no_part():
    expected = scale_bands(FIVE, None, "x")
    np.testing.assert_array_equal(scale_bands(FIVE.astype(">u2"), None, "x"), expected)
