"""Data set objects: the forms of their examples, and batches made of them."""

import contextlib
import dataclasses
import io
import itertools
import logging
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data import object_check
from encnet_jax.data.array_dataset import load_arrays
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.object_dataset import ObjectDataset, as_datasets
from encnet_jax.errors import UserError
from encnet_jax.predict.read_image import read_image
from tests.data import geometry
from tests.data.png_files import make_png
from tests.data.test_loader import INFO, assert_equal, batches, labeled_images

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (6, 8, 3), np.uint8)
GRAY = RNG.integers(0, 256, (6, 8), np.uint8)
LABELS = RNG.integers(0, 3, (6, 8), np.uint8)
NAMES = ("sky", "leaf", "stem")
_ORIENTATION = 0x0112


class Tensor:
    """An array of another library."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __array__(self, dtype=None, copy=None):
        return self.array


class Named(NamedTuple):
    image: np.ndarray
    label: np.ndarray
    path: str = "a.png"


class Source:
    """What a Grain source or a PyTorch data set look like."""

    def __init__(self, examples, **attributes):
        self._examples = examples
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]


def opened(*examples, names=NAMES, **settings):
    return as_datasets([*examples], None, names, **settings)[0]


def turned(array, orientation=6):
    """Returns an image that its EXIF orientation, 6 or 3, turns to `array`."""
    quarters = {6: 1, 3: 2}[orientation]  # 6: shown turned clockwise
    image = Image.fromarray(np.rot90(array, quarters).copy())
    image.getexif()[_ORIENTATION] = orientation
    return image


def test_image_turned_without_its_label_is_named_once(caplog):
    dataset = opened((turned(IMAGE, 3), LABELS))
    dataset[0]
    assert caplog.messages == [
        "dataset[0]: image: turned by its EXIF orientation 3, and its label is not: "
        "check that they still cover each other"
    ]


def test_image_and_label_turned_alike_are_not_named(caplog):
    image, label = turned(IMAGE, 3), turned(LABELS.astype(np.uint8), 3)
    opened((image, label))
    assert not caplog.messages


def test_size_error_of_a_turned_image_names_exif():
    with pytest.raises(
        UserError, match="EXIF orientation: 6 of the image, 1 of the la"
    ):
        opened((turned(IMAGE), np.rot90(LABELS)))


@pytest.mark.parametrize(
    ("image", "pixels"),
    [
        (IMAGE, IMAGE),
        (IMAGE.astype(int), IMAGE),
        (IMAGE.tolist(), IMAGE),
        (Tensor(IMAGE.transpose(2, 0, 1)), IMAGE),
        (Image.fromarray(IMAGE), IMAGE),
        (Image.fromarray(IMAGE).convert("RGBA"), IMAGE),
        (turned(IMAGE), IMAGE),
        (GRAY, np.stack([GRAY] * 3, -1)),
        (GRAY[..., None], np.stack([GRAY] * 3, -1)),
        (GRAY[None], np.stack([GRAY] * 3, -1)),
        (Image.fromarray(GRAY), np.stack([GRAY] * 3, -1)),
    ],
)
def test_images_of_all_forms_become_rgb(image, pixels):
    example = opened((image, LABELS))[0]
    np.testing.assert_array_equal(example.image, pixels)
    assert example.image.dtype == np.uint8 and example.image.flags.c_contiguous
    assert example.name == "dataset[0]"


def palette(labels):
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel().tolist())
    return image


@pytest.mark.parametrize(
    "label",
    [
        LABELS,
        LABELS.astype(np.int64),
        LABELS.tolist(),
        LABELS[None],
        LABELS[..., None],
        Tensor(LABELS.astype(np.int32)),
        Image.fromarray(LABELS),
        Image.fromarray(LABELS.astype(np.int32)),
        palette(LABELS),
        turned(LABELS),
    ],
)
def test_labels_of_all_forms_become_classes(label):
    found = opened((IMAGE, label))[0].labels
    np.testing.assert_array_equal(found, LABELS)
    assert found.dtype == np.uint8


@pytest.mark.parametrize(
    "mask", [LABELS == 1, Image.fromarray(LABELS == 1)], ids=["array", "mode 1"]
)
def test_boolean_masks_are_two_classes(mask):
    dataset = opened((IMAGE, mask), names=("ground", "leaf"))
    np.testing.assert_array_equal(dataset[0].labels, LABELS == 1)


@pytest.mark.parametrize(
    "example",
    [
        (IMAGE, LABELS),
        [IMAGE, LABELS],
        {"image": IMAGE, "label": LABELS, "id": 3},
        {"img": IMAGE, "mask": LABELS},
        {"pixel_values": IMAGE, "annotation": LABELS, "scene_category": 1},
        Named(IMAGE, LABELS),
    ],
)
@pytest.mark.parametrize("kind", [list, tuple, Source])
def test_pairs_and_mappings(example, kind):
    dataset, scored = as_datasets(kind([example]), None, NAMES)
    assert scored is dataset and len(dataset) == 1
    np.testing.assert_array_equal(dataset[0].image, IMAGE)
    np.testing.assert_array_equal(dataset[0].labels, LABELS)


@pytest.mark.parametrize(
    ("ignore_label", "label", "expected"),
    [(None, 255, 255), (255, 255, 255), (-1, -1, 255), (2, 2, 255), (None, 2, 2)],
)
def test_ignored_label_is_the_one_named(ignore_label, label, expected):
    labels = LABELS.astype(int)
    labels[labels == 2] = label
    example = opened((IMAGE, labels), ignore_label=ignore_label)[0]
    np.testing.assert_array_equal(
        example.labels, np.where(LABELS == 2, expected, LABELS)
    )


def test_classes_of_images():
    values = [2, np.int64(0), np.array(1), Tensor(np.array(2))]
    for value in values:
        dataset = opened((GRAY, value))
        assert dataset.info.task == "classification"
        assert dataset[0].labels.shape == () and dataset[0].labels == int(
            np.asarray(value)
        )


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((IMAGE / 255, LABELS), "image is ndarray float64 .6, 8, 3.; must be a Pillow"),
        (
            (IMAGE.astype(int) * 2, LABELS),
            r"image: values \d+ to \d+; allowed are 0 to 255",
        ),
        ((IMAGE[..., :2], LABELS), r"image is ndarray uint8 \(6, 8, 2\)"),
        ((IMAGE[:0], LABELS), r"image is ndarray uint8 \(0, 8, 3\)"),
        ((Image.fromarray(GRAY.astype(np.uint16)), LABELS), "image has mode I;16"),
        ((b"\x89PNG", LABELS), "image is bytes; must be"),
        ((None, LABELS), "image is NoneType"),
        ((IMAGE, LABELS[1:]), "image is 8x6 pixels and its label is 8x5: must be"),
        ((IMAGE, LABELS / 1), "label: float64, 0.0 to 2.0; must be integers"),
        ((IMAGE, LABELS + 1), "class 3; there are 3 names"),
        ((IMAGE, LABELS.astype(int) - 1), "label: int64, -1 to 1"),
        ((IMAGE, Image.fromarray(IMAGE)), "label is an image of mode RGB; must be"),
        ((IMAGE, 1), r"label is int; must be \(h, w\)"),
        ((IMAGE, "leaf"), "label is str"),
        ((IMAGE, LABELS, 0), " is tuple; must be an image and a label, or a mapping"),
        (IMAGE, r" is ndarray uint8 \(6, 8, 3\); must be"),
        ({"image": IMAGE}, "keys image; must have exactly one of label, labels"),
        ({"image": IMAGE, "label": 1, "mask": LABELS}, "keys image, label, mask; must"),
        ({"photo": IMAGE, "label": 1}, "keys photo, label; must .* image, img"),
    ],
)
def test_invalid_example_is_named_with_what_is_wrong(example, message):
    good = (IMAGE, LABELS)
    with pytest.raises(UserError, match=rf"^dataset\[1\]:? ?{message.lstrip()}"):
        opened(good, example)
    with pytest.raises(UserError, match=r"^validation\[1\]"):
        as_datasets([good], [good, example], NAMES)


def test_masked_values_are_not_brought_back():
    label = np.ma.masked_array(LABELS, LABELS == 1)
    message = r"^dataset\[0\]: label: masked values; pass .filled\(value\) and ignore_l"
    for each in (label, [*label]):
        with pytest.raises(UserError, match=message):
            opened((IMAGE, each))
    filled = opened((IMAGE, label.filled(255)))[0].labels  # as the message says
    np.testing.assert_array_equal(filled, np.where(LABELS == 1, 255, LABELS))
    image = np.ma.masked_array(IMAGE, IMAGE > 200)
    message = r"^dataset\[0\]: image: masked values; pass .filled\(value\)$"
    for settings in ({}, {"value_range": (0, 255)}):
        with pytest.raises(UserError, match=message):
            opened((image, LABELS), **settings)
    nothing_hidden = np.ma.masked_array(IMAGE, False), np.ma.masked_array(LABELS, False)
    np.testing.assert_array_equal(opened(nothing_hidden)[0].image, IMAGE)


def test_images_without_a_class_are_refused():
    with pytest.raises(UserError, match=r"dataset\[1\]: an image without a class"):
        opened((IMAGE, 1), (IMAGE, 255))
    with pytest.raises(UserError, match=r"dataset\[1\]: label is list; must be one cl"):
        opened((IMAGE, 1), (IMAGE, [0, 1]))


@pytest.mark.parametrize("first", [0, 1])
def test_error_of_the_object_names_the_index_and_keeps_its_cause(first):
    class Broken(list):
        def __getitem__(self, index):
            if index >= first:
                raise KeyError("no such file")
            return super().__getitem__(index)

    message = rf"^dataset\[{first}\]: KeyError: 'no such file'"
    with pytest.raises(UserError, match=message) as caught:
        as_datasets(Broken([(IMAGE, LABELS)] * 2), None, NAMES)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter([(IMAGE, LABELS)]), "list_iterator lacks __len__ or __getitem__"),
        ({"train": [1], "test": [2]}, "a dict of train, test; pass one of them"),
        ([], "is empty; at least one example is needed"),
        (
            [(IMAGE, LABELS * 0 + 255)] * 2,
            "labels of 2 examples: nothing but 0 and 255",
        ),
    ],
)
def test_objects_that_are_no_data_sets_are_named(dataset, message):
    with pytest.raises(UserError, match=f"^dataset: {message}"):
        as_datasets(dataset, None, NAMES)
    with pytest.raises(UserError, match=f"^validation: {message}"):
        as_datasets([(IMAGE, LABELS)], dataset, NAMES)


def test_class_names_come_from_the_object_or_are_demanded():
    pairs = [(IMAGE, 1), (IMAGE, 0)]
    dataset, _ = as_datasets(Source(pairs, classes=["cat", "dog"]))
    assert dataset.info.class_names == ("cat", "dog")
    dataset, _ = as_datasets(Source(pairs, classes=["cat", "dog"]), None, ("a", "b"))
    assert dataset.info.class_names == ("a", "b")
    with pytest.raises(UserError, match="^validation: class_names dog, cat; .* cat, d"):
        as_datasets(
            *(Source(pairs, classes=c) for c in (["cat", "dog"], ["dog", "cat"]))
        )
    with pytest.raises(UserError, match="^class_names: missing"):
        as_datasets(pairs)
    with pytest.raises(UserError, match="^class_names='leaf': must be a list, one"):
        as_datasets(pairs, None, "leaf")
    for names in (("a", "b", "a"), ("a", " "), ("a", "\ud800")):
        message = (
            f"^class_names: {re.escape(repr(names[-1]))}: must be a name, given once"
        )
        with pytest.raises(UserError, match=message):
            as_datasets(pairs, None, names)
    # The classes of images are not those of their masks.
    with pytest.raises(UserError, match="^class_names: missing"):
        as_datasets(Source([(IMAGE, LABELS)], classes=["cat", "dog", "cow"]))


def test_a_data_set_of_the_package_goes_with_an_object():
    info = DatasetInfo("known", NAMES, ((0, 0, 0),) * 3, {}, {7: 0, 8: 1, 9: 2})
    own = ObjectDataset(info, [(IMAGE, LABELS)])
    dataset, scored = as_datasets(own, [(IMAGE, LABELS)])
    assert dataset is own and scored.info.class_names == NAMES
    np.testing.assert_array_equal(scored[0].labels, LABELS)


@pytest.mark.parametrize(
    "other, message",
    [
        (
            dict(class_names=NAMES[::-1]),
            "class_names stem, leaf, sky; the other split h",
        ),
        (dict(task="classification"), "task classification; the other split has segm"),
    ],
)
def test_data_sets_of_other_classes_do_not_go_together(other, message):
    info = DatasetInfo("known", NAMES, ((0, 0, 0),) * 3, {})
    splits = [
        ObjectDataset(each, [(IMAGE, LABELS)])
        for each in (info, dataclasses.replace(info, **other))
    ]
    with pytest.raises(UserError, match=f"^validation: {message}"):
        as_datasets(*splits)


def test_names_given_for_objects_are_those_of_a_data_set_beside_them():
    info = DatasetInfo("known", NAMES, ((0, 0, 0),) * 3, {})
    known, objects = ObjectDataset(info, [(IMAGE, LABELS)]), [(IMAGE, LABELS)]
    as_datasets(known, objects, NAMES)
    other = NAMES[::-1]
    message = f"^class_names: {', '.join(other)}; the Dataset has sky, leaf, stem"
    for splits in ((known, objects), (objects, known), (known, known), (known,)):
        with pytest.raises(UserError, match=message):
            as_datasets(*splits, class_names=other)
    with pytest.raises(UserError, match="^ignore_label=0: has no effect on a Dataset"):
        as_datasets(known, known, NAMES, ignore_label=0)
    _, scored = as_datasets(known, objects, NAMES, ignore_label=0)
    np.testing.assert_array_equal(scored[0].labels, np.where(LABELS == 0, 255, LABELS))


def test_object_with_augmentation_of_its_own_is_warned_of(caplog):
    class Random(Source):
        def __getitem__(self, index):
            return RNG.integers(0, 256, IMAGE.shape, np.uint8), LABELS

    opened((IMAGE, LABELS))
    assert not caplog.records
    as_datasets(Random([0]), None, NAMES)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "dataset[0] is another each time it is read" in record.message


def test_object_that_flips_is_not_taken_for_unsafe(caplog):
    class Flipped(Source):
        def __getitem__(self, index):
            step = -1 if RNG.random() < 0.5 else 1
            return IMAGE[:, ::step], LABELS[:, ::step]

    dataset, _ = as_datasets(Flipped(range(16)), None, NAMES)
    (record,) = caplog.records
    assert "is another each time it is read" in record.message
    assert not dataset.one_at_a_time


def test_example_that_is_random_is_named(caplog):
    class LaterFlipped(Source):
        def __getitem__(self, index):
            step = -1 if index > 2 and RNG.random() < 0.5 else 1
            return IMAGE[:, ::step], LABELS[:, ::step]

    as_datasets(LaterFlipped(range(40)), None, NAMES)
    (record,) = caplog.records
    number = int(re.search(r"dataset.(\d+). is another each", record.message)[1])
    assert number > 2


def test_reads_are_watched_for_a_moment_only(monkeypatch):
    """Python runs many times slower meanwhile."""
    monkeypatch.setattr(object_check, "_WATCHED_SECONDS", 0.5)

    def is_watched():
        return sys.gettrace() is not None

    watched, deadline = [True], time.monotonic() + 60
    with object_check._paused():
        while watched[-1] and time.monotonic() < deadline:
            watched.append(is_watched())
    assert watched[1] and not watched[-1] and sys.gettrace() is None


class OneFile:
    """Examples in a file that is sought, then read."""

    def __init__(self, file, lock=None):
        self.file = file
        self.lock = lock or contextlib.nullcontext()

    def __len__(self):
        return 40

    def __getitem__(self, index):
        with self.lock:
            self.file.seek(index * 6 * 8 * 4)
            data = self.file.read(6 * 8 * 4)
        values = np.frombuffer(data, np.uint8).reshape(6, 8, 4)
        return values[..., :3], values[..., 3] % 3


@pytest.fixture
def one_file(tmp_path):
    file = tmp_path / "examples"
    file.write_bytes(RNG.integers(0, 256, 40 * 6 * 8 * 4, np.uint8).tobytes())
    with file.open("rb", buffering=0) as opened_once:
        yield opened_once


def test_object_that_is_not_safe_in_threads_is_read_by_one_at_a_time(one_file, caplog):
    objects = OneFile(one_file)
    expected = [objects[index] for index in range(40)]
    dataset, scored = as_datasets(objects, [(IMAGE, LABELS)], NAMES)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "\n" not in record.message
    assert "dataset is not safe to read in threads: dataset[" in record.message
    assert dataset.one_at_a_time and scored.one_at_a_time  # they may share the file
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            bands = pool.map(dataset.bands, range(40))
            examples = pool.map(dataset.encoded, range(40))
            for found, pair, (image, labels) in zip(bands, examples, expected):
                np.testing.assert_array_equal(found, image)
                np.testing.assert_array_equal(pair[0], image)
                np.testing.assert_array_equal(pair[1], labels)


def test_object_that_is_read_by_one_at_a_time_can_be_checked_again(caplog):
    class LaterRandom(Source):
        def __getitem__(self, index):
            image = RNG.integers(0, 256, IMAGE.shape, np.uint8) if index else IMAGE
            return image, LABELS

    info = DatasetInfo("mine", NAMES, (), {})
    for objects, warned in (
        (Source([(IMAGE, LABELS)]), []),
        (LaterRandom([0, 1]), [1]),
    ):
        caplog.clear()
        dataset = ObjectDataset(info, objects)
        dataset.one_at_a_time = True
        dataset.check()
        found = [record.message for record in caplog.records]
        assert len(found) == len(warned) and dataset.one_at_a_time
        for index, message in zip(warned, found):
            assert f"dataset[{index}] is another each time" in message


def test_object_with_a_lock_of_its_own_is_read_in_threads(one_file, caplog):
    dataset, _ = as_datasets(OneFile(one_file, threading.Lock()), None, NAMES)
    assert not caplog.records and not dataset.one_at_a_time


def test_object_of_one_thread_is_refused(caplog):
    class Bound(Source):
        def __getitem__(self, index):
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError("created in another thread")
            return IMAGE, LABELS

    with pytest.raises(UserError, match=r"^dataset\[0\]: RuntimeError: created in"):
        as_datasets(Bound([0, 1]), None, NAMES)


def loaded(file):
    """Returns an image as Hugging Face `datasets` decode it."""
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def png(values, depth=8, color_type=2):
    return make_png(np.asarray(values), depth, color_type)


DARK = IMAGE // 16  # the upper 8 of 16 bits, of which 12 are used


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_dark_color_of_16_bits_that_others_have_loaded_is_refused(color_type, channels):
    values = np.dstack([IMAGE, GRAY])[..., -channels:].astype(int) * 16
    images = [loaded(png(v, 16, color_type)) for v in (values, values[::-1])]
    message = r"^dataset: 2 images loaded from files have no value above \d\d: Pillow"
    with pytest.raises(UserError, match=message) as caught:
        opened(*((image, LABELS) for image in images))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):  # as bands too
        settings = dict(channels=len(images[0].getbands()), value_range=(0, 255))
        opened(*((image, LABELS) for image in images), **settings)
    arrays = [(np.asarray(image.convert("RGB")), LABELS) for image in images]
    opened(*arrays)  # as the message says


def test_dark_images_of_8_bits_are_read():
    file = png(DARK)
    for image in (Image.open(io.BytesIO(file)), Image.fromarray(DARK), DARK):
        np.testing.assert_array_equal(opened((image, LABELS))[0].image, DARK)
    jpeg = io.BytesIO()
    Image.fromarray(DARK).save(jpeg, "JPEG")
    opened((loaded(jpeg.getvalue()), LABELS))
    opened((loaded(png(DARK * 0)), LABELS))  # black
    dark, bright = (loaded(png(image)) for image in (DARK, IMAGE))
    dataset = opened((dark, LABELS), (bright, LABELS))  # a night among days
    np.testing.assert_array_equal(dataset[0].image, DARK)


@pytest.mark.parametrize(("depth", "step"), [(2, 85), (4, 17)])
def test_gray_labels_of_few_bits_are_refused(depth, step):
    names = [f"class {k}" for k in range(100)]  # Pillow makes 85 or 17 of 1
    label = Image.open(io.BytesIO(make_png(LABELS, depth)))
    with pytest.raises(UserError, match=rf"label: gray.*np.asarray\(image\) // {step}"):
        as_datasets([(IMAGE, label)], class_names=names)
    later = Image.open(io.BytesIO(make_png(LABELS, depth)))  # not the first, either
    with pytest.raises(UserError, match=r"^dataset\[1\]: label: gray values"):
        as_datasets([(IMAGE, LABELS), (IMAGE, later)], class_names=names)
    dataset, _ = as_datasets([(IMAGE, np.asarray(label) // step)], class_names=names)
    np.testing.assert_array_equal(dataset[0].labels, LABELS)


@pytest.mark.parametrize("value_range", [(), (0, 255)])
def test_opened_images_of_16_bits_per_color_are_refused(value_range):
    image = Image.open(io.BytesIO(png(IMAGE.astype(int) * 16, 16)))
    with pytest.raises(UserError, match=r"^dataset\[0\]: image: 16 bits per color"):
        opened((image, LABELS), value_range=value_range)


def test_range_of_more_bits_than_pillow_keeps_is_refused():
    image = loaded(png(IMAGE.astype(int) * 16, 16))
    for value_range in ((0, 4095), ((0, 255), (0, 4095), (0, 255))):
        with pytest.raises(UserError, match=r"^dataset\[0\]: image: .* 8 bits.* 4095:"):
            opened((image, LABELS), value_range=value_range)
    bright = loaded(png(IMAGE.astype(int) * 257, 16))
    opened((bright, LABELS), value_range=(0, 255))
    opened((IMAGE.astype(np.uint16) * 16, LABELS), value_range=(0, 4095))
    gray = Image.fromarray(GRAY.astype(np.uint16) * 16)
    opened((gray, LABELS), value_range=(0, 4095), channels=1)
    info = opened((IMAGE, LABELS), value_range=(0, 4095)).info
    with pytest.raises(UserError, match="^image: an image of mode RGB, 8 bits, and"):
        read_image(image, info)


@pytest.mark.parametrize("padded_size", [None, 0], ids=["host", "device"])
@pytest.mark.parametrize("shares", [1, 2])
def test_batches_are_those_of_files_with_the_same_pixels(padded_size, shares):
    pairs = labeled_images(5)
    for process_index in range(shares):
        settings = dict(
            augmentation=geometry.GEOMETRY,
            padded_size=padded_size,
            process_index=process_index,
            process_count=shares,
        )
        files = batches(4, pairs, **settings)
        assert_equal(files, batches(4, ObjectDataset(INFO, pairs), **settings))
        later = batches(2, ObjectDataset(INFO, pairs), start_step=2, **settings)
        assert_equal(files[2:], later)


def test_class_batches_hold_the_pixels_and_classes():
    images = RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)
    dataset = opened(*zip(images, [0, 1, 2, 1]))
    plain = Augmentation(base_size=8, crop_size=8, scale_range=(1, 1), flip=False)
    (batch,) = batches(1, dataset, plain)
    found = {(image.tobytes(), int(c)) for image, c in zip(*batch.values())}
    assert found == {(i.tobytes(), c) for i, c in zip(images, [0, 1, 2, 1])}


def test_unreadable_example_of_a_batch_is_named():
    pairs = labeled_images(3) + [(IMAGE, LABELS[1:])]
    with pytest.raises(UserError, match=r"^dataset\[3\]: image is 8x6 pixels"):
        batches(1, ObjectDataset(INFO, pairs))


def test_threads_share_images_that_are_not_yet_decoded(tmp_path):
    noise = RNG.integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    Image.fromarray(noise[..., 0] % 12).save(tmp_path / "label.png")
    together = threading.Barrier(4)

    def read(_):
        together.wait()
        return dataset[0]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(3):
            files = [Image.open(tmp_path / f"{n}.png") for n in ("image", "label")]
            dataset = ObjectDataset(INFO, [files])
            with ThreadPoolExecutor(4) as pool:
                for example in pool.map(read, range(4)):
                    np.testing.assert_array_equal(example.image, noise)
                    np.testing.assert_array_equal(example.labels, noise[..., 0] % 12)
    finally:
        sys.setswitchinterval(interval)


def test_cached_arrays_are_the_examples():
    pairs = labeled_images(3)
    arrays = load_arrays(ObjectDataset(INFO, pairs))
    for name, expected in zip(("images", "labels"), zip(*pairs)):
        np.testing.assert_array_equal(arrays[name], np.stack(expected))
    with pytest.raises(UserError, match=r"dataset\[3\] has shape \(6, 8, 3\)"):
        load_arrays(ObjectDataset(INFO, [*pairs, (IMAGE, LABELS)]))


def test_hugging_face_splits():
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(IMAGE), Image.fromarray(IMAGE[::-1].copy())]
    masks = [Image.fromarray(LABELS), Image.fromarray(LABELS[::-1].copy())]
    split = datasets.Dataset.from_dict({"image": images, "annotation": masks})
    nested = datasets.Dataset.from_dict(
        {"image": [IMAGE, IMAGE[::-1]], "annotation": [LABELS, LABELS[::-1]]}
    )
    for form in (
        split,
        split.with_format("numpy"),
        nested,
        nested.with_format("numpy"),
    ):
        dataset, _ = as_datasets(form, None, NAMES)
        for index, step in enumerate((1, -1)):
            np.testing.assert_array_equal(dataset[index].image, IMAGE[::step])
            np.testing.assert_array_equal(dataset[index].labels, LABELS[::step])
    with pytest.raises(UserError, match="a DatasetDict of train, test"):
        as_datasets(datasets.DatasetDict(train=split, test=split), None, NAMES)
    with pytest.raises(UserError, match="IterableDataset lacks __len__"):
        as_datasets(split.to_iterable_dataset(), None, NAMES)
    features = datasets.Features(
        img=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"])
    )
    split = datasets.Dataset.from_dict({"img": images, "label": [1, 0]}, features)
    dataset, _ = as_datasets(split)
    assert dataset.info.class_names == ("cat", "dog")
    assert [int(e.labels) for e in itertools.islice(dataset, 2)] == [1, 0]
