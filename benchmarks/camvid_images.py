"""CamVid encoded again, smaller, for machines to which little can be carried."""

import io
import json
import os
import shutil
from pathlib import Path

from PIL import Image

from encnet_jax.data.datasets import FileDataset, checked, read_ahead
from encnet_jax.data.image_io import decode_image
from encnet_jax.data.input_files import read_file
from encnet_jax.data.registry import DATASETS, LocalDataset, open_dataset
from encnet_jax.errors import UserError
from encnet_jax.files import whole_folder

_NOTE = "encoded_again.json"
_SPLITS = ("train", "val", "test")


def pack(output: Path, data_dir: str | None, quality: int) -> int:
    """Writes CamVid to a folder with its images as JPEG; returns its size in bytes.

    Labels are copied. The color of the JPEG files has the full resolution.

    Args:
        output: The folder to write, in the same layout.
        data_dir: Folder of the data set.
        quality: Of the JPEG files, 1 to 95.

    Raises:
        UserError: A file cannot be read, or the folder is not empty.
    """
    if not 1 <= quality <= 95:
        raise UserError(f"--jpeg_quality={quality}: must be 1 to 95")
    with whole_folder(output, "--pack") as folder:
        _write_splits(folder, data_dir, quality)
        note = {"jpeg_quality": quality}
        (folder / _NOTE).write_text(json.dumps(note) + "\n")
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


def _write_splits(output: Path, data_dir: str | None, quality: int) -> None:
    for split in _SPLITS:
        dataset = open_dataset("camvid", split, data_dir)
        assert isinstance(dataset, FileDataset)  # as all local data sets
        folders = output / split, output / f"{split}annot"
        for folder in folders:
            folder.mkdir(parents=True)

        def encode(index: int, dataset: FileDataset = dataset) -> bytes:
            path = dataset.pairs[index][0]
            pixels = decode_image(read_file(path), str(path))
            return encode_jpeg(Image.fromarray(pixels), quality)

        encoded = read_ahead(encode, range(len(dataset)))
        for (image, label), data in zip(dataset.pairs, map(checked, encoded)):
            (folders[0] / f"{image.stem}.jpg").write_bytes(data)
            shutil.copyfile(label, folders[1] / f"{image.stem}.png")


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Returns a JPEG file with color at the full resolution."""
    file = io.BytesIO()
    image.save(
        file, "JPEG", quality=quality, subsampling=0, optimize=True, progressive=True
    )
    return file.getvalue()


def packed_quality(data_dir: str | None) -> int | None:
    """Returns the quality of the images in a folder that `pack` wrote, or None."""
    entry = DATASETS["camvid"]
    assert isinstance(entry, LocalDataset)
    path = entry.root("camvid", data_dir) / _NOTE
    if not os.path.exists(path):
        return None
    quality: int = json.loads(path.read_text())["jpeg_quality"]
    return quality
