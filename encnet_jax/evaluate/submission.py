"""Predictions in the format of the data sets' test servers."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from encnet_jax.data.bands import decode_pixels
from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import Encoded, Example
from encnet_jax.data.file_pairs import files_below, is_image
from encnet_jax.data.fingerprint import file_states, fingerprint
from encnet_jax.data.image_io import ensure_rgb_bytes, image_size
from encnet_jax.data.input_files import read_file
from encnet_jax.data.label_map import published_labels
from encnet_jax.data.result_file import is_result
from encnet_jax.errors import UserError
from encnet_jax.files import make_folder, whole_file
from encnet_jax.visualize.overlay import palette_image

# Where VOC's server looks in the archive; comp6 allows other training images.
_FOLDERS = {
    "voc2012": "results/VOC2012/Segmentation/comp6_test_cls",
    "voc2012_aug": "results/VOC2012/Segmentation/comp6_test_cls",
}


class Submission:
    """Writes `NAME.png` for each image, 8 bits, in the label ids of the data set.

    ADE20K: 1 to 150. Cityscapes: ids, not train ids. VOC 2012: palette images, in the
    folders of its archive. Other data sets: their published labels.

    Args:
        folder: Output folder; created, existing files are kept.
        info: The data set, with its label map.

    Raises:
        UserError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, info: DatasetInfo):
        self.folder = folder / _FOLDERS.get(info.name, "")
        self._palette = info.colors if info.name in _FOLDERS else None
        self._published = published_labels(info)
        self._written: set[str] = set()
        make_folder(self.folder, "submission")

    def check_no_others(self, names: Iterable[str]) -> None:
        """Raises `UserError` if the folder has predictions of other images.

        Args:
            names: Names of all images.
        """
        expected = {self.folder / f"{name}.png" for name in names}
        for path in sorted(self.folder.rglob("*.png")):
            if path not in expected:
                raise UserError(
                    f"{path}: is of other images; move or delete {self.folder} first"
                )

    def has(self, name: str) -> bool:
        """Returns whether the file of the image `name` exists."""
        return (self.folder / f"{name}.png").is_file()

    def keep(self, name: str) -> None:
        """Notes that an earlier run has written the image `name`."""
        self._written.add(name)

    def write(self, name: str, predictions: UInt8[np.ndarray, "h w"]) -> None:
        """Writes the predicted classes of the image `name`.

        Args:
            name: Name of the example; may contain folders.
            predictions: Class indices.

        Raises:
            UserError: An image of this name was written before, or the file cannot be
                written.
        """
        path = self.folder / f"{name}.png"
        if name in self._written:
            raise UserError(f"{path}: two images of this name; the second is not saved")
        self._written.add(name)
        labels = self._published[predictions]
        if self._palette is None:
            image = Image.fromarray(labels)
        else:
            image = palette_image(labels, self._palette)
        make_folder(path.parent, "submission")
        try:
            with whole_file(path) as file:
                image.save(file, "PNG")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error


class UnlabeledDataset:
    """The images below a folder as a `Dataset` in which all labels are ignored.

    Args:
        info: The data set whose classes are predicted.
        folder: Folder of images, searched recursively. Other files and results of
            `predict.py` are skipped.

    Raises:
        UserError: No such folder, no images in it, or two images of one name.
    """

    def __init__(self, info: DatasetInfo, folder: Path):
        self.info = info
        if not folder.is_dir():
            raise UserError(f"--images={folder}: no such folder")
        files = files_below(folder)
        self.paths = [path for path in files if is_image(path) and not is_result(path)]
        if not self.paths:
            raise UserError(f"--images={folder}: no images (.jpg, .png, ...) in it")
        _check_names(self.paths)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.paths)

    def encoded(self, index: int, *, raw_labels: bool = False) -> Encoded:
        """Returns the image as a JPEG or PNG file, or bands, and ignored labels."""
        path = self.paths[index]
        if self.info.banded:
            return self[index][:2]
        value_range: Any = self.info.value_range
        data = ensure_rgb_bytes(read_file(path), str(path), value_range)
        size = image_size(data, str(path))
        return data, np.full(size, IGNORE_LABEL, np.uint8)

    @property
    def names(self) -> list[str]:
        """The name of each image."""
        return [path.stem for path in self.paths]

    def fingerprint(self) -> str:
        """Returns a digest of the files' names, sizes and times of modification."""
        return fingerprint(self.info, file_states(self.paths))

    def __getitem__(self, index: int) -> Example:
        """Returns an image; raises `UserError` if it cannot be decoded."""
        path = self.paths[index]
        image = decode_pixels(read_file(path), str(path), self.info)
        labels = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
        return Example(image, labels, path.stem)


def check_apart(images: Path, folder: Path) -> None:
    """Raises `UserError` if predictions would lie among the images they are of.

    They would replace those of the same names, or be images of the next evaluation.

    Args:
        images: Folder of images; links are followed.
        folder: Where the predictions will be, likewise.
    """
    real, target = (Path(os.path.realpath(path)) for path in (images, folder))
    if real == target or real in target.parents or target in real.parents:
        raise UserError(
            f"--images={images}: predictions are written to {folder}; neither may be "
            "in the other"
        )


def _check_names(paths: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise UserError(f"{path} and {other}: both would be {path.stem}.png")
