"""Tests of PASCAL-Context, on fake copies of the two archives."""

import dataclasses
import logging

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from encnet_jax.data.builders import pascal_context  # noqa: E402
from encnet_jax.data.builders.pascal_context import (  # noqa: E402
    IMAGES,
    LABELS,
    PascalContext,
)
from encnet_jax.data.class_table import read_rows  # noqa: E402
from encnet_jax.data.dataset_info import (  # noqa: E402
    PASCAL_CONTEXT,
    PASCAL_CONTEXT_60,
    PASCAL_CONTEXT_SORTED,
)
from encnet_jax.data.registry import dataset_info, open_dataset  # noqa: E402
from encnet_jax.errors import UserError  # noqa: E402
from tests.data.builders.archives import jpeg, mat, names, pack, unpack  # noqa: E402

# Raw labels: aeroplane, bag, person, wood; nothing, accordion, unknown, wool.
RAW = np.array([[2, 9, 284, 458], [0, 1, 431, 459]], np.uint16)
OFFICIAL = [[1, 21, 15, 59], [0, 0, 0, 0]]
LISTS = {"train": ("2008_000008", "2008_000002"), "val": ("2008_000003",)}
INFOS = (PASCAL_CONTEXT, PASCAL_CONTEXT_SORTED, PASCAL_CONTEXT_60)


def image_files():
    """Returns the files of VOC 2010's archive; only one is in its segmentation."""
    root = IMAGES.contents
    files = {
        f"{root}/ImageSets/Main/{split}.txt": names(*listed)
        for split, listed in LISTS.items()
    }
    files[f"{root}/ImageSets/Segmentation/train.txt"] = names("2008_000008")
    files[f"{root}/ImageSets/Segmentation/val.txt"] = names()
    for name in (*LISTS["train"], *LISTS["val"]):
        files[f"{root}/JPEGImages/{name}.jpg"] = jpeg(*RAW.shape)
    return files


def label_files():
    """Returns the files of PASCAL-Context's archive; the second is mirrored."""
    files = {"labels.txt": b"1: accordion\n2: aeroplane\n"}
    for index, name in enumerate((*LISTS["train"], *LISTS["val"])):
        raw = RAW[:, ::-1] if index == 1 else RAW
        files[f"{LABELS.contents}/{name}.mat"] = mat(LabelMap=raw)
    return files


@pytest.fixture(autouse=True)
def _any_digest(monkeypatch):
    archive = dataclasses.replace(IMAGES, digest="")
    monkeypatch.setattr(pascal_context, "IMAGES", archive)


def prepared(folder, images=None, labels=None):
    """Returns the builder after it has prepared what the archives hold."""
    manual = folder / "manual"
    pack(manual / IMAGES.file, images or image_files())
    pack(manual / LABELS.file, labels or label_files())
    builder = PascalContext(data_dir=folder / "data")
    where = tfds.download.DownloadConfig(manual_dir=manual)
    builder.download_and_prepare(download_config=where)
    return builder


def test_records_hold_official_labels_in_the_order_of_the_lists(tmp_path):
    builder = prepared(tmp_path)
    assert set(builder.info.splits) == {"train", "val"}
    for split, listed in LISTS.items():
        examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        assert tuple(example["id"].decode() for example in examples) == listed
        for index, example in enumerate(examples):
            expected = np.array(OFFICIAL)[:, ::-1] if index == 1 else OFFICIAL
            np.testing.assert_array_equal(example["label"][..., 0], expected)
            assert example["image"].shape == (*RAW.shape, 3)


def test_prepared_set_is_loaded_by_its_name_without_the_archives(tmp_path):
    prepared(tmp_path)
    dataset, info = tfds.load(
        "pascal_context", data_dir=tmp_path / "data", download=False, with_info=True
    )
    assert {split: len(dataset[split]) for split in dataset} == {"train": 2, "val": 1}
    spec = dataset["val"].element_spec
    assert spec["label"].shape == (None, None, 1) and spec["label"].dtype == "uint8"
    assert "Mottaghi" in info.citation


@pytest.mark.parametrize(
    "name, expected",
    [
        ("pascal_context", [[0, 20, 14, 58], [255] * 4]),
        ("pascal_context_sorted", [[0, 1, 36, 58], [255] * 4]),
        ("pascal_context_60", [[1, 2, 37, 59], [0] * 4]),
    ],
)
def test_registry_opens_every_order_of_the_same_records(tmp_path, name, expected):
    unpack(tmp_path / "downloads/manual", image_files())
    unpack(tmp_path / "downloads/manual", label_files())
    dataset = open_dataset(name, "train", str(tmp_path))
    assert dataset.info is dataset_info(name) and len(dataset) == 2
    np.testing.assert_array_equal(dataset[0].labels, expected)
    assert [path.name for path in tmp_path.iterdir() if path.name != "downloads"] == [
        "pascal_context"
    ]


def test_official_order_is_the_20_of_voc_and_then_39_more():
    places = PASCAL_CONTEXT.class_names
    assert len(places) == PASCAL_CONTEXT.num_classes == 59
    assert places[0] == "aeroplane" and places[10] == "table"
    assert places[14] == "person" and places[19] == "tvmonitor"
    assert places[20] == "bag" and places[41] == "curtain" and places[58] == "wood"
    assert PASCAL_CONTEXT.label_map == {0: 255, **{n: n - 1 for n in range(1, 60)}}


def test_order_by_raw_label_is_the_alphabetical_one():
    rows = read_rows("pascal_context")
    by_raw = [row["name"] for row in sorted(rows, key=lambda row: int(row["raw"]))]
    assert by_raw == sorted(by_raw) == list(PASCAL_CONTEXT_SORTED.class_names)
    assert by_raw[:6] == ["aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle"]
    assert PASCAL_CONTEXT_60.class_names == ("background", *by_raw)
    assert len({row["raw"] for row in rows}) == 59


def test_a_class_keeps_its_color_and_its_records_in_every_order():
    for info in INFOS:
        # As in mmsegmentation, whose palette goes with the alphabetical order.
        colors = dict(zip(info.class_names, info.colors))
        assert colors["aeroplane"] == (180, 120, 120)
        assert colors["bag"] == (6, 230, 230)
        assert colors["wood"] == (31, 0, 255)
        for label, name in enumerate(PASCAL_CONTEXT.class_names, 1):
            assert info.class_names[info.label_map[label]] == name
    assert PASCAL_CONTEXT_60.colors[0] == (120, 120, 120)


def test_every_raw_label_but_59_is_background():
    labels = pascal_context._official_labels()
    assert labels.shape == (460,) and labels[0] == 0
    assert sorted(labels[labels > 0]) == list(range(1, 60))
    # The names differ from those of the list of 59: diningtable, clothes, bedcloth.
    assert (labels[397], labels[80], labels[19]) == (11, 28, 52)


def test_counts_that_are_not_the_official_ones_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "encnet_jax"):
        prepared(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "pascal_context: train has 2 images instead of the official 4998",
        "pascal_context: val has 1 images instead of the official 5105",
    ]


def problem(folder, images=None, labels=None):
    """Returns the message with which preparing ends; nothing must be left of it."""
    with pytest.raises(UserError) as raised:
        prepared(folder, images, labels)
    assert "\n" not in str(raised.value)
    assert not PascalContext(data_dir=folder / "data").data_path.exists()
    assert not list((folder / "data").rglob("*.tfrecord*"))
    return str(raised.value)


@pytest.mark.parametrize(
    "ending", ["Main/val.txt", "JPEGImages/2008_000003.jpg", "trainval/2008_000003.mat"]
)
def test_missing_file_is_named(tmp_path, ending):
    images, labels = image_files(), label_files()
    for files in (images, labels):
        for path in [path for path in files if path.endswith(ending)]:
            del files[path]
    message = problem(tmp_path, images, labels)
    assert ending in message and "No such file" in message


@pytest.mark.parametrize(
    "content, word",
    [
        (mat(Labels=RAW), "LabelMap"),
        (mat(LabelMap=np.full((2, 4), 460, np.uint16)), "label 460; allowed are 0 to"),
        (mat(LabelMap=np.full((2, 4), -1, np.int16)), "label -1; allowed are 0 to 459"),
        (mat(LabelMap=RAW[:, :3]), "is 3x2: must be equal"),
        (mat(LabelMap=np.zeros((0, 0), np.uint16)), "LabelMap is uint16 (0, 0)"),
        (mat(LabelMap="sky"), "LabelMap is <U3"),
        (mat(LabelMap=RAW)[:-4], "LabelMap"),
        (b"", "LabelMap"),
    ],
)
def test_bad_label_file_is_named(tmp_path, content, word):
    path = f"{LABELS.contents}/2008_000002.mat"
    message = problem(tmp_path, labels=label_files() | {path: content})
    assert path in message and word in message


def test_images_are_checked_by_their_published_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(pascal_context, "IMAGES", IMAGES)
    assert "published is da459979d0c395079b5c75ee67908abb" in problem(tmp_path)


def test_labels_of_another_archive_of_that_name_are_rejected(tmp_path):
    # PASCAL-Part calls its archive trainval.tar.gz, too.
    message = problem(tmp_path, labels={"Annotations_Part/2008_000002.mat": b""})
    assert f"lacks {LABELS.contents}; is it {LABELS.file}?" in message
