"""Tests of ADE20K, on a fake copy of its archive."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

tfds = pytest.importorskip("tensorflow_datasets")

from tensorflow_datasets.core import shuffle  # noqa: E402

from encnet_jax.data.builders import ade20k  # noqa: E402
from encnet_jax.data.builders.ade20k import SCENES, Ade20k  # noqa: E402
from encnet_jax.data.dataset_info import ADE20K, IGNORE_LABEL  # noqa: E402
from encnet_jax.data.registry import dataset_info, open_dataset  # noqa: E402
from tests.data.builders.archives import (  # noqa: E402
    jpeg,
    pack,
    png,
    prepare,
    problem,
    unpack,
)
from tests.data.png_files import make_png  # noqa: E402

ROOT = SCENES.contents
TRAIN = [f"ADE_train_{n:08d}" for n in (1, 2, 3)]
VAL = ["ADE_val_00000001", "ADE_val_00000002"]
COUNTS = {"train": len(TRAIN), "val": len(VAL)}
LABELS = np.array([[0, 1, 2, 150], [149, 75, 1, 0], [12, 13, 14, 15]], np.uint8)


def files():
    """Returns the files of the archive; the gray of an image tells it from others."""
    found = {f"{ROOT}/objectInfo150.txt": b"Idx", f"{ROOT}/sceneCategories.txt": b""}
    for folder, names in (("training", TRAIN), ("validation", VAL)):
        for index, name in enumerate(names):
            found[f"{ROOT}/images/{folder}/{name}.jpg"] = jpeg(3, 4, 40 * index)
            found[f"{ROOT}/annotations/{folder}/{name}.png"] = png(
                np.roll(LABELS, index)
            )
    return found


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(ade20k, "SCENES", dataclasses.replace(SCENES, digest=""))
    small = dataclasses.replace(ADE20K, splits=COUNTS)
    monkeypatch.setattr(Ade20k, "dataset", small)


def packed(folder, content=None):
    """Returns a builder, and the folder with the archive for it."""
    pack(folder / "manual" / SCENES.file, content or files())
    return Ade20k(data_dir=folder / "data"), folder / "manual"


def prepared(folder, content=None):
    """Returns a builder that has prepared what the archive holds."""
    builder, manual = packed(folder, content)
    prepare(builder, manual)
    return builder


def test_examples_are_those_of_the_archive_in_the_order_of_their_names(tmp_path):
    builder = prepared(tmp_path)
    assert set(builder.info.splits) == {"train", "val"}
    for split, names in (("train", TRAIN), ("val", VAL)):
        examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        assert [example["id"].decode() for example in examples] == names
        for index, example in enumerate(examples):
            labels = example["label"][..., 0]
            np.testing.assert_array_equal(labels, np.roll(LABELS, index))
            assert example["image"].shape == (3, 4, 3)
            assert abs(int(example["image"][0, 0, 0]) - 40 * index) <= 2


def test_registry_opens_an_unpacked_folder_and_maps_the_labels(tmp_path):
    content = files()
    unpack(tmp_path / "downloads/manual", content)
    dataset = open_dataset("ade20k", "train", str(tmp_path))
    assert len(dataset) == 3 and dataset.info is ADE20K
    image, labels = dataset.encoded(0)
    assert image == content[f"{ROOT}/images/training/{TRAIN[0]}.jpg"]
    expected = [[255, 0, 1, 149], [148, 74, 0, 255], [11, 12, 13, 14]]
    np.testing.assert_array_equal(labels, expected)


def test_images_that_decoders_read_differently_are_stored_as_png(tmp_path):
    path = f"{ROOT}/images/training/{TRAIN[1]}.jpg"
    builder = prepared(tmp_path, files() | {path: png(LABELS, palette=True)})
    example = list(tfds.as_numpy(builder.as_dataset(split="train")))[1]
    # Entry n of the fake palette is (111n, 111n + 37, 111n + 74) modulo 256; the
    # labels of the image begin with 0, 1.
    np.testing.assert_array_equal(
        example["image"][0, :2], [[0, 37, 74], [111, 148, 185]]
    )


def test_classes_are_the_150_of_the_challenge():
    assert dataset_info("ade20k") is ADE20K
    assert ADE20K.splits == {"train": 20_210, "val": 2_000}
    assert ADE20K.num_classes == len(set(ADE20K.class_names)) == 150
    expected = {0: "wall", 7: "bed", 12: "person", 20: "car", 89: "television receiver"}
    for index, name in (expected | {125: "pot", 148: "clock", 149: "flag"}).items():
        assert ADE20K.class_names[index] == name
    assert ADE20K.colors[0] == (120, 120, 120) and ADE20K.colors[2] == (6, 230, 230)
    assert ADE20K.colors[20] == (0, 102, 200) and ADE20K.colors[149] == (92, 0, 255)
    assert ADE20K.label_map == {0: IGNORE_LABEL, **{n: n - 1 for n in range(1, 151)}}


def test_missing_label_file_is_named_with_its_image(tmp_path):
    content = files()
    del content[f"{ROOT}/annotations/validation/{VAL[1]}.png"]
    message = problem(*packed(tmp_path, content))
    assert f"annotations/validation/{VAL[1]}.png: missing" in message
    assert f"images/validation/{VAL[1]}.jpg" in message


def test_missing_images_are_noticed_by_their_count(tmp_path):
    content = files()
    del content[f"{ROOT}/images/training/{TRAIN[2]}.jpg"]
    message = problem(*packed(tmp_path, content))
    assert "images/training: 2 images; 3 are published" in message


@pytest.mark.parametrize(
    "content, word",
    [
        (png(np.full((3, 4), 151)), "label 151; allowed are 1 to 150, and 0, 255"),
        (png(np.ones((4, 3))), "is 3x4: must be equal"),
        (png(LABELS)[:-30], "cannot be decoded"),
        (b"", "cannot be decoded"),
    ],
    ids=["label", "size", "cut", "empty"],
)
def test_bad_label_file_is_named(tmp_path, content, word):
    path = f"{ROOT}/annotations/training/{TRAIN[1]}.png"
    message = problem(*packed(tmp_path, files() | {path: content}))
    assert path in message and word in message


def test_archive_is_checked_by_its_published_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(ade20k, "SCENES", SCENES)
    message = problem(*packed(tmp_path))
    assert SCENES.file in message
    assert "published is 219e1696abb36c8ba3a3afe7fb2f4b4606a897c7" in message


def test_large_splits_are_sorted_in_pieces(tmp_path, monkeypatch):
    # TFDS brings a piece into memory at once; as for a split that is larger than that.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    pieces = []
    original = shuffle.Shuffler.bucket_lengths.fget
    spied = property(lambda self: pieces.append(original(self)) or pieces[-1])
    monkeypatch.setattr(shuffle.Shuffler, "bucket_lengths", spied)
    builder = prepared(tmp_path)
    assert [max(lengths) for lengths in pieces] == [1, 1]
    examples = tfds.as_numpy(builder.as_dataset(split="train"))
    assert [example["id"].decode() for example in examples] == TRAIN


def test_labels_are_stored_upright_and_as_the_values_of_few_bits(tmp_path, caplog):
    content = files()
    exif = Image.Exif()
    exif[274] = 6
    turned = [io.BytesIO(), io.BytesIO()]
    Image.new("RGB", (4, 3), (9, 9, 9)).save(turned[0], "JPEG", exif=exif)
    Image.fromarray(LABELS).save(turned[1], "PNG", exif=exif)
    image = f"{ROOT}/images/training/{TRAIN[0]}.jpg"
    label = f"{ROOT}/annotations/training/{TRAIN[0]}.png"
    content[image], content[label] = (file.getvalue() for file in turned)
    content[f"{ROOT}/annotations/training/{TRAIN[1]}.png"] = make_png(LABELS % 16, 4)
    builder = prepared(tmp_path, content)
    examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
    np.testing.assert_array_equal(examples[0]["label"][..., 0], np.rot90(LABELS, 3))
    assert examples[0]["image"].shape == (4, 3, 3)
    np.testing.assert_array_equal(examples[1]["label"][..., 0], LABELS % 16)

    exif[274] = 3
    flipped = io.BytesIO()
    Image.new("RGB", (4, 3), (9, 9, 9)).save(flipped, "JPEG", exif=exif)
    content[image], content[label] = flipped.getvalue(), png(LABELS)
    prepared(tmp_path / "flipped", content)
    warned = [m for m in caplog.messages if "EXIF orientation 3" in m]
    assert len(warned) == 1 and TRAIN[0] in warned[0]

    content[image] = turned[0].getvalue()
    builder, manual = packed(tmp_path / "other", content)
    assert "EXIF orientation: 6 of the image, 1 of" in problem(builder, manual)
