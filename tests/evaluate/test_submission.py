"""Submissions, read back as the test servers do."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.label_map import published_labels
from encnet_jax.data.registry import dataset_info, open_dataset
from encnet_jax.data.result_file import save_result
from encnet_jax.errors import UserError
from encnet_jax.evaluate.submission import Submission, UnlabeledDataset
from encnet_jax.files import whole_file

CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28]


def written(folder, name, place):
    """Returns the written file for a prediction of all classes in order."""
    info = dataset_info(name)
    predictions = np.arange(info.num_classes, dtype=np.uint8)[None].repeat(2, 0)
    Submission(folder, info).write("frankfurt_000000_000294_leftImg8bit", predictions)
    path = folder / place / "frankfurt_000000_000294_leftImg8bit.png"
    with Image.open(path) as image:
        assert image.size == (info.num_classes, 2)
        return image.mode, np.asarray(image)[1].tolist(), image.getpalette()


def test_ade20k_counts_from_one(tmp_path):
    mode, labels, _ = written(tmp_path, "ade20k", "")
    assert mode == "L" and labels == list(range(1, 151))


def test_class_labeled_255_is_written_as_255(tmp_path):
    black = ((0, 0, 0),) * 2
    info = DatasetInfo("masks", ("no", "yes"), black, {}, {0: 0, 255: 1})
    Submission(tmp_path, info).write("a", np.uint8([[0, 1]]))
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).tolist() == [[0, 255]]


def test_cityscapes_has_ids_and_not_train_ids(tmp_path):
    mode, labels, _ = written(tmp_path, "cityscapes", "")
    assert mode == "L" and labels == [*CITYSCAPES_IDS, 31, 32, 33]


def test_voc_has_palette_images_in_the_folders_of_its_archive(tmp_path):
    place = "results/VOC2012/Segmentation/comp6_test_cls"
    mode, labels, palette = written(tmp_path, "voc2012", place)
    assert mode == "P" and labels == list(range(21))
    # Background, aeroplane, bicycle, as in every label file of VOC.
    assert palette[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]


def test_of_several_labels_of_a_class_the_least_is_published():
    info = dataset_info("coco_voc")
    labels = published_labels(info)
    for index, label in enumerate(labels):
        assert info.label_map[label] == index
        assert label == min(k for k, v in info.label_map.items() if v == index)


def test_folders_of_images_are_read_through_and_bad_ones_named(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    for name in ("b/two.png", "a/one.jpg"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(pixels).save(tmp_path / name)
    dataset = UnlabeledDataset(dataset_info("ade20k"), tmp_path)
    assert [dataset[n].name for n in range(len(dataset))] == ["one", "two"]
    example = dataset[1]
    np.testing.assert_array_equal(example.image, pixels)
    assert example.labels.shape == (6, 9) and (example.labels == 255).all()
    Image.fromarray(pixels).save(tmp_path / "b" / "one.png")
    with pytest.raises(UserError, match="both would be one.png"):
        UnlabeledDataset(dataset_info("ade20k"), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("._a.jpg", "a.pdf", ".cache/a.png"):
        (empty / name).parent.mkdir(exist_ok=True)
        (empty / name).touch()
    with pytest.raises(UserError, match="empty: no images"):
        UnlabeledDataset(dataset_info("ade20k"), empty)


def test_images_without_labels_are_of_any_format_and_value_range(tmp_path):
    info = dataclasses.replace(dataset_info("ade20k"), value_range=(0, 4095))
    values = np.array([[0, 819, 4095], [9000, 2048, 0]])
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "b.TIF")
    dataset = UnlabeledDataset(info, tmp_path)
    for index in range(2):
        image = dataset[index].image
        assert image[..., 0].tolist() == [[0, 51, 255], [255, 128, 0]]
        data, labels = dataset.encoded(index)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
        assert labels.shape == (2, 3)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["x/a.png", "x/b.png", "y/c.png"], ["a", "b", "c"]),
        (["x/a.png", "x/b.png", "y/a.png"], ["x/a", "x/b", "y/a"]),
        (["x/a.png", "y/A.png"], ["x/a", "y/A"]),
        (["x/1/a.png", "x/2/a.png"], ["1/a", "2/a"]),
    ],
)
def test_images_of_equal_names_have_files_of_their_own(tmp_path, images, expected):
    root, labels = tmp_path / "data", np.zeros((4, 5), np.uint8)
    for name in images:
        for kind in ("images", "labels"):
            path = root / kind / "val" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([labels] * 3, -1)).save(path)
        Image.fromarray(labels).save(path)
    (root / "classes.json").write_text('["a", "b"]')
    dataset = open_dataset("folder", "val", str(root))
    submission = Submission(tmp_path / "out", dataset.info)
    for index in range(len(images)):
        submission.write(dataset[index].name, np.full((4, 5), index % 2, np.uint8))
    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    names = [path.relative_to(tmp_path / "out").as_posix() for path in files]
    assert names == sorted(f"{name}.png" for name in expected)
    for index, name in enumerate(expected):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert (np.asarray(image) == index % 2).all()
    resumed = Submission(tmp_path / "out", dataset.info)
    resumed.keep(expected[0])  # of an earlier run
    for writer in (submission, resumed):
        with pytest.raises(UserError, match="two images of this name"):
            writer.write(expected[0], labels)


def test_results_of_predict_are_no_images(tmp_path):
    pixels = np.zeros((4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    with whole_file(tmp_path / "a-overlay.png") as file:
        save_result(Image.fromarray(pixels), file, tmp_path / "a.jpg")
    dataset = UnlabeledDataset(dataset_info("ade20k"), tmp_path)
    assert [path.name for path in dataset.paths] == ["a.jpg"]


def test_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "val").touch()
    with pytest.raises(UserError, match="val: cannot be written to: File exists"):
        Submission(tmp_path / "val", dataset_info("ade20k"))
