"""What the web page shows, without a page."""

import io
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from encnet_jax import Segmenter
from encnet_jax.app import analysis
from encnet_jax.app.analysis import Analyzer, check_upload
from encnet_jax.app.page import listenable_port
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.errors import UserError
from tests import small_workdir

PIXELS = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)


def photo(folder):
    path = folder / "photo.png"
    Image.fromarray(PIXELS).save(path)
    return path


def analyzer(workdir, info=None, channels=3, **settings):
    data = dict(base_size=0, channels=channels)
    settings = small_workdir.TINY | settings
    small_workdir.write_workdir(workdir, info=info, data=data, **settings)
    return Analyzer(Segmenter.from_workdir(workdir))


def test_analysis_is_that_of_the_segmenter(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "_SHOWN_SIDE", 80)
    analyze, path = analyzer(tmp_path / "run"), photo(tmp_path)
    found, expected = analyze(path), analyze.segmenter(path)
    assert found.image.shape == (48, 80, 3) and found.labels.shape == (48, 80)
    with Image.open(io.BytesIO(found.label_png)) as labels:
        np.testing.assert_array_equal(np.asarray(labels), expected.labels)
    assert list(found.presence) == ["road", "car", "sky"]
    np.testing.assert_allclose([*found.presence.values()], expected.presence)

    explanation = analyze.segmenter.explain(path, context_from=path)
    shares = explanation.assignment.mean((0, 1))
    assert len(found.codewords) == small_workdir.TINY["num_codes"]
    image, title = found.codewords[0]
    assert image.size == (80, 48)
    assert title == f"{shares.argmax()}: {shares.max():.0%}"


def test_slider_draws_without_the_network(tmp_path, monkeypatch):
    analyze = analyzer(tmp_path / "run")
    found = analyze(photo(tmp_path))
    monkeypatch.setattr(Segmenter, "__call__", None)
    clear, dense = (np.asarray(analyze.overlay(found, k)) for k in (0, 1))
    inner = np.s_[:96, :160]
    assert clear.shape == dense.shape and (clear[inner] != dense[inner]).any()


def test_network_without_the_module_has_no_maps(tmp_path):
    found = analyzer(tmp_path / "run", name="fcn")(photo(tmp_path))
    assert found.codewords is None and found.presence is None


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_images_of_bands(tmp_path, monkeypatch, planar):
    tifffile = pytest.importorskip("tifffile")
    bands = dict(mean=(0.5,) * 5, std=(0.3,) * 5, value_range=((0, 4095),) * 5)
    info = DatasetInfo("mine", ("road", "car"), voc_colormap(2), {}, **bands)
    analyze = analyzer(tmp_path / "run", info=info, channels=5)
    pixels = np.random.default_rng(0).integers(0, 4096, (48, 64, 5), np.uint16)
    settings = dict(photometric="minisblack", planarconfig=planar)
    for count in (5, 4):  # Pillow opens neither, or a page
        image = pixels[..., :count]
        image = np.moveaxis(image, -1, 0) if planar == "separate" else image
        tifffile.imwrite(tmp_path / f"{count}.tif", image, **settings)
    found = analyze(tmp_path / "5.tif")
    assert found.image.shape == (48, 64, 3)
    with Image.open(io.BytesIO(found.label_png)) as labels:
        expected = analyze.segmenter(pixels).labels
        np.testing.assert_array_equal(np.asarray(labels), expected)
    for name in ("4.tif", photo(tmp_path).name):
        with pytest.raises(UserError, match=rf"^{name}: . channels; 5 are expected$"):
            analyze(tmp_path / name)
    (tmp_path / "text.tif").write_bytes(b"II*\0text")
    with pytest.raises(UserError, match=r"text.tif: cannot be read as a TIFF: .*$"):
        analyze(tmp_path / "text.tif")
    monkeypatch.setattr(analyze, "max_pixels", 48 * 64 - 1)
    with pytest.raises(UserError, match="5.tif: 64 x 48 pixels; allowed are"):
        analyze(tmp_path / "5.tif")


def test_address_that_cannot_be_used_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = f"--host=127.0.0.1 --port={port}: cannot be .*already in use"
        with pytest.raises(UserError, match=message):
            listenable_port("127.0.0.1", port)
    assert listenable_port("127.0.0.1", port) == port
    assert listenable_port("127.0.0.1", 0) > 0
    for host in ("192.0.2.1", "a" * 99 + ".invalid"):  # of no interface; no name
        with pytest.raises(UserError, match=f"--host={host} --port=80: cannot be list"):
            listenable_port(host, 80)


@pytest.mark.parametrize(
    ("protocol", "expected", "text"),
    [
        (None, 25_000_000, "32 MiB and 25 million pixels"),
        # 2^31 scores of 150 classes.
        ("windows", 14_316_557, "32 MiB and 14.3 million pixels"),
    ],
)
def test_scores_of_windows_are_bounded(protocol, expected, text):
    info, explainer = SimpleNamespace(num_classes=150), lambda: None
    segmenter = SimpleNamespace(protocol=protocol, info=info, explainer=explainer)
    found = Analyzer(segmenter)
    assert (found.max_pixels, found.limits) == (expected, text)


def test_uploads_are_bounded(tmp_path, monkeypatch):
    path = photo(tmp_path)
    check_upload(path, 96 * 160)
    with pytest.raises(UserError, match="160 x 96 pixels; allowed are 0.0154 million"):
        check_upload(path, 96 * 160 - 1)
    with monkeypatch.context() as patched:  # as of a file that expands to any size
        patched.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 160 // 2 - 1)
        with pytest.raises(
            UserError, match="too many pixels; allowed are 0.01 million"
        ):
            check_upload(path, 10_000)
    monkeypatch.setattr(analysis, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="photo.png: 0 MiB; allowed are"):
        check_upload(path)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UserError, match="text.png: cannot be decoded as an image"):
        check_upload(tmp_path / "text.png")
