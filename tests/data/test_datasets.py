"""Tests of the data sets, on a fake folder in the layout of CamVid."""

import shutil
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.array_dataset import ArrayDataset
from encnet_jax.data.bands import declare_bands
from encnet_jax.data.dataset_info import CAMVID, IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import FileDataset, SyntheticScenes, read_ahead
from encnet_jax.data.file_pairs import pair_files
from encnet_jax.data.label_map import map_labels
from encnet_jax.data.registry import (
    DATASETS,
    LocalDataset,
    dataset_info,
    open_dataset,
)
from encnet_jax.errors import UserError
from tests.data.png_files import make_png

RNG = np.random.default_rng(0)


def write(root, name, labels, suffix="png", split="train", size=None):
    """Writes a pair whose image shows its labels; returns both paths."""
    for folder in (split, f"{split}annot"):
        (root / folder).mkdir(exist_ok=True)
    image = np.repeat(labels[..., None] * 20, 3, -1).astype(np.uint8)
    if size:
        image = np.zeros((*size, 3), np.uint8)
    paths = root / split / f"{name}.{suffix}", root / f"{split}annot" / f"{name}.png"
    Image.fromarray(image).save(paths[0])
    Image.fromarray(labels.astype(np.uint8)).save(paths[1])
    return paths


@pytest.fixture
def camvid(tmp_path):
    """Returns a folder of two training images, a PNG and a JPEG, with all classes."""
    for name, suffix in (("0002", "png"), ("0001", "JPG")):
        write(tmp_path, name, RNG.integers(0, 12, (6, 8)), suffix)
    return tmp_path


def one_line_error(folder, split="train"):
    """Returns the error message of opening a split."""
    with pytest.raises(UserError) as raised:
        open_dataset("camvid", split, str(folder))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_camvid_pairs_files_sorted_by_name(camvid):
    dataset = open_dataset("camvid", "train", str(camvid))
    assert len(dataset) == 2 and dataset.info is CAMVID
    names = [dataset[index].name for index in range(2)]
    assert names == ["0001", "0002"]


def test_camvid_joins_training_and_validation(camvid):
    for folder in ("train", "trainannot"):
        shutil.copytree(camvid / folder, camvid / folder.replace("train", "val"))
    dataset = open_dataset("camvid", "trainval", str(camvid))
    folders = [image.parent.name for image, _ in dataset.pairs]
    count = len(open_dataset("camvid", "train", str(camvid)))
    assert folders == ["train"] * count + ["val"] * count
    assert dataset.pairs[-1][1].parent.name == "valannot"


def test_camvid_maps_void_to_the_ignored_label_and_nothing_else(camvid):
    dataset = open_dataset("camvid", "train", str(camvid))
    for index, name in enumerate(("0001", "0002")):
        stored = np.asarray(Image.open(camvid / "trainannot" / f"{name}.png"))
        example = dataset[index]
        expected = np.where(stored == 11, IGNORE_LABEL, stored)
        assert (stored == 11).any() and example.labels.dtype == np.uint8
        np.testing.assert_array_equal(example.labels, expected)
    np.testing.assert_array_equal(
        example.image, np.repeat(stored[..., None] * 20, 3, -1)
    )


def test_encoded_image_is_that_of_the_file(camvid):
    dataset = open_dataset("camvid", "train", str(camvid))
    encoded, labels = dataset.encoded(0)
    assert encoded == (camvid / "train" / "0001.JPG").read_bytes()
    np.testing.assert_array_equal(labels, dataset[0].labels)


def test_ignored_label_in_the_file_stays(camvid):
    write(camvid, "0003", np.full((4, 4), IGNORE_LABEL))
    labels = open_dataset("camvid", "train", str(camvid))[2].labels
    assert (labels == IGNORE_LABEL).all()


def test_camvid_folder_is_found_by_the_environment(camvid, monkeypatch):
    monkeypatch.setenv("ENCNET_CAMVID", str(camvid))
    assert len(open_dataset("camvid", "train")) == 2
    monkeypatch.setenv("ENCNET_CAMVID", "gs://bucket")
    with pytest.raises(UserError, match="^ENCNET_CAMVID=gs://bucket: must be"):
        open_dataset("camvid", "train")
    monkeypatch.setenv("ENCNET_CAMVID", "/nowhere")
    assert len(open_dataset("camvid", "train", str(camvid))) == 2  # data_dir wins.


def test_no_camvid_folder_names_both_ways_to_give_it(monkeypatch):
    monkeypatch.delenv("ENCNET_CAMVID", raising=False)
    with pytest.raises(UserError, match="data.data_dir.*ENCNET_CAMVID"):
        open_dataset("camvid", "train")


def test_missing_label_file_is_named_with_its_image(camvid):
    label = camvid / "trainannot" / "0001.png"
    label.unlink()
    message = one_line_error(camvid)
    assert str(label) in message and str(camvid / "train" / "0001.JPG") in message


def test_different_sizes_name_both_files(camvid):
    image, label = write(camvid, "0003", np.zeros((4, 6), int), size=(5, 7))
    message = one_line_error(camvid)
    assert f"{image} is 7x5" in message and f"{label} is 6x4" in message


def write_turned(root, name, turned, label_turned, size=(6, 8)):
    """Writes a pair with EXIF orientations; returns both paths and the labels."""
    labels = RNG.integers(0, 12, size)
    image, label = write(root, name, labels)
    pixels = np.asarray(Image.open(image))
    exifs = [Image.Exif(), Image.Exif()]
    exifs[0][274], exifs[1][274] = turned, label_turned
    Image.fromarray(pixels).save(image, exif=exifs[0])
    Image.open(label).save(label, exif=exifs[1])
    return image, label, labels


@pytest.mark.parametrize(
    "orientation, upright",
    [(3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, 3))],
)
def test_labels_are_turned_with_their_images(tmp_path, caplog, orientation, upright):
    _, _, labels = write_turned(tmp_path, "a", orientation, orientation)
    example = open_dataset("camvid", "train", str(tmp_path))[0]
    expected = np.where(upright(labels) == 11, IGNORE_LABEL, upright(labels))
    np.testing.assert_array_equal(example.labels, expected)
    np.testing.assert_array_equal(example.image[..., 0], upright(labels) * 20)
    assert not caplog.messages


@pytest.mark.parametrize(("turned", "label_turned"), [(6, 1), (1, 8), (5, 3)])
def test_size_error_names_exif(tmp_path, turned, label_turned):
    image, label, _ = write_turned(tmp_path, "a", turned, label_turned)
    message = one_line_error(tmp_path)
    assert f"{image} is " in message and f"{label} is " in message
    wanted = f"EXIF orientation: {turned} of the image, {label_turned} of the labels"
    assert wanted in message


@pytest.mark.parametrize(
    "turned, message",
    [
        (3, "turned by its EXIF orientation 3, "),
        (6, "EXIF orientation: 6 of the image"),
    ],
)
def test_bands_turned_without_their_labels_are_named(tmp_path, caplog, turned, message):
    write_turned(tmp_path, "a", turned, 1)
    info = dataset_info("camvid", str(tmp_path))
    bands = declare_bands(info, 3, (0, 255))
    if turned == 6:
        with pytest.raises(UserError, match=message):
            open_dataset("camvid", "train", str(tmp_path), bands=bands)
        return
    dataset = open_dataset("camvid", "train", str(tmp_path), bands=bands)
    assert dataset[0].image.dtype == np.uint16
    assert len(caplog.messages) == 1 and message in caplog.text


def test_images_turned_without_their_labels_are_named_once(tmp_path, caplog):
    names = [f"{n}" for n in range(8)]
    for name, turned in zip(names, (2, 3, 4, 5, 6, 7, 8, 1)):
        write_turned(tmp_path, name, turned, 1, (6, 6) if turned > 4 else (6, 8))
    dataset = open_dataset("camvid", "train", str(tmp_path))
    for index in range(len(dataset)):
        assert dataset[index].labels.shape == dataset[index].image.shape[:2]
    assert len(caplog.messages) == 7
    for name, turned in zip(names, range(2, 9)):
        start = f"{tmp_path / 'train' / name}.png: turned by its EXIF orientation"
        assert (
            sum(line.startswith(f"{start} {turned},") for line in caplog.messages) == 1
        )


def test_labels_drawn_on_the_upright_image_are_no_reason_to_warn(tmp_path, caplog):
    image, label, _ = write_turned(tmp_path, "a", 6, 1)
    upright = RNG.integers(0, 11, (8, 6), np.uint8)  # of another size than as stored
    Image.fromarray(upright).save(label)
    example = open_dataset("camvid", "train", str(tmp_path))[0]
    np.testing.assert_array_equal(example.labels, upright)
    assert not caplog.messages


def test_warnings_of_many_turned_images_end(tmp_path, caplog):
    for n in range(13):
        write_turned(tmp_path, f"{n:02}", 3, 1)
    open_dataset("camvid", "train", str(tmp_path))
    assert len(caplog.messages) == 10
    assert [m.endswith("not listed") for m in caplog.messages] == [False] * 9 + [True]


def test_labels_of_few_bits_and_any_suffix_are_the_classes(tmp_path):
    labels = RNG.integers(0, 11, (6, 8))
    _, label = write(tmp_path, "0003", labels)
    label.unlink()
    label.with_suffix(".PNG").write_bytes(make_png(labels, 4))
    dataset = open_dataset("camvid", "train", str(tmp_path))
    np.testing.assert_array_equal(dataset[0].labels, labels)


def test_palette_colors_play_no_part_where_labels_are_indices_by_definition(tmp_path):
    labels = RNG.integers(0, 11, (6, 8)).astype(np.uint8)
    _, label = write(tmp_path, "0003", labels)
    image = Image.fromarray(labels)
    image.putpalette(np.uint8(CAMVID.colors)[::-1].ravel().tolist())
    image.save(label)
    dataset = open_dataset("camvid", "train", str(tmp_path))
    np.testing.assert_array_equal(dataset[0].labels, labels)


@pytest.mark.parametrize("value", [12, 100, 254])
def test_label_outside_the_classes_names_file_and_value(camvid, value):
    labels = np.zeros((4, 6), int)
    labels[2, 3] = value
    _, label = write(camvid, "0003", labels)
    message = one_line_error(camvid)
    assert str(label) in message and f"label {value};" in message
    assert "0 to 10" in message and "11, 255" in message


def test_label_image_in_colors_is_named(camvid):
    label = camvid / "trainannot" / "0001.png"
    Image.new("RGB", (8, 6)).save(label)
    message = one_line_error(camvid)
    assert str(label) in message and "mode RGB" in message


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
@pytest.mark.parametrize("folder", ["train", "trainannot"])
def test_unreadable_file_is_named(camvid, content, folder):
    path = camvid / folder / "0002.png"
    path.write_bytes(path.read_bytes()[:60] if content == "truncated" else content)
    assert f"{path}: cannot be decoded" in one_line_error(camvid)


def test_empty_split_names_its_folder(camvid):
    (camvid / "val").mkdir()
    (camvid / "valannot").mkdir()
    (camvid / "val" / "notes.txt").write_text("no image")
    assert one_line_error(camvid, "val").startswith(f"{camvid / 'val'}: no images")


@pytest.mark.parametrize("missing", ["test", "testannot"])
def test_missing_folder_is_named(camvid, missing):
    other = {"test": "testannot", "testannot": "test"}[missing]
    (camvid / other).mkdir()
    assert one_line_error(camvid, "test") == f"{camvid / missing}: no such folder"


def test_split_without_pairs_names_its_folder(tmp_path, monkeypatch):
    entry = LocalDataset(CAMVID, lambda info, split, root: FileDataset(info, []), "x/")
    monkeypatch.setitem(DATASETS, "camvid", entry)
    assert one_line_error(tmp_path).startswith(
        f"{tmp_path}: no images of split 'train'"
    )


def test_file_that_vanished_is_named(camvid):
    pairs, _ = pair_files(camvid / "train", camvid / "trainannot")
    pairs[0][0].unlink()
    with pytest.raises(UserError, match=f"{pairs[0][0]}: cannot be read"):
        FileDataset(CAMVID, pairs)[0]


def test_unknown_data_set_and_split_name_the_known_ones():
    with pytest.raises(UserError, match="data.name='cityscape': allowed are scenes"):
        open_dataset("cityscape", "train")
    with pytest.raises(
        UserError, match="split 'valid' of camvid: allowed are train, val"
    ):
        open_dataset("camvid", "valid")


def test_drawn_splits_have_their_sizes_and_are_disjoint():
    datasets = [
        open_dataset("scenes", split, in_memory=True)
        for split in ("train", "validation", "test")
    ]
    assert [len(dataset) for dataset in datasets] == [4000, 400, 400]
    first = [dataset[0] for dataset in datasets]
    names = [example.name for example in first]
    assert names == ["scenes_0_000000", "scenes_0_004000", "scenes_0_004400"]
    assert (first[0].image != first[1].image).any()


def test_drawn_scenes_are_a_function_of_the_seed():
    one, same, other = (
        SyntheticScenes(
            open_dataset("scenes", "train", in_memory=True).info, "train", seed
        )
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one[3].image, same[3].image)
    assert (one[3].image != other[3].image).any()
    pixels, labels = one.encoded(3, raw_labels=True)
    np.testing.assert_array_equal(pixels, one[3].image)
    np.testing.assert_array_equal(labels, one[3].labels)


@pytest.mark.parametrize("raw_ignored", [0, 7])
def test_raw_labels_of_arrays_are_mapped_back_where_255_is_a_class(raw_ignored):
    label_map = {raw_ignored: IGNORE_LABEL, 128: 0, 255: 1}
    info = DatasetInfo("masks", ("a", "b"), (), {}, label_map)
    labels = np.array([[[0, 1, IGNORE_LABEL]]], np.uint8)
    images = np.zeros((1, 1, 3, 3), np.uint8)
    _, raw = ArrayDataset(info, images, labels).encoded(0, raw_labels=True)
    assert raw.tolist() == [[128, 255, raw_ignored]]
    np.testing.assert_array_equal(map_labels(raw, info, "raw"), labels[0])


def test_ignored_labels_of_arrays_without_a_raw_label_are_an_error():
    info = DatasetInfo("masks", ("a", "b"), (), {}, {0: 0, 255: 1})
    images, labels = np.zeros((2, 1, 2, 3), np.uint8), np.zeros((2, 1, 2), np.uint8)
    labels[0], labels[1] = 1, IGNORE_LABEL
    dataset = ArrayDataset(info, images, labels)
    assert dataset.encoded(0, raw_labels=True)[1].tolist() == [[255, 255]]
    with pytest.raises(UserError, match="the label map of 'masks' has none"):
        dataset.encoded(1, raw_labels=True)


@pytest.mark.parametrize("name", ["ade20k", "cifar10", "scenes"])
def test_prepared_data_set_without_tfds_names_the_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=rf"{name} needs .*'encnet-jax\[train\]'"):
        open_dataset(name, "train", str(tmp_path))
    assert not [*tmp_path.iterdir()]


def test_an_abandoned_iterator_does_not_wait_for_its_reads():
    release = threading.Event()
    timer = threading.Timer(5, release.set)
    timer.start()
    results = read_ahead(lambda index: index and release.wait(), range(3))
    assert next(results) == 0
    results.close()
    assert not release.is_set()
    release.set()
    timer.cancel()
