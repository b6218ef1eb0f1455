"""CIFAR-10 as arrays: packed to be carried, and encoded again as JPEG."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from encnet_jax.data.array_dataset import ArrayDataset, load_arrays
from encnet_jax.data.dataset_info import CIFAR10
from encnet_jax.data.image_io import decode_image
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from encnet_jax.files import check_folder, make_folder, whole_file

_SPLITS = ("train", "test")
_PARTS = ("prefix", "files", "ends", "labels")


def load_split(split: str, data_dir: str | None, images: str | None) -> ArrayDataset:
    """Reads a split into memory.

    Args:
        split: `train` or `test`.
        data_dir: Folder of prepared TFDS data sets; not read if there is a file.
        images: An .npz file that `pack` wrote, or one with `train_images`, uint8
            (n, 32, 32, 3), `train_labels` (n,), and those of `test`.

    Raises:
        UserError: The file cannot be read, or lacks an array.
    """
    if not images:
        dataset = open_dataset(CIFAR10.name, split, data_dir)
        return ArrayDataset(dataset.info, **load_arrays(dataset))
    names = [f"{split}_images", f"{split}_labels"]
    try:
        with np.load(images) as arrays:
            packed = [f"{split}_{part}" for part in _PARTS]
            if {*packed} <= {*arrays}:
                return _unpack(*(arrays[name] for name in packed))
            return ArrayDataset(CIFAR10, *(arrays[name] for name in names))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--images={images}: cannot read {' and '.join(names)} from an .npz file: "
            f"{error}"
        ) from error


def pack(path: Path, data_dir: str | None) -> int:
    """Writes both splits to an .npz file; returns its size in bytes.

    The image files stay as they are, byte for byte, but what all of them start with
    (the tables of their JPEG encoding, two thirds of each) is stored once.

    Raises:
        UserError: The folder of the file cannot be written to.
    """
    check_folder(path.parent, "--pack")
    arrays: dict[str, Any] = {}
    for split in _SPLITS:
        dataset = open_dataset(CIFAR10.name, split, data_dir)
        encoded, labels = zip(*(dataset.encoded(n) for n in range(len(dataset))))
        prefix = os.path.commonprefix(encoded)
        parts = [file[len(prefix) :] for file in encoded]
        values = (
            np.frombuffer(prefix, np.uint8),
            np.frombuffer(b"".join(parts), np.uint8),
            np.cumsum([len(part) for part in parts]),
            np.array(labels, np.uint8),
        )
        for part, value in zip(_PARTS, values):
            arrays[f"{split}_{part}"] = value
    make_folder(path.parent, "--pack")
    with whole_file(path) as file:
        np.savez(file, **arrays)
    return path.stat().st_size


def encode_again(dataset: ArrayDataset, quality: int) -> ArrayDataset:
    """Returns a data set with each image as it is after JPEG at a quality.

    Color has half the resolution, as in the files of the data set that TFDS reads here.
    """

    def encoded(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return decode_image(file.getvalue(), "JPEG in memory")

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(encoded, dataset.images)))
    return ArrayDataset(dataset.info, images, dataset.labels)


def _unpack(
    prefix: np.ndarray, files: np.ndarray, ends: np.ndarray, labels: np.ndarray
) -> ArrayDataset:
    start, data = prefix.tobytes(), files.tobytes()
    starts = [0, *ends[:-1].tolist()]
    places = list(zip(starts, ends.tolist(), strict=True))

    def decoded(place: tuple[int, int]) -> np.ndarray:
        return decode_image(start + data[slice(*place)], f"image at byte {place[0]}")

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(decoded, places)))
    return ArrayDataset(CIFAR10, images, labels)
