"""`predict.py --explain`: a figure for each image, nothing overwritten."""

import numpy as np
import pytest
from PIL import Image

from encnet_jax import Segmenter, UserError
from encnet_jax.data.dataset_info import CIFAR10, save_info
from encnet_jax.data.result_file import is_result
from encnet_jax.data.scenes import draw
from encnet_jax.predict.find_images import find_images
from tests import small_workdir
from tests.make_scenes_model import FOLDER


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(draw(97, index).image).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def predict(command):
    """Returns a function that predicts with --explain, of the network of scenes."""
    return lambda *arguments, **flags: command(*arguments, **{"explain": True, **flags})


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_each_image_gets_the_figure_of_its_explanation(predict, photos, tmp_path):
    output = tmp_path / "out"
    assert predict(photos) == 0
    kinds = (".png", "-overlay.png", "-explain.png")
    assert names_in(output) == {f"{index}{kind}" for index in "01" for kind in kinds}
    expected = Segmenter.from_pretrained(FOLDER).explain(photos / "1.png").figure()
    written = output / "1-explain.png"
    np.testing.assert_array_equal(Image.open(written), expected)
    # A result like the others: left out of a folder of images, and replaced.
    assert is_result(written)
    assert predict(photos) == 0
    assert find_images([str(photos), str(output / "*")]) == sorted(photos.iterdir())


def test_reference_images_take_the_place_of_the_stored_mean(predict, photos, tmp_path):
    one = photos / "0.png"
    assert predict(one, reference=[str(photos)]) == 0
    figure = Segmenter.from_pretrained(FOLDER).explain(one, photos.glob("*")).figure()
    np.testing.assert_array_equal(Image.open(tmp_path / "out/0-explain.png"), figure)


def test_without_the_flag_nothing_is_explained(predict, photos, tmp_path):
    assert predict(photos / "0.png", explain=False) == 0
    assert names_in(tmp_path / "out") == {"0.png", "0-overlay.png"}


def test_file_of_the_users_is_not_overwritten(predict, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1-explain.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="1-explain.png: exists"):
        predict(photos)
    assert names_in(tmp_path / "out") == {"1-explain.png"}


@pytest.mark.parametrize("name", ["fcn", "encnet"])
def test_what_cannot_be_explained_writes_nothing(predict, photos, tmp_path, name):
    workdir = tmp_path / "run"
    settings = {**small_workdir.TINY, "name": name}
    small_workdir.write_workdir(workdir, **settings)
    message = "^FCN: has no" if name == "fcn" else "no mean gate is stored"
    with pytest.raises(UserError, match=message):
        predict(photos, workdir=str(workdir))
    assert not (tmp_path / "out").exists()


def test_flags_that_do_not_fit_are_named(predict, photos, tmp_path):
    with pytest.raises(UserError, match="^--reference: only with --explain"):
        predict(photos, explain=False, reference=[str(photos)])
    with pytest.raises(UserError, match="missing.png: no such image"):
        predict(photos, reference=[str(tmp_path / "missing.png")])
    workdir = tmp_path / "run"
    workdir.mkdir()
    save_info(CIFAR10, workdir / "classes.json")
    with pytest.raises(UserError, match="^--explain: .*classifies"):
        predict(photos, workdir=str(workdir))
    assert not (tmp_path / "out").exists()
