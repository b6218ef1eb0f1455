"""Fingerprints: another one whenever images, labels or their meaning differ."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.array_dataset import ArrayDataset
from encnet_jax.data.dataset_info import CAMVID, SCENES
from encnet_jax.data.datasets import FileDataset, SyntheticScenes
from encnet_jax.evaluate.submission import UnlabeledDataset

INFO = dataclasses.replace(CAMVID, name="folder")
_DESCRIPTIVE = ("splits", "citation", "homepage", "license", "display_channels")


@pytest.fixture
def pairs(tmp_path):
    pairs = []
    for index in range(3):
        pair = tmp_path / f"{index}.jpg", tmp_path / f"{index}.png"
        for path in pair:
            Image.new("L", (4, 4)).save(path)
        pairs.append(pair)
    return pairs


def test_same_files_have_the_same_fingerprint(pairs):
    first = FileDataset(INFO, pairs).fingerprint()
    assert FileDataset(INFO, list(pairs)).fingerprint() == first
    described = dataclasses.replace(INFO, citation="", splits={"train": 3})
    assert FileDataset(described, pairs).fingerprint() == first


@pytest.mark.parametrize(
    "field",
    [field for field in dataclasses.fields(INFO) if field.name not in _DESCRIPTIVE],
    ids=lambda field: field.name,
)
def test_every_field_that_gives_data_a_meaning_counts(pairs, field):
    other = {"label_map": {0: 1}, "label_colors": {(0, 0, 0): 1}}
    info = dataclasses.replace(INFO, **{field.name: other.get(field.name, ("x",))})
    before = FileDataset(INFO, pairs).fingerprint()
    assert FileDataset(info, pairs).fingerprint() != before


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("change", ["content", "time", "name", "missing", "fewer"])
def test_a_changed_file_changes_the_fingerprint(pairs, kind, change):
    before = FileDataset(INFO, pairs).fingerprint()
    path = pairs[1][kind]
    if change == "content":
        path.write_bytes(path.read_bytes() + b"1")
    elif change == "time":  # corrected labels may have the same size
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    elif change == "name":
        renamed = path.rename(path.with_stem("other"))
        pairs[1] = (renamed, pairs[1][1]) if kind == 0 else (pairs[1][0], renamed)
    elif change == "missing":
        path.unlink()
    else:
        del pairs[1]
    assert FileDataset(INFO, pairs).fingerprint() != before


def test_arrays_scenes_and_unlabeled_images(tmp_path):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    labels = np.zeros((2, 4, 4), np.uint8)
    digests = [ArrayDataset(INFO, images, labels).fingerprint()]
    for array in (images, labels):
        array[1, 2, 2] = 1
        digests.append(ArrayDataset(INFO, images, labels).fingerprint())
    digests += [
        SyntheticScenes(SCENES, split, seed).fingerprint()
        for split in ("validation", "test")
        for seed in (0, 1)
    ]
    for name in ("a.png", "b.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
        digests.append(UnlabeledDataset(INFO, tmp_path).fingerprint())
    assert len(set(digests)) == len(digests) == 9
