"""`encnet predict`: `--save`, and flags that exclude each other."""

import numpy as np
import pytest
from PIL import Image

from encnet_jax import Segmenter, UserError, cli
from encnet_jax.data.dataset_info import CIFAR10, save_info
from encnet_jax.data.scenes import draw
from encnet_jax.predict.slide import LargeSegmenter
from tests.make_scenes_model import FOLDER

tifffile = pytest.importorskip("tifffile")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "<b>a & ü</b>".replace("/", "_")
    path.parent.mkdir()
    path = path.with_name(f"{path.name}.tif")
    Image.fromarray(draw(97, 1).image).save(path)
    return path


def results(tmp_path, photo):
    return {path.name.removeprefix(photo.stem) for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    "flags, endings",
    [
        ({}, {".png", "-overlay.png"}),
        ({"save": "labels"}, {".png"}),
        ({"save": "overlay,overlay"}, {"-overlay.png"}),
        ({"save": "probabilities"}, {"-probabilities.npz"}),
        (
            {"save": "probabilities,labels", "explain": True},
            {".png", "-probabilities.npz", "-explain.png"},
        ),
        ({"slide": True}, {".tif", "-overlay.png"}),
        ({"slide": True, "save": "labels"}, {".tif"}),
    ],
)
def test_flags_choose_the_files(command, photo, tmp_path, flags, endings):
    for _ in range(2):  # a result of the same image is replaced
        assert command(photo, **flags) == 0
        assert results(tmp_path, photo) == endings


def test_saved_arrays_are_those_of_the_segmenter(command, photo, tmp_path):
    assert command(photo, save="probabilities,labels", explain=True) == 0
    segmenter = Segmenter.from_pretrained(FOLDER)
    expected, out = segmenter(photo), tmp_path / "out"
    with np.load(out / f"{photo.stem}-probabilities.npz") as arrays:
        half = expected.probabilities.astype(np.float16)
        np.testing.assert_array_equal(arrays["probabilities"], half)
        assert tuple(arrays["class_names"]) == expected.class_names
    labels = np.asarray(Image.open(out / f"{photo.stem}.png"))
    np.testing.assert_array_equal(labels, expected.labels)
    assert command(photo, slide=True, save="labels", base_size=0) == 0
    large = LargeSegmenter(segmenter, 0)(np.asarray(Image.open(photo)))
    written = tifffile.imread(out / f"{photo.stem}.tif")
    for box, part in large:
        np.testing.assert_array_equal(written[box], part)


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"save": ""}, "^--save=: allowed are labels, probabilities, overlay"),
        ({"save": "labels,mask"}, "^--save=labels,mask: allowed are labels, "),
        ({"slide": True, "explain": True}, "^--explain: not with --slide"),
        (
            {"slide": True, "save": "labels,probabilities"},
            "^--save=labels,probabilities: with --slide, allowed are labels, overlay",
        ),
        ({"base_size": 0}, "^--base_size: only with --slide"),
        ({"reference": "a.png"}, "^--reference: only with --explain"),
    ],
)
def test_flags_that_exclude_each_other_are_named(
    command, photo, tmp_path, monkeypatch, flags, message
):
    # Before the model is looked for, which may download it.
    monkeypatch.setattr(cli, "run_folder", lambda workdir: pytest.fail("downloaded"))
    with pytest.raises(UserError, match=message):
        command(photo, **flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags", [{"save": "labels,overlay"}, {"slide": True}, {"explain": True}]
)
def test_flags_of_segmenters_are_refused_for_a_classifier(
    command, photo, tmp_path, flags
):
    workdir = tmp_path / "run"
    workdir.mkdir()
    save_info(CIFAR10, workdir / "classes.json")
    (name,) = flags
    with pytest.raises(UserError, match=f"^--{name}: .*classifies"):
        command(photo, workdir=workdir, **flags)
    assert not (tmp_path / "out").exists()
