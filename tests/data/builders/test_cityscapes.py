"""Tests of Cityscapes, on fake copies of its two archives."""

import dataclasses

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from encnet_jax.data.builders.cityscapes import (  # noqa: E402
    IMAGES,
    LABELS,
    Cityscapes,
)
from encnet_jax.data.dataset_info import CITYSCAPES, IGNORE_LABEL  # noqa: E402
from encnet_jax.data.registry import dataset_info, open_dataset  # noqa: E402
from encnet_jax.errors import UserError  # noqa: E402
from tests.data.builders.archives import (  # noqa: E402
    jpeg,
    pack,
    png,
    prepare,
    problem,
    unpack,
)

# In the order of cities, not of names: `test` is in the archives, with blank labels.
NAMES = {
    "train": ["aachen_000001_000019", "hamburg_000000_000042", "hamburg_000000_000629"],
    "val": ["frankfurt_000000_000294"],
    "test": ["berlin_000000_000019"],
}
PUBLISHED = np.array([[0, 6, 7, 8], [11, 24, 29, 33], [9, 10, 255, 23]], np.uint8)
CLASSES = [[255, 255, 0, 1], [2, 11, 255, 18], [255, 255, 255, 10]]


def image_files():
    """Returns the files of the archive of images; the gray of one tells it apart."""
    images = [np.full((3, 4), 40 * n) for n in range(3)]
    return {
        f"leftImg8bit/{split}/{name.split('_')[0]}/{name}_leftImg8bit.png": png(image)
        for split, names in NAMES.items()
        for name, image in zip(names, images)
    } | {"README": b"", "license.txt": b""}


def label_files():
    """Returns the files of the archive of labels, which holds others of each image."""
    found = {}
    for split, names in NAMES.items():
        for name in names:
            start = f"gtFine/{split}/{name.split('_')[0]}/{name}_gtFine"
            blank = np.zeros_like(PUBLISHED)
            found[f"{start}_labelIds.png"] = png(
                blank if split == "test" else PUBLISHED
            )
            found[f"{start}_instanceIds.png"] = b"16 bit"
            found[f"{start}_color.png"] = jpeg(3, 4)
            found[f"{start}_polygons.json"] = b"{}"
    return found


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small = dataclasses.replace(CITYSCAPES, splits={"train": 3, "val": 1})
    monkeypatch.setattr(Cityscapes, "dataset", small)


def packed(folder, images=None, labels=None):
    """Returns a builder, and the folder with the archives for it."""
    pack(folder / "manual" / IMAGES.file, images or image_files())
    pack(folder / "manual" / LABELS.file, labels or label_files())
    return Cityscapes(data_dir=folder / "data"), folder / "manual"


def test_examples_are_those_of_train_and_val_with_published_names(tmp_path):
    builder, manual = packed(tmp_path)
    prepare(builder, manual)
    assert set(builder.info.splits) == {"train", "val"}
    for split in ("train", "val"):
        examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        assert [example["id"].decode() for example in examples] == NAMES[split]
        for index, example in enumerate(examples):
            np.testing.assert_array_equal(example["label"][..., 0], PUBLISHED)
            np.testing.assert_array_equal(
                example["image"], np.full((3, 4, 3), 40 * index)
            )


def test_registry_opens_unpacked_folders_and_maps_the_labels(tmp_path):
    unpack(tmp_path / "downloads/manual", image_files() | label_files())
    dataset = open_dataset("cityscapes", "train", str(tmp_path))
    assert len(dataset) == 3 and dataset.info is CITYSCAPES
    np.testing.assert_array_equal(dataset[2].labels, CLASSES)
    assert dataset[2].image[0, 0, 0] == 80
    with pytest.raises(UserError, match="split 'test' of cityscapes"):
        open_dataset("cityscapes", "test", str(tmp_path))


def test_classes_are_the_19_of_the_benchmark():
    assert dataset_info("cityscapes") is CITYSCAPES
    assert CITYSCAPES.splits == {"train": 2_975, "val": 500}
    assert CITYSCAPES.num_classes == len(CITYSCAPES.colors) == 19
    for index, name in {
        0: "road",
        5: "pole",
        10: "sky",
        13: "car",
        18: "bicycle",
    }.items():
        assert CITYSCAPES.class_names[index] == name
    assert CITYSCAPES.colors[0] == (128, 64, 128)
    assert CITYSCAPES.colors[13] == (0, 0, 142)
    assert CITYSCAPES.colors[18] == (119, 11, 32)
    published = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
    assert CITYSCAPES.label_map == {
        **dict.fromkeys(range(34), IGNORE_LABEL),
        **{label: index for index, label in enumerate(published)},
    }


@pytest.mark.parametrize("archive", [IMAGES, LABELS])
def test_missing_archive_is_named_with_where_to_get_and_put_it(tmp_path, archive):
    builder, manual = packed(tmp_path)
    (manual / archive.file).unlink()
    assert problem(builder, manual) == (
        f"{archive.file}: must be downloaded by hand from "
        f"https://www.cityscapes-dataset.com/downloads and put into {manual}"
    )
    assert archive.file in Cityscapes.MANUAL_DOWNLOAD_INSTRUCTIONS


def test_missing_manual_folder_is_named_by_the_registry(tmp_path):
    with pytest.raises(UserError) as raised:
        open_dataset("cityscapes", "train", str(tmp_path))
    assert f"put into {tmp_path / 'downloads/manual'}" in str(raised.value)


def test_missing_label_file_is_named_with_its_image(tmp_path):
    labels = label_files()
    path = "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png"
    del labels[path]
    message = problem(*packed(tmp_path, labels=labels))
    assert f"{path}: missing" in message
    assert "frankfurt_000000_000294_leftImg8bit.png" in message


def test_missing_city_is_noticed_by_the_image_count(tmp_path):
    images = {k: v for k, v in image_files().items() if "hamburg" not in k}
    message = problem(*packed(tmp_path, images=images))
    assert "leftImg8bit/train: 1 images; 3 are published" in message


@pytest.mark.parametrize(
    "content, word",
    [
        (png(np.full((3, 4), 34)), "label 34; allowed are 7 to 8, 11 to 13, 17, 19"),
        (png(np.zeros((3, 5))), "is 5x3: must be equal"),
        (png(PUBLISHED)[:40], "cannot be decoded"),
        (png(np.zeros((3, 4, 3))), "mode RGB"),
        (jpeg(3, 4), "a JPEG image, which changes labels"),
    ],
    ids=["label", "size", "cut", "colors", "lossy"],
)
def test_bad_label_file_is_named(tmp_path, content, word):
    path = "gtFine/train/hamburg/hamburg_000000_000042_gtFine_labelIds.png"
    message = problem(*packed(tmp_path, labels=label_files() | {path: content}))
    assert path in message and word in message
