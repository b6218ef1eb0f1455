"""Where predictions go: no image, foreign file or other result is replaced."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.result_file import is_result, save_result
from encnet_jax.errors import UserError
from encnet_jax.files import whole_file
from encnet_jax.predict.output_plan import distinct_names, plan_outputs

ENDINGS = (".png", "-overlay.png")


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_result(path, source):
    with whole_file(path) as file:
        save_result(Image.new("L", (5, 4)), file, source)


def refusal(images, output):
    with pytest.raises(UserError) as raised:
        plan_outputs(images, output, ENDINGS)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_names_are_those_of_the_images(tmp_path):
    images = [tmp_path / "a.jpg", tmp_path / "b" / "c.png"]
    plan = plan_outputs(images, tmp_path / "out", ENDINGS)
    outputs = [[str(path.relative_to(tmp_path)) for path in i.outputs] for i in plan[0]]
    assert outputs == [
        ["out/a.png", "out/a-overlay.png"],
        ["out/c.png", "out/c-overlay.png"],
    ]
    assert not plan.problems


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "a-overlay.jpg"], ["a.jpg", "a-overlay.jpg"]),
        (["x/a.jpg", "y/a.jpg", "y/b.jpg"], ["x_a.jpg", "y_a.jpg", "b"]),
        (["A.jpg", "a.jpg"], ["000000_A", "000001_a"]),
        (["x/1/a.jpg", "y/1/a.jpg"], ["x_1_a.jpg", "y_1_a.jpg"]),
        # The second stage of one is the first of another.
        (["a.jpg", "a.png", "a.jpg.tif"], ["a.jpg", "a.png", "a.jpg.tif"]),
        # One letter with a diaeresis, as one code point and as two.
        (["\u00e4.jpg", "a\u0308.png"], ["\u00e4.jpg", "a\u0308.png"]),
        (["a_b/c.jpg", "a/b_c.jpg", "c.jpg"], None),
        (["000001_a.jpg", "A.png", "a.png", "A.PNG", "a-overlay.png"], None),
    ],
)
def test_no_two_results_share_a_file(paths, expected):
    names = distinct_names([Path(path) for path in paths], ENDINGS)
    files = [(name + ending).casefold() for name in names for ending in ENDINGS]
    assert len(set(files)) == len(files)
    assert names == (expected or names)


def test_image_is_not_replaced_by_its_labels(tmp_path):
    photo = write_image(tmp_path / "photos" / "a.png")
    message = refusal([photo], tmp_path / "photos")
    assert message.startswith(f"{photo}: is one of the images to predict")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_image_is_recognized_behind_links_and_relative_paths(
    tmp_path, monkeypatch, link
):
    photo = write_image(tmp_path / "photos" / "a.jpg")
    (tmp_path / "out").mkdir()
    link(photo, tmp_path / "out" / "a-overlay.png")
    assert "is one of the images" in refusal([photo], tmp_path / "out")
    write_image(tmp_path / "photos" / "b.png")
    (tmp_path / "linked").symlink_to(tmp_path / "photos", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "out")
    images = [tmp_path / "linked" / "b.png"]
    assert "is one of the images" in refusal(images, Path("../photos"))


def test_file_of_another_origin_is_not_replaced(tmp_path):
    photo = write_image(tmp_path / "a.jpg")
    other = write_image(tmp_path / "a.png")  # not to be predicted
    before = other.read_bytes()
    assert f"{other}: exists, and is not a result" in refusal([photo], tmp_path)
    assert other.read_bytes() == before
    other.unlink()
    (tmp_path / "a-overlay.png").write_text("notes")
    assert "is not a result of predict" in refusal([photo], tmp_path)


def test_own_result_is_replaced_but_not_that_of_another_image(tmp_path):
    first = write_image(tmp_path / "x" / "a.jpg")
    second = write_image(tmp_path / "y" / "a.jpg")
    out = tmp_path / "out"
    out.mkdir()
    write_result(out / "a.png", first)
    assert is_result(out / "a.png") and not is_result(write_image(out / "b.png"))
    assert len(plan_outputs([first], out, ENDINGS).images) == 1
    assert "a.png: is the result of another image" in refusal([second], out)


@pytest.mark.parametrize("exists", [False, True])
def test_name_too_long_for_the_file_system_is_named(tmp_path, exists):
    # 255 bytes are allowed; `-overlay.png` is longer than `.jpg`.
    long = write_image(tmp_path / ("x" * 250 + ".jpg"))
    photo = write_image(tmp_path / "a.jpg")
    output = tmp_path / "out" / "deep"
    if exists:
        output.mkdir(parents=True)
    plan = plan_outputs([long, photo], output, ENDINGS)
    assert [image.path for image in plan.images] == [photo]
    (problem,) = plan.problems
    assert problem.startswith(f"{long}: File name too long")
