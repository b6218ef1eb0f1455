"""predict.py --slide: TIFF read and written in tiles, or one line."""

import copy
import dataclasses
import importlib.util
from collections import namedtuple

import jax
import numpy as np
import pytest
from PIL import Image

from encnet_jax import Segmenter
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.data.image_io import decode_image
from encnet_jax.data.result_file import is_result
from encnet_jax.errors import UserError
from encnet_jax.inference.sliding_window import make_score_fn
from encnet_jax.predict.slide import (
    LargeSegmenter,
    plan_large_predictions,
    write_large_predictions,
)
from encnet_jax.predict.tiff_image import open_tiff
from encnet_jax.run.sharding import mesh_of
from encnet_jax.visualize.overlay import label_image
from tests import small_workdir

tifffile = pytest.importorskip("tifffile")
RGB = np.random.default_rng(0).integers(0, 256, (150, 333, 3), np.uint8)
KINDS = ("labels", "overlay")
INFO = DatasetInfo(
    "mine",
    ("road", "car", "sky"),
    voc_colormap(3),
    {},
    mean=small_workdir.MEAN,
    std=small_workdir.STD,
    label_map={7: 0, 3: 1, 200: 2},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that is evaluated in windows of 64 pixels, at a long side of 333."""
    workdir = tmp_path_factory.mktemp("run")
    small_workdir.write_workdir(
        workdir,
        info=INFO,
        data=dict(base_size=333, crop_size=64),
        evaluation=dict(mode="slide"),
        **small_workdir.TINY,
    )
    return workdir


@pytest.fixture(scope="module")
def segmenter(run):
    return Segmenter.from_workdir(run)


def write(path, pixels=RGB, **settings):
    settings = {"photometric": "rgb", **settings}
    tifffile.imwrite(path, pixels, **settings)
    return path


@pytest.mark.parametrize("base_size", [-1, 0.5])
def test_long_side_is_an_integer_of_at_least_0(segmenter, base_size):
    with pytest.raises(UserError, match=f"base_size={base_size}: must be an integer"):
        LargeSegmenter(segmenter, base_size)


def predict(segmenter, paths, output, base_size=None, kinds=KINDS):
    plan = plan_large_predictions(paths, output, kinds)
    large = LargeSegmenter(segmenter, base_size)
    return write_large_predictions(large, plan, output, kinds)


def test_labels_are_those_of_the_image_in_memory(segmenter, tmp_path, capsys):
    settings = dict(tile=(64, 48), compression="zlib")
    image = write(tmp_path / "a.tif", resolution=(300, 300), **settings)
    assert predict(segmenter, [image], tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{image} -> {tmp_path / 'out' / 'a.tif'} (")

    expected = segmenter(image)
    assert len(np.unique(expected.labels)) > 1
    with Image.open(tmp_path / "out" / "a.tif") as written:
        assert written.mode == "P"
        stored = label_image(expected.labels, INFO)
        np.testing.assert_array_equal(np.asarray(written), np.asarray(stored))
        colors = np.asarray(written.convert("RGB"))
    np.testing.assert_array_equal(colors, np.asarray(stored.convert("RGB")))
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as file:
        assert file.pages.first.is_tiled and file.pages.first.compression == 8
    with Image.open(tmp_path / "out" / "a-overlay.png") as overlay:
        np.testing.assert_array_equal(overlay, np.asarray(expected.overlay()))


@pytest.mark.parametrize(
    "image",
    [
        RGB.astype(np.float32),
        RGB.astype(np.int64),
        RGB.astype(np.uint16),
        RGB[..., 0],
        RGB[..., :1],
        np.moveaxis(RGB, -1, 0),
        RGB[:0],
        [[1, 2], [3, 4]],
    ],
    ids=lambda x: f"{np.asarray(x).dtype}{np.shape(x)}",
)
def test_other_arrays_are_refused(segmenter, image):
    """Floating point would be taken for normalized, one channel for three."""
    with pytest.raises(TypeError, match=r"image: .* allowed is uint8 \(h, w, 3\)"):
        LargeSegmenter(segmenter)(image)


def test_size_may_be_that_of_the_image(segmenter, tmp_path, caplog):
    pixels = RGB.repeat(2, 0).repeat(2, 1)
    image = write(tmp_path / "a.tif", pixels)
    own, resized = tmp_path / "own", tmp_path / "resized"
    with caplog.at_level("INFO"):
        predict(segmenter, [image], resized, kinds=("labels",))
    assert "666 x 300 pixels, resized to 333 x 150; --base_size=0" in caplog.text
    predict(segmenter, [image], own, base_size=0, kinds=("labels",))
    protocol = segmenter.protocol.with_long_side(666)
    model, mesh = segmenter.model_def, mesh_of(jax.local_devices()[:1])
    scores_of = make_score_fn(model, 3, protocol, mesh)
    arrays = segmenter.params, segmenter.batch_stats
    (scores,) = scores_of(*arrays, [(0, pixels)], 1)
    expected = label_image(scores.score_map.labels().fetch(), INFO)
    np.testing.assert_array_equal(tifffile.imread(own / "a.tif"), np.asarray(expected))
    labels = np.asarray(label_image(segmenter(image).labels, INFO))
    np.testing.assert_array_equal(tifffile.imread(resized / "a.tif"), labels)


def test_first_of_several_scales_is_not_taken_for_the_size(segmenter, tmp_path, caplog):
    several = copy.copy(segmenter)
    scales = dict(scales=(0.5, 1.0))
    several.slide_protocol = dataclasses.replace(segmenter.slide_protocol, **scales)
    image = write(tmp_path / "a.tif", RGB.repeat(2, 0).repeat(2, 1))
    with caplog.at_level("INFO"):
        predict(several, [image], tmp_path / "own", base_size=0, kinds=("labels",))
    assert "resized" not in caplog.text


def test_run_evaluated_whole_has_windows_too(tmp_path):
    small_workdir.write_workdir(
        tmp_path, data=dict(base_size=333, crop_size=64), **small_workdir.TINY
    )
    whole = Segmenter.from_workdir(tmp_path)
    assert whole.protocol is None and whole.slide_protocol.crop_size == 64


FORMS = {
    "strips": dict(rowsperstrip=7, compression="zlib"),
    "one strip": {},
    "big-endian": dict(byteorder=">"),
    "planes": dict(planarconfig="separate", rowsperstrip=31),
    "planes in tiles": dict(planarconfig="separate", tile=(32, 32)),
    "predictor": dict(compression="zlib", predictor=True, tile=(64, 64)),
    "lzw": dict(compression="lzw", tile=(64, 64)),
    "bigtiff": dict(bigtiff=True, tile=(48, 32)),
}


@pytest.mark.parametrize("form", FORMS)
def test_parts_are_the_pixels(tmp_path, form):
    if form == "lzw":
        pytest.importorskip("imagecodecs")
    pixels = RGB
    settings = dict(FORMS[form])
    if "planarconfig" in settings:
        pixels = RGB.transpose(2, 0, 1)
    check_parts(write(tmp_path / "a.tiff", pixels, **settings), RGB)


def check_parts(path, expected, value_range=None):
    info = dataclasses.replace(INFO, value_range=value_range)
    with open_tiff(path, info) as image:
        assert image.shape == expected.shape
        for box in (np.s_[0:150, 0:333], np.s_[40:111, 63:65], np.s_[149:150, 300:333]):
            np.testing.assert_array_equal(image[box], expected[box])
        spread = np.ix_(np.arange(3, 150, 17), np.arange(0, 333, 50))
        np.testing.assert_array_equal(image[spread], expected[spread])


@pytest.mark.parametrize("kind", ["gray", "inverted", "palette", "rgba", "16 bits"])
def test_kinds_are_converted_as_elsewhere(tmp_path, kind):
    gray, path, value_range = RGB[..., 0], tmp_path / "a.tif", None
    if kind == "gray":
        write(path, gray, photometric="minisblack", tile=(64, 64))
    elif kind == "inverted":
        write(path, gray, photometric="miniswhite", tile=(64, 64))
    elif kind == "palette":
        colors = np.random.default_rng(1).integers(0, 256, (3, 256)) * 257
        write(path, gray, photometric="palette", colormap=colors.astype(np.uint16))
    elif kind == "rgba":
        pixels = np.dstack([RGB, gray])
        write(path, pixels, extrasamples="unassalpha", rowsperstrip=20)
    else:
        value_range = (1000, 40_000)
        write(path, gray.astype(np.uint16) * 200, photometric="minisblack")
    check_parts(
        path, decode_image(path.read_bytes(), "a.tif", value_range), value_range
    )


def broken(tmp_path, kind):
    path = tmp_path / "a.tif"
    if kind == "truncated":
        write(path, tile=(64, 64))
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "truncated strip":
        write(path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "damaged":
        write(path, tile=(64, 64), compression="zlib")
        with tifffile.TiffFile(path) as file:
            place = file.pages.first.dataoffsets[-1]
        data = bytearray(path.read_bytes())
        data[place : place + 40] = bytes(40)
        path.write_bytes(data)
    elif kind == "no parts":
        write(path, tile=(64, 64), compression="zlib")
        with tifffile.TiffFile(path, mode="r+b") as file:
            tags = file.pages.first.tags
            places = [tags[code].offset + 4 for code in (324, 325)]
        data = bytearray(path.read_bytes())
        for place in places:  # how many offsets and lengths of tiles there are
            data[place : place + 4] = bytes(4)
        path.write_bytes(data)
    elif kind == "text":
        path.write_text("no image")
    elif kind == "floats":
        write(path, RGB[..., 0].astype(np.float32), photometric="minisblack")
    elif kind == "five bands":
        write(path, np.dstack([RGB, RGB[..., :2]]), extrasamples=(0, 0))
    elif kind == "16 bits":
        write(path, RGB[..., 0].astype(np.uint16), photometric="minisblack")
    elif kind == "rotated":
        write(path, extratags=[(274, "H", 1, 6, True)])
    elif kind == "jpeg":
        path = tmp_path / "a.jpg"
        Image.fromarray(RGB).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "truncated: "),
        ("truncated strip", "truncated: "),
        ("damaged", "cannot be read as a TIFF: "),
        ("no parts", "cannot be read as a TIFF: "),
        ("text", "cannot be read as a TIFF: "),
        ("floats", "float32; allowed are 8 bits"),
        ("five bands", "5 samples of 8 bits, uint8; allowed are"),
        ("16 bits", "value_range"),
        ("rotated", "stored rotated or mirrored"),
        ("jpeg", "--slide reads TIFF"),
        ("missing", "cannot be read: No such file"),
    ],
)
def test_image_that_cannot_be_read_is_one_line(
    segmenter, tmp_path, capsys, kind, message
):
    path = broken(tmp_path, kind)
    good = write(tmp_path / "good.tif")
    output = tmp_path / "out"
    assert predict(segmenter, [path, good], output, kinds=("labels",)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and error.count("\n") == 1
    assert message in error
    assert [file.name for file in output.iterdir()] == ["good.tif"]


def test_only_own_results_are_replaced(segmenter, tmp_path):
    image, output = write(tmp_path / "a.tif"), tmp_path / "out"
    assert predict(segmenter, [image], output) == 0
    assert all(is_result(file) for file in output.iterdir())
    assert predict(segmenter, [image], output) == 0
    with pytest.raises(UserError, match="a.tif: is one of the images"):
        plan_large_predictions([image], tmp_path, KINDS)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "a.tif")
    with pytest.raises(UserError, match="exists, and is not a result"):
        plan_large_predictions([image], tmp_path / "other", KINDS)


def test_place_on_the_earth_is_kept(segmenter, tmp_path):
    scale = (33550, "d", 3, (0.5, 0.5, 0.0), True)
    keys = (34735, "H", 4, (1, 1, 0, 0), True)
    image = write(tmp_path / "a.tif", extratags=[scale, keys])
    predict(segmenter, [image], tmp_path / "out", kinds=("labels",))
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as file:
        tags = file.pages.first.tags
        assert tags[33550].value == scale[3] and tags[34735].value == keys[3]


def test_strip_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("encnet_jax.predict.tiff_image._MAX_SEGMENT_BYTES", 10_000)
    path = write(tmp_path / "a.tif", compression="zlib", rowsperstrip=150)
    with pytest.raises(UserError, match="333 x 150 pixels, too large .* in tiles"):
        with open_tiff(path):
            pass
    with open_tiff(write(tmp_path / "b.tif", tile=(32, 32))) as image:
        assert image.shape == RGB.shape


def test_page_for_each_channel_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((3, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match="a.tif: a TIFF of 3 gray pages of 30x20 pixel"):
        with open_tiff(path):
            pass


def test_copies_masks_and_damaged_pages_are_no_channels(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for kind in (0, 1, 4):  # the image, a copy of it, a mask
            tag = 254, "I", 1, kind, True  # subfiletype=4 is for masks of one bit only
            file.write(np.zeros((20, 30), np.uint8), extratags=[tag], metadata=None)
    with open_tiff(path) as image:
        assert image.shape == (20, 30, 3)
    data = bytearray(write(tmp_path / "b.tif").read_bytes())
    tags = int.from_bytes(data[4:8], "little")
    after = tags + 2 + 12 * int.from_bytes(data[tags : tags + 2], "little")
    data[after : after + 4] = (100).to_bytes(4, "little")  # the next page: no page
    (tmp_path / "b.tif").write_bytes(data)
    with open_tiff(tmp_path / "b.tif") as image:
        assert image.shape == RGB.shape


def test_missing_package_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tifffile" else found(name, *rest),
    )
    with pytest.raises(UserError, match=r"needs tifffile.*encnet-jax\[tiff\]"):
        with open_tiff(write(tmp_path / "a.tif")):
            pass


def test_disk_without_space_is_one_line(segmenter, tmp_path, monkeypatch, capsys):
    image = write(tmp_path / "a.tif")
    usage = namedtuple("usage", "total used free")(1, 1, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    assert predict(segmenter, [image], tmp_path / "out") == 1
    assert "bytes of disk" in capsys.readouterr().err
    assert not [*(tmp_path / "out").iterdir()]
