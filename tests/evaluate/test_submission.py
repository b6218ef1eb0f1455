"""Submissions, read back as the test servers do."""

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.registry import dataset_info
from encnet_jax.errors import UserError
from encnet_jax.evaluate.submission import (
    Submission,
    UnlabeledDataset,
    published_labels,
)

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
    with pytest.raises(UserError, match="no .jpg, .jpeg, .png in it"):
        UnlabeledDataset(dataset_info("ade20k"), empty)
