"""Tests of which files are images, and of which label file belongs to which."""

import errno
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from encnet_jax.data.file_pairs import files_below, is_image, pair_files, pair_listed
from encnet_jax.data.result_file import save_result
from encnet_jax.errors import UserError


def touch(root, *names):
    """Creates empty files below a folder, and the folder."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def paired(tmp_path, images, labels, suffix=""):
    """Returns the pairs as relative names, and the problems."""
    touch(tmp_path / "images", *images)
    touch(tmp_path / "labels", *labels)
    pairs, problems = pair_files(tmp_path / "images", tmp_path / "labels", suffix)
    return relative(tmp_path, pairs), [p.replace(f"{tmp_path}/", "") for p in problems]


def listed(tmp_path, text, suffix=""):
    """Returns the pairs that the lines of a list name, and the problems."""
    folders = tmp_path / "images", tmp_path / "labels"
    listing = tmp_path / "train.txt"
    pairs, problems = pair_listed(listing, text.splitlines(), *folders, suffix)
    return relative(tmp_path, pairs), [p.replace(f"{tmp_path}/", "") for p in problems]


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "a/1.png", "a/x/2.png", "b/3.png", "around/a/4.png")
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "a" / "x" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "other").symlink_to("../b")
    (tmp_path / "b" / "back").symlink_to("../a")  # from b, which a leads to
    for name, expected in [
        ("a", ["1.png", "other/3.png", "x/2.png"]),
        ("b", ["3.png", "back/1.png", "back/x/2.png"]),
    ]:
        folder = tmp_path / name
        assert files_below(folder) == [folder / path for path in expected]


def test_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    """As one that another user copied; tests that run as root can read it."""
    touch(tmp_path, "a/1.png", "b/2.png")
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match="/b: cannot be read: Permission denied"):
        files_below(tmp_path)
    assert files_below(tmp_path, all_needed=False) == [tmp_path / "a" / "1.png"]
    assert files_below(tmp_path / "missing") == []
    folders = tmp_path, tmp_path
    pairs, problems = pair_listed(tmp_path / "train.txt", ["a/1.png"], *folders)
    assert len(pairs) == 1 and not problems


def test_full_name_in_a_list_is_not_that_of_a_longer_one(tmp_path):
    touch(tmp_path / "images", "a.jpg", "a.jpg.jpg")
    touch(tmp_path / "labels", "a.png", "a.jpg.png")
    pairs, problems = listed(tmp_path, "a.jpg\na.jpg.jpg\n")
    assert not problems
    assert pairs == [("a.jpg", "a.png"), ("a.jpg.jpg", "a.jpg.png")]


def test_two_images_of_a_list_for_one_label_file(tmp_path):
    touch(tmp_path / "images", "a.jpg", "a.png")
    touch(tmp_path / "labels", "a.png")
    pairs, problems = listed(tmp_path, "a.jpg\na.png\n")
    assert pairs == [("a.jpg", "a.png")]
    assert problems == ["images/a.png and images/a.jpg: two images for one label file"]


def test_system_folders_at_the_root_of_a_disk_are_no_data(tmp_path):
    touch(tmp_path, "a/1.png", "lost+found/2.png", "$RECYCLE.BIN/3.png")
    assert files_below(tmp_path) == [tmp_path / "a" / "1.png"]


def relative(root, pairs):
    return [
        (
            image.relative_to(root / "images").as_posix(),
            label.relative_to(root / "labels").as_posix(),
        )
        for image, label in pairs
    ]


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "A.JPEG", "a.v2.png", "a.tif", "a.TIFF", "a.webp", "a.bmp", "a.pgm"],
)
def test_raster_images_are_images(name):
    assert is_image(Path("some/.hidden/folder") / name)


@pytest.mark.parametrize(
    "name",
    [
        *("._a.jpg", ".a.png", ".jpg"),  # hidden
        *("a.pdf", "a.eps", "a.ps", "a.wmf", "a.emf", "a.svg"),  # vector graphics
        *("a.mpg", "a.mpeg", "a.mp4", "a.h5", "a.hdf", "a.grib", "a.bufr"),
        *("a", "a.txt", "a.npy", "a.jpg.part", "jpg"),
    ],
)
def test_hidden_files_and_other_formats_are_none(name):
    assert not is_image(Path("folder") / name)


def test_suffix_of_label_files_is_of_any_case(tmp_path):
    pairs, problems = paired(tmp_path, ["a.jpg", "b.JPG"], ["a.PNG", "b.Png"])
    assert pairs == [("a.jpg", "a.PNG"), ("b.JPG", "b.Png")] and not problems
    touch(tmp_path / "labels", "a.png")
    _, problems = paired(tmp_path, [], [])
    assert problems == ["labels/a.png and labels/a.PNG: two label files for one image"]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_another_unicode_form_are_equal(tmp_path, forms):
    image, label = (unicodedata.normalize(form, "é/größe") for form in forms)
    assert image != label
    names = f"{image}.jpg", f"{label}.png"
    pairs, problems = paired(tmp_path, names[:1], names[1:])
    assert pairs == [names] and not problems
    for entry in (image, label):
        assert listed(tmp_path, f"{entry}.jpg") == ([names], [])


def test_overlays_of_predictions_are_no_label_files(tmp_path):
    (tmp_path / "labels").mkdir()
    with (tmp_path / "labels" / "a-overlay.png").open("wb") as file:
        save_result(Image.new("RGB", (2, 2)), file, tmp_path / "images" / "a.jpg")
    assert paired(tmp_path, ["a.jpg"], ["a.png"]) == ([("a.jpg", "a.png")], [])


def test_label_suffix_tells_label_files_from_others(tmp_path):
    labels = ["x/1_mask.png", "x/1_color.png", "2_mask.PNG", "x/1.png", "3_mask.png"]
    pairs, problems = paired(tmp_path, ["x/1.jpg", "2.png"], labels, "_mask")
    assert pairs == [("2.png", "2_mask.PNG"), ("x/1.jpg", "x/1_mask.png")]
    assert problems == ["labels/3_mask.png: a label file without an image"]


@pytest.mark.parametrize(
    "suffix, label, hint",
    [
        ("", "1_mask.png", 'set "label_suffix": "_mask" in classes.json'),
        ("", "1_gtFine_labelIds.PNG", 'set "label_suffix": "_gtFine_labelIds" in'),
        ("_gt", "1_mask.png", 'set "label_suffix": "_mask" in classes.json'),
        ("_gt", "1.png", 'set "label_suffix": "" in classes.json'),
        (None, "1_mask.png", "but must have the name of the image"),
        ("", "1.jpg", "but label files must be PNG"),
        ("", "1.tif", "but label files must be PNG"),
        ("", "1.bmp", "but label files must be PNG"),
        ("_gt", "1_gt.jpg", "but label files must be PNG"),
    ],
)
def test_near_miss_is_named_once(tmp_path, suffix, label, hint):
    pairs, problems = paired(tmp_path, ["x/1.jpg"], [f"x/{label}"], suffix)
    (problem,) = problems
    missing = f"labels/x/1{suffix or ''}.png: missing, the label file of images/x/1.jpg"
    assert not pairs and problem.startswith(f"{missing}; labels/x/{label} is there")
    assert hint in problem


def test_label_files_of_other_images_are_no_near_misses(tmp_path):
    images = ["a.jpg", "a_mask.jpg", "b1.jpg", "cat.jpg", "x/a.jpg"]
    labels = ["a_mask.png", "b10.png", "cats.png", "x/a/b.png"]
    pairs, problems = paired(tmp_path, images, labels)
    assert pairs == [("a_mask.jpg", "a_mask.png")]
    without = ": missing, the label file of images/"
    assert problems == [
        *(f"labels/{n}.png{without}{n}.jpg" for n in ("a", "b1", "cat", "x/a")),
        *(
            f"{label}: a label file without an image"
            for label in sorted(f"labels/{name}" for name in labels[1:])
        ),
    ]


def test_name_in_other_case_is_a_near_miss(tmp_path):
    _, (problem,) = paired(tmp_path, ["IMG_1.jpg"], ["img_1.png"])
    assert problem.endswith("labels/img_1.png is there, in other upper and lower case")


@pytest.mark.parametrize(
    "line",
    [
        "a/1.jpg",
        "a/1",
        r"a\1.jpg",
        r".\images\a\1.jpg",
        "images/a/1.jpg",
        "/data/images/mine/images/a/1.jpg",
        "a/1.jpg a/1.png",
        "images/a/1.jpg\tlabels/a/1.png",
        r"images\a\1.jpg   labels\a\1.png",
        "  a/1.jpg   a/1.png  ",
    ],
)
def test_a_line_is_an_image_and_its_label_file_in_any_spelling(tmp_path, line):
    touch(tmp_path / "images", "a/1.jpg", "1.jpg")
    touch(tmp_path / "labels", "a/1.png", "1.png")
    assert listed(tmp_path, line) == ([("a/1.jpg", "a/1.png")], [])


def test_second_column_may_be_any_png_below_labels(tmp_path):
    touch(tmp_path / "images", "1.jpg", "my photo 2.jpg", "3 4.jpg")
    touch(tmp_path / "labels", "x/one_mask.PNG", "my mask 2.png", "3 4.png", "t.tif")
    text = "1.jpg x/one_mask.PNG\nmy photo 2.jpg my mask 2.png\n3 4.jpg"
    assert listed(tmp_path, text) == (
        [
            ("1.jpg", "x/one_mask.PNG"),
            ("my photo 2.jpg", "my mask 2.png"),
            ("3 4.jpg", "3 4.png"),
        ],
        [],
    )
    for label in ("none.png", "t.tif", "-1"):
        line = f"1.jpg {label}"
        wanted = f"train.txt line 1: {line}: no such label file (.png) in labels"
        assert listed(tmp_path, line) == ([], [wanted])


def test_image_whose_name_starts_with_that_of_another(tmp_path):
    names = "photo", "photo (1)", "photo (1) copy"
    touch(tmp_path / "images", *(f"{name}.jpg" for name in names))
    touch(tmp_path / "labels", *(f"{name}.png" for name in names))
    lines = [f"{name}.jpg {name}.png" for name in names]
    lines[2] = "photo (1) copy photo (1) copy.png"
    pairs = [(f"{name}.jpg", f"{name}.png") for name in names]
    assert listed(tmp_path, "\n".join(lines)) == (pairs, [])
    line = "photo (1).jpg photo (2).png"
    wanted = f"train.txt line 1: {line}: no such label file (.png) in labels"
    assert listed(tmp_path, line) == ([], [wanted])


def test_lists_follow_the_label_suffix_and_name_near_misses(tmp_path):
    touch(tmp_path / "images", "1.jpg", "2.jpg")
    touch(tmp_path / "labels", "1_mask.png", "2_mask.PNG")
    pairs = [("1.jpg", "1_mask.png"), ("2.jpg", "2_mask.PNG")]
    assert listed(tmp_path, "1.jpg\n2", "_mask") == (pairs, [])
    _, problems = listed(tmp_path, "1.jpg\n2\n9")
    assert ['"label_suffix": "_mask"' in problem for problem in problems] == [
        True,
        True,
        False,
    ]
    assert problems[2] == "train.txt line 3: 9: no such image in images"


def test_folders_in_front_are_left_out_only_up_to_images(tmp_path):
    touch(tmp_path / "images", "a.jpg")
    touch(tmp_path / "labels", "a.png")
    _, problems = listed(tmp_path, "val/a.jpg\na.png")
    assert problems == [
        "train.txt line 1: val/a.jpg: no such image in images",
        "train.txt line 2: a.png: a.jpg, but not that image, is in images",
    ]
