"""Tests of random access to records, and of the stored index."""

import itertools
import os
from types import SimpleNamespace

import numpy as np
import pytest

from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import CIFAR10
from encnet_jax.data.datasets import ClassificationDataset, TFRecordDataset
from encnet_jax.data.sampler import batch_indices
from encnet_jax.errors import UserError
from tests.data.test_loader import INFO, stored

tf = pytest.importorskip("tensorflow")
tfrecord = pytest.importorskip("encnet_jax.data.tfrecord")
loader = pytest.importorskip("encnet_jax.data.loader")


def write(path, contents):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for content in contents:
            writer.write(content)
    return str(path)


@pytest.fixture
def shards(tmp_path):
    """Returns three files with 5, 0 and 3 records of 0 to 30,000 bytes."""
    rng = np.random.default_rng(0)
    lengths = [[0, 1, 30_000, 12, 7000], [], [5000, 4096, 3]]
    return [
        write(tmp_path / f"{n}.tfrecord", [rng.bytes(length) for length in part])
        for n, part in enumerate(lengths)
    ]


@pytest.fixture
def reads(monkeypatch):
    """Returns a list to which each read of a local file is appended."""
    counted, pread = [], os.pread

    def counting(descriptor, count, offset):
        counted.append((offset, count))
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", counting)
    return counted


def contents(paths):
    found = tfrecord.Records(paths)
    return [found[index] for index in range(len(found))]


def read_sequentially(paths):
    """Returns the records as TensorFlow reads them."""
    return [record.numpy() for record in tf.data.TFRecordDataset(paths)]


def flipped(index):
    """Returns an index whose first array is no longer a deflate stream."""
    name, extra = (int.from_bytes(index[i : i + 2], "little") for i in (26, 28))
    start = 30 + name + extra  # of the data, after the header of the ZIP entry
    return index[:start] + b"\xff" * 4 + index[start + 4 :]


def test_records_equal_those_that_tensorflow_reads(shards):
    assert contents(shards) == read_sequentially(shards)
    assert contents(shards) == read_sequentially(shards)  # from the stored index
    assert contents(shards[2:] + shards[:1]) == read_sequentially(
        shards[2:] + shards[:1]
    )


def test_second_start_reads_the_index_and_no_record(shards, reads):
    tfrecord.Records(shards)
    assert reads
    reads.clear()
    found = tfrecord.Records(shards)
    assert len(found) == 8 and not reads
    found[6]
    assert len(reads) == 1


@pytest.mark.parametrize(
    "change", ["more", "fewer files", "no index", "cut", "flipped"]
)
def test_index_of_other_files_is_rebuilt(shards, change):
    tfrecord.Records(shards)
    index = f"{shards[0]}.index"
    if change == "more":
        write(shards[2], [b"first", b"second"])
    elif change == "fewer files":
        shards = shards[:1]
    else:
        with open(index, "rb") as file:
            content = file.read()
        damaged = {"no index": b"no index", "cut": content[:-100]}
        damaged["flipped"] = flipped(content)
        with open(index, "wb") as file:
            file.write(damaged[change])
    assert contents(shards) == read_sequentially(shards)
    assert contents(shards) == read_sequentially(shards)


def test_records_are_read_where_no_index_can_be_written(shards, tmp_path):
    os.mkdir(f"{shards[0]}.index")
    assert contents(shards) == read_sequentially(shards)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{n}.tfrecord" for n in range(3)} | {"0.tfrecord.index"}


def test_file_that_changed_since_it_was_indexed_is_named(shards):
    tfrecord.Records(shards)
    write(shards[2], [b"x" * 4096, b"y" * 5000, b"abc"])  # the same file size
    found = tfrecord.Records(shards)
    with pytest.raises(UserError, match=f"{shards[2]}: .* delete {shards[0]}.index"):
        found[5]


@pytest.mark.parametrize("kept", [-1, 5, 20])
def test_truncated_file_is_named(shards, kept):
    with open(shards[0], "rb") as file:
        content = file.read()
    with open(shards[0], "wb") as file:
        file.write(content[:kept])
    with pytest.raises(UserError, match=f"{shards[0]}: not a complete TFRecord file"):
        tfrecord.Records(shards)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.tfrecord: cannot be read: No such file"):
        tfrecord.Records([str(tmp_path / "none.tfrecord")])


@pytest.mark.parametrize("block", [2**25, 64])
def test_remote_files_are_scanned_in_blocks(shards, monkeypatch, block):
    paths = []
    for path in shards:
        paths.append(f"ram://{block}/{os.path.basename(path)}")
        tf.io.gfile.copy(path, paths[-1])
    monkeypatch.setattr(tfrecord, "_REMOTE_BLOCK", block)
    opened, gfile = [], tf.io.gfile.GFile

    def counting(path, mode):
        opened.append((path, mode))
        return gfile(path, mode)

    monkeypatch.setattr(tf.io.gfile, "GFile", counting)
    assert contents(paths) == read_sequentially(shards)
    # Once to locate and once to read the records of each file; then the index.
    assert len([path for path, _ in opened if path in paths]) <= 2 * len(paths)
    opened.clear()
    found = tfrecord.Records(paths)
    assert opened == [(f"{paths[0]}.index", "rb")]
    assert found[7] == read_sequentially(shards)[7]


def example(index, image):
    """Returns a record of an image with one label."""
    fields = {
        "image": image,
        "label": LABELS[index % 12],
        "id": str(index).encode(),
    }
    features = {
        key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for key, value in fields.items()
    }
    message = tf.train.Example(features=tf.train.Features(feature=features))
    return message.SerializeToString()


LABELS = [stored(np.full((2, 2), label + 100, np.uint8)) for label in range(12)]


def test_late_step_of_a_data_set_of_ade20ks_size_takes_few_reads(tmp_path, reads):
    count, shards = 20_210, 4
    image = stored(np.zeros((2, 2, 3), np.uint8))
    paths = [
        write(tmp_path / f"{n}", (example(i, image) for i in range(n, count, shards)))
        for n in range(shards)
    ]
    split = SimpleNamespace(filepaths=paths)
    builder = SimpleNamespace(info=SimpleNamespace(splits={"train": split}))
    total = sum(map(os.path.getsize, paths))
    TFRecordDataset(INFO, builder, "train")
    # The first start scans the files block by block.
    assert len(reads) <= 1.3 * total / 4096
    reads.clear()
    dataset = TFRecordDataset(INFO, builder, "train")
    augmentation = Augmentation(base_size=2, crop_size=2, scale_range=(1.0, 1.0))
    step = 123_456
    made = loader.train_batches(
        dataset, augmentation, batch_size=16, seed=0, start_step=step
    )
    (batch,) = itertools.islice(made, 1)
    made.close()
    assert len(dataset) == count and 16 <= len(reads) <= 16 * 20
    indices, _ = batch_indices(0, count, 16, step)
    written = [i for n in range(shards) for i in range(n, count, shards)]
    expected = [written[index] % 12 for index in indices]
    np.testing.assert_array_equal(batch["labels"][:, 0, 0], expected)


def test_fingerprint_follows_the_files_and_their_records(tmp_path):
    def fingerprint(*lengths, name="a.tfrecord"):
        path = write(tmp_path / name, [bytes(length) for length in lengths])
        splits = {"train": SimpleNamespace(filepaths=[path])}
        builder = SimpleNamespace(info=SimpleNamespace(splits=splits))
        return TFRecordDataset(INFO, builder, "train").fingerprint()

    first = fingerprint(3, 4)
    assert fingerprint(3, 4) == first
    # Of the last, the file has the same size.
    others = [fingerprint(3, 5), fingerprint(3, 4, name="b.tfrecord")]
    (tmp_path / "a.tfrecord.index").unlink()
    others.append(fingerprint(4, 3))
    assert len({first, *others}) == 4


def test_record_without_a_class_is_named_and_class_0_is_read(tmp_path):
    def record(name, **label):
        found = tf.train.Example()
        features = found.features.feature
        features["id"].bytes_list.value.append(name)
        image = stored(np.zeros((2, 2, 3), np.uint8))
        features["image"].bytes_list.value.append(image)
        for key, value in label.items():
            features[key].int64_list.value.append(value)
        return found.SerializeToString()

    path = write(tmp_path / "0", [record(b"first", label=0), record(b"second")])
    splits = {"train": SimpleNamespace(filepaths=[path])}
    builder = SimpleNamespace(info=SimpleNamespace(splits=splits))
    dataset = ClassificationDataset(CIFAR10, builder, "train")
    assert dataset[0].labels == 0
    with pytest.raises(UserError, match="^second: has no label"):
        dataset[1]
