"""Tests of COCO-Stuff and its subset for VOC, on fake copies of the archives."""

import dataclasses

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from encnet_jax.data.builders import coco_stuff  # noqa: E402
from encnet_jax.data.builders.coco_stuff import (  # noqa: E402
    LABELS,
    TRAIN,
    VAL,
    CocoStuff,
)
from encnet_jax.data.dataset_info import (  # noqa: E402
    COCO_STUFF,
    COCO_VOC,
    IGNORE_LABEL,
)
from encnet_jax.data.registry import dataset_info, open_dataset  # noqa: E402
from tests.data.builders.archives import (  # noqa: E402
    jpeg,
    pack,
    png,
    prepare,
    problem,
    unpack,
)

SHAPE = (40, 50)  # 2,000 pixels
GIRAFFE, PIZZA, COUCH, TV, SKY = 24, 58, 62, 71, 156  # 24 to 71 are things


def label_map(*parts):
    """Returns labels (40, 50): (label, pixels) in turn, then unlabeled."""
    labels = np.full(SHAPE, IGNORE_LABEL, np.uint8)
    start = 0
    for label, pixels in parts:
        labels.ravel()[start : start + pixels] = label
        start += pixels
    return labels


LABEL_MAPS = {
    "train": {
        "000000000009": label_map((GIRAFFE, 900), (SKY, 1100)),  # nothing of VOC
        "000000000025": label_map((TV, 1000), (SKY, 400), (0, 1), (PIZZA, 9)),  # 1,001
        "000000000030": label_map((COUCH, 1000), (SKY, 1000)),  # too few by one
        "000000000034": label_map((COUCH, 2000)),
    },
    "val": {"000000000139": label_map((89, 1), (91, 1), (181, 1), (0, 1997))},
}
COUNTS = {"train": 4, "val": 1}


def image_files(split):
    """Returns the files of an archive of images."""
    return {f"{split}2017/{name}.jpg": jpeg(*SHAPE) for name in LABEL_MAPS[split]}


def label_files():
    """Returns the files of the archive of labels."""
    return {
        f"{split}2017/{name}.png": png(labels)
        for split, label_maps in LABEL_MAPS.items()
        for name, labels in label_maps.items()
    }


def unpacked_files():
    """Returns the files of all archives where people unpack them."""
    images = image_files("train") | image_files("val")
    return {f"images/{path}": content for path, content in images.items()} | {
        f"annotations/{path}": content for path, content in label_files().items()
    }


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for name, archive in (("TRAIN", TRAIN), ("VAL", VAL)):
        monkeypatch.setattr(coco_stuff, name, dataclasses.replace(archive, digest=""))
    small = dataclasses.replace(COCO_STUFF, splits=COUNTS)
    monkeypatch.setattr(coco_stuff, "COCO_STUFF", small)


def packed(folder, config="stuff", labels=None):
    """Returns a builder, and the folder with the archives for it."""
    pack(folder / "manual" / TRAIN.file, image_files("train"))
    pack(folder / "manual" / VAL.file, image_files("val"))
    pack(folder / "manual" / LABELS.file, labels or label_files())
    return CocoStuff(config=config, data_dir=folder / "data"), folder / "manual"


def assert_examples(builder, expected):
    """Checks the ids of both splits, and the labels, which stay as published."""
    assert set(builder.info.splits) == set(expected)
    for split, names in expected.items():
        examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        assert [example["id"].decode() for example in examples] == names
        for name, example in zip(names, examples):
            labels = example["label"][..., 0]
            np.testing.assert_array_equal(labels, LABEL_MAPS[split][name])


def test_stuff_has_all_images_with_labels_as_published(tmp_path):
    builder, manual = packed(tmp_path)
    prepare(builder, manual)
    assert_examples(builder, {split: list(LABEL_MAPS[split]) for split in LABEL_MAPS})


def test_voc_has_images_with_more_than_1000_pixels_of_its_classes(tmp_path):
    builder, manual = packed(tmp_path, "voc")
    prepare(builder, manual)
    names = ["000000000025", "000000000034"]
    assert_examples(builder, {"train": names, "val": ["000000000139"]})


def test_registry_opens_both_from_one_unpacked_folder(tmp_path):
    manual = tmp_path / "downloads/manual"
    unpack(manual / "images", image_files("train") | image_files("val"))
    unpack(manual / "annotations", label_files())
    dataset = open_dataset("coco_stuff", "val", str(tmp_path))
    labels = dataset[0].labels.ravel()
    assert list(labels[:4]) == [79, 80, 170, 0] and dataset.info is COCO_STUFF
    dataset = open_dataset("coco_voc", "train", str(tmp_path))
    labels = dataset[0].labels.ravel()
    # tvmonitor, sky as background, person, pizza as background, unlabeled
    assert list(labels[[0, 1000, 1400, 1401, 1410]]) == [20, 0, 15, 0, IGNORE_LABEL]
    assert len(dataset) == 2 and dataset.info is COCO_VOC


def test_classes_are_the_171_in_the_order_of_their_labels():
    assert dataset_info("coco_stuff") is COCO_STUFF
    assert COCO_STUFF.splits == {"train": 118_287, "val": 5_000}
    assert COCO_STUFF.num_classes == len(set(COCO_STUFF.class_names)) == 171
    expected = {0: "person", 11: "stop sign", 23: "giraffe", 62: "tv", 79: "toothbrush"}
    for index, name in (expected | {80: "banner", 153: "table", 170: "wood"}).items():
        assert COCO_STUFF.class_names[index] == name
    assert COCO_STUFF.colors[0] == (0, 192, 64) and COCO_STUFF.colors[26] == (0, 0, 0)
    assert COCO_STUFF.colors[80] == (0, 192, 0)
    assert COCO_STUFF.colors[170] == (64, 64, 0)
    # The ids of COCO less one; those of things that no one has drawn do not occur.
    absent = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    published = [label for label in range(182) if label not in absent]
    assert COCO_STUFF.label_map == {label: n for n, label in enumerate(published)}


def test_classes_for_voc_are_found_by_their_ids_in_coco():
    assert dataset_info("coco_voc") is COCO_VOC and COCO_VOC.num_classes == 21
    assert COCO_VOC.splits == {"train": None, "val": None}
    assert COCO_VOC.class_names == dataset_info("voc2012").class_names
    assert COCO_VOC.colors == dataset_info("voc2012").colors
    # Ids of COCO in the order of VOC's classes, from PyTorch-Encoding.
    ids = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
    objects = {label: index for label, index in COCO_VOC.label_map.items() if index}
    assert objects == {id_ - 1: index for index, id_ in enumerate(ids, 1)}
    assert set(COCO_VOC.label_map) == set(COCO_STUFF.label_map)


def test_missing_label_file_is_named_with_its_image(tmp_path):
    labels = label_files()
    del labels["val2017/000000000139.png"]
    message = problem(*packed(tmp_path, labels=labels))
    assert "val2017/000000000139.png: missing" in message
    assert "val2017/000000000139.jpg" in message


@pytest.mark.parametrize("config", ["stuff", "voc"])
def test_missing_images_are_noticed_by_their_count(tmp_path, config):
    builder, manual = packed(tmp_path, config)
    pack(manual / TRAIN.file, dict(list(image_files("train").items())[1:]))
    message = problem(builder, manual)
    assert "train2017: 3 images; 4 are published" in message


@pytest.mark.parametrize("config", ["stuff", "voc"])
@pytest.mark.parametrize(
    "content, word",
    [
        (png(label_map((11, 2000))), "label 11; allowed are 0 to 10, 12 to 24, 26"),
        (png(label_map((182, 2000))), "label 182;"),
        (png(label_map((0, 2000)).T), "is 40x50: must be equal"),
        (png(label_map((0, 2000)))[:50], "cannot be decoded"),
    ],
    ids=["gap", "label", "size", "cut"],
)
def test_bad_label_file_is_named(tmp_path, config, content, word):
    path = "train2017/000000000030.png"
    labels = label_files() | {path: content}
    message = problem(*packed(tmp_path, config, labels))
    assert path in message and word in message


@pytest.mark.parametrize("archive", [TRAIN, VAL])
def test_archives_of_images_are_checked_by_their_digests(
    tmp_path, monkeypatch, archive
):
    monkeypatch.setattr(coco_stuff, "TRAIN" if archive is TRAIN else "VAL", archive)
    message = problem(*packed(tmp_path))
    assert archive.file in message and archive.digest.split(":")[1] in message
