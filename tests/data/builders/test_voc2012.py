"""Tests of VOC 2012 and its augmented set, on fake copies of the two archives."""

import dataclasses
import logging

import numpy as np
import pytest
from scipy.sparse import csc_array

tfds = pytest.importorskip("tensorflow_datasets")

from encnet_jax.data.builders import voc2012  # noqa: E402
from encnet_jax.data.builders.voc2012 import SBD, VOC, Voc2012  # noqa: E402
from encnet_jax.data.dataset_info import VOC2012, VOC2012_AUG  # noqa: E402
from encnet_jax.data.registry import dataset_info, open_dataset  # noqa: E402
from encnet_jax.errors import UserError  # noqa: E402
from tests.data.builders.archives import jpeg, mat, names, pack, png, unpack  # noqa: E402

SHAPE = (4, 6)
# Name -> the labels of VOC, with the border between objects; a row is of one label.
VOC_LABELS = {
    "2007_000032": (0, 1, 255, 15),
    "2007_000039": (0, 0, 20, 20),
    "2007_000033": (0, 255, 7, 7),
}
# Name -> the labels of SBD, which has no border.
SBD_LABELS = {
    "2007_000032": (0, 1, 1, 15),  # in VOC's train
    "2008_000002": (0, 0, 20, 20),
    "2007_000033": (0, 0, 7, 7),  # in VOC's val
    "2008_000008": (13, 13, 15, 0),
}
LISTS = {
    "train": ("2007_000032", "2007_000039"),
    "val": ("2007_000033",),
    "trainval": ("2007_000032", "2007_000033", "2007_000039"),
}
SBD_LISTS = {
    "train": ("2008_000002", "2007_000033"),
    "val": ("2007_000032", "2008_000008", "2008_000002"),
}


def rows(labels):
    """Returns labels (4, 6) with a row of each."""
    return np.repeat(np.array(labels, np.uint8)[:, None], SHAPE[1], 1)


def voc_files():
    """Returns the files of VOC's archive."""
    root = VOC.contents
    files = {
        f"{root}/ImageSets/Segmentation/{split}.txt": names(*listed)
        for split, listed in LISTS.items()
    }
    for name, labels in VOC_LABELS.items():
        files[f"{root}/JPEGImages/{name}.jpg"] = jpeg(*SHAPE, gray=50)
        files[f"{root}/SegmentationClass/{name}.png"] = png(rows(labels), palette=True)
    return files


def sbd_files():
    """Returns the files of SBD's archive."""
    root = SBD.contents
    files = {f"{root}/{split}.txt": names(*SBD_LISTS[split]) for split in SBD_LISTS}
    for name, labels in SBD_LABELS.items():
        borders = np.empty((20, 1), object)
        for index in range(20):
            borders[index, 0] = csc_array(SHAPE)
        struct = {"Boundaries": borders, "Segmentation": rows(labels)}
        files[f"{root}/img/{name}.jpg"] = jpeg(*SHAPE, gray=200)
        files[f"{root}/cls/{name}.mat"] = mat(GTcls=struct)
    return files


@pytest.fixture(autouse=True)
def _any_digest(monkeypatch):
    for name, archive in (("VOC", VOC), ("SBD", SBD)):
        monkeypatch.setattr(voc2012, name, dataclasses.replace(archive, digest=""))


def prepared(folder, config, voc=None, sbd=None):
    """Returns the builder after it has prepared what the archives hold."""
    manual = folder / "manual"
    pack(manual / VOC.file, voc or voc_files())
    pack(manual / SBD.file, sbd or sbd_files())
    builder = Voc2012(config=config, data_dir=folder / "data")
    where = tfds.download.DownloadConfig(manual_dir=manual)
    builder.download_and_prepare(download_config=where)
    return builder


def examples(builder, split):
    """Returns the examples of a split: name -> image and labels, in their order."""
    return {
        example["id"].decode(): (example["image"], example["label"][..., 0])
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }


def test_voc_has_its_lists_in_their_order_and_labels_as_published(tmp_path):
    builder = prepared(tmp_path, "voc")
    assert set(builder.info.splits) == set(VOC2012.splits)
    for split, listed in LISTS.items():
        found = examples(builder, split)
        assert tuple(found) == listed
        for name, (image, labels) in found.items():
            # Indices, not the colors of the palette; the border is still there.
            np.testing.assert_array_equal(labels, rows(VOC_LABELS[name]))
            assert image.shape == (*SHAPE, 3)


def test_aug_trains_on_both_without_val_and_prefers_the_labels_of_voc(tmp_path):
    builder = prepared(tmp_path, "aug")
    assert set(builder.info.splits) == set(VOC2012_AUG.splits)
    train, val = examples(builder, "train"), examples(builder, "val")
    assert tuple(train) == (*LISTS["train"], "2008_000002", "2008_000008")
    assert tuple(val) == LISTS["val"]
    for name, (image, labels) in (train | val).items():
        of_voc = name in VOC_LABELS
        expected = (VOC_LABELS if of_voc else SBD_LABELS)[name]
        np.testing.assert_array_equal(labels, rows(expected))
        assert abs(int(image[0, 0, 0]) - (50 if of_voc else 200)) <= 2


def test_prepared_set_is_loaded_by_its_name_without_the_archives(tmp_path):
    prepared(tmp_path, "aug")
    dataset, info = tfds.load(
        "voc2012/aug", data_dir=tmp_path / "data", download=False, with_info=True
    )
    assert {split: len(dataset[split]) for split in dataset} == {"train": 4, "val": 1}
    spec = dataset["val"].element_spec
    assert spec["image"].shape == (None, None, 3) and spec["image"].dtype == "uint8"
    assert spec["label"].shape == (None, None, 1) and spec["label"].dtype == "uint8"
    assert "Everingham" in info.citation and "Hariharan" in info.citation


def test_registry_opens_both_from_unpacked_folders_and_ignores_borders(tmp_path):
    unpack(tmp_path / "downloads/manual", voc_files())
    unpack(tmp_path / "downloads/manual", sbd_files())
    dataset = open_dataset("voc2012", "train", str(tmp_path))
    np.testing.assert_array_equal(dataset[0].labels, rows((0, 1, 255, 15)))
    assert len(open_dataset("voc2012", "trainval", str(tmp_path))) == 3
    dataset = open_dataset("voc2012_aug", "train", str(tmp_path))
    np.testing.assert_array_equal(dataset[3].labels, rows((13, 13, 15, 0)))
    with pytest.raises(UserError, match="split 'trainval' of voc2012_aug"):
        open_dataset("voc2012_aug", "trainval", str(tmp_path))


def test_classes_and_colors_are_those_of_voc():
    for info in (VOC2012, VOC2012_AUG):
        assert dataset_info(info.name) is info and info.num_classes == 21
        assert info.class_names[0] == "background"
        assert info.class_names[15] == "person"
        assert info.label_map == {n: n for n in range(21)}
        # The color is spelt by the bits of the label, from the lowest: R, G, B, R...
        assert info.colors[0] == (0, 0, 0) and info.colors[1] == (128, 0, 0)
        assert info.colors[15] == (192, 128, 128) and info.colors[20] == (0, 64, 128)


def test_counts_that_are_not_the_official_ones_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "encnet_jax"):
        prepared(tmp_path, "aug")
    assert [record.getMessage() for record in caplog.records] == [
        "voc2012_aug: train has 4 images instead of the official 10582",
        "voc2012_aug: val has 1 images instead of the official 1449",
    ]


def test_official_counts_are_not_remarked_on(tmp_path, caplog, monkeypatch):
    counts = {"train": 2, "val": 1, "trainval": 3}
    info = dataclasses.replace(VOC2012, splits=counts)
    monkeypatch.setitem(voc2012._DATASETS, "voc", info)
    with caplog.at_level(logging.WARNING, "encnet_jax"):
        prepared(tmp_path, "voc")
    assert not caplog.records


def without(files, ending):
    """Returns the files but the one whose path ends so, and that path."""
    (path,) = (path for path in files if path.endswith(ending))
    return {name: files[name] for name in files if name != path}, path


def problem(folder, config="aug", voc=None, sbd=None):
    """Returns the message with which preparing ends; nothing must be left of it."""
    with pytest.raises(UserError) as raised:
        prepared(folder, config, voc, sbd)
    assert "\n" not in str(raised.value)
    assert not Voc2012(config=config, data_dir=folder / "data").data_path.exists()
    assert not list((folder / "data").rglob("*.tfrecord*"))
    return str(raised.value)


@pytest.mark.parametrize(
    "ending",
    ["Segmentation/val.txt", "JPEGImages/2007_000033.jpg", "Class/2007_000033.png"],
)
def test_missing_file_of_voc_is_named(tmp_path, ending):
    files, path = without(voc_files(), ending)
    message = problem(tmp_path, "voc", voc=files)
    assert path in message and "No such file" in message


@pytest.mark.parametrize(
    "ending", ["dataset/val.txt", "img/2008_000008.jpg", "cls/2008_000008.mat"]
)
def test_missing_file_of_sbd_is_named(tmp_path, ending):
    files, path = without(sbd_files(), ending)
    message = problem(tmp_path, sbd=files)
    assert path in message and "No such file" in message


@pytest.mark.parametrize(
    "content, word",
    [
        (mat(GTinst={"Segmentation": rows((0, 0, 0, 0))}), "GTcls"),
        (mat(GTcls={"Boundaries": rows((0, 0, 0, 0))}), "Segmentation"),
        (mat(GTcls={"Segmentation": rows((0, 0, 0, 0)).astype(float)}), "float64"),
        (mat(GTcls={"Segmentation": rows((0, 0, 0, 21))}), "label 21"),
        (mat(GTcls={"Segmentation": np.full(SHAPE, 256, np.uint16)}), "label 256"),
        (mat(GTcls={"Segmentation": rows((1, 2, 3, 4))[:, :5]}), "is 5x4: must be"),
        (mat(GTcls={"Segmentation": rows((1, 2, 3, 4))})[:150], "GTcls"),
        (b"no MATLAB file", "GTcls"),
    ],
)
def test_bad_label_file_of_sbd_is_named(tmp_path, content, word):
    path = f"{SBD.contents}/cls/2008_000008.mat"
    message = problem(tmp_path, sbd=sbd_files() | {path: content})
    assert path in message and word in message


@pytest.mark.parametrize(
    "content, word",
    [
        (png(rows((0, 0, 0, 21)), palette=True), "label 21"),
        (png(rows((0, 0, 0, 0))[:3], palette=True), "is 6x3: must be"),
    ],
)
def test_bad_label_file_of_voc_is_named(tmp_path, content, word):
    path = f"{VOC.contents}/SegmentationClass/2007_000039.png"
    message = problem(tmp_path, "voc", voc=voc_files() | {path: content})
    assert path in message and word in message


def test_archives_are_checked_by_their_published_digests(tmp_path, monkeypatch):
    monkeypatch.setattr(voc2012, "SBD", SBD)
    assert "published is 82b4d87ceb2ed10f6038a1cba92111cb" in problem(tmp_path)
    monkeypatch.setattr(voc2012, "VOC", VOC)
    assert "published is 6cd6e144f989b92b3379bac3b3de84fd" in problem(tmp_path)
