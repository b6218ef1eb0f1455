"""Predictions of images larger than memory: TIFF in, TIFF out, a tile at a time."""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from encnet_jax.data.bands import displayed
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.label_map import published_labels
from encnet_jax.data.result_file import save_result, tiff_tags
from encnet_jax.errors import UserError
from encnet_jax.files import check_folder, make_folder
from encnet_jax.inference.large_image import (
    Box,
    LargeImage,
    LargeLabelFn,
    make_large_label_fn,
)
from encnet_jax.inference.predict_fn import check_size
from encnet_jax.inference.score_map import TILE
from encnet_jax.inference.tta import TTAProtocol
from encnet_jax.predict.output_plan import OutputPlan, plan_outputs
from encnet_jax.predict.predictor import Segmenter
from encnet_jax.predict.tiff_image import open_tiff
from encnet_jax.predict.write import predict_each, print_result, writing
from encnet_jax.run.progress import Counter
from encnet_jax.visualize.overlay import label_palette, overlay

ENDINGS = {"labels": ".tif", "overlay": "-overlay.png"}
_OVERLAY_SIDE = 2048  # upper bound on the long side, in pixels
_CLASSIC_BYTES = 1 << 31  # offsets of a TIFF have 32 bits, those of BigTIFF 64
_log = logging.getLogger(__name__)


class LargeSegmenter:
    """Segments images of any size in bounded memory, in the windows of the evaluation.

    The windows are those of `evaluation.mode=slide`, also for a run that is evaluated
    with whole images; the labels are those of the same windows in memory.

    Args:
        segmenter: The model.
        base_size: Long side at scale 1, in pixels; 0 is that of each image, None that
            of the evaluation.

    Raises:
        UserError: The segmenter was created without a protocol, or `base_size` is no
            integer of at least 0.
    """

    def __init__(self, segmenter: Segmenter, base_size: int | None = None):
        if segmenter.slide_protocol is None:
            raise UserError("segmenter: has no protocol that cuts images into windows")
        self.info = segmenter.info
        self._segmenter = segmenter
        self._base_size = (
            None if base_size is None else check_size("base_size", base_size)
        )
        self._protocol: TTAProtocol = segmenter.slide_protocol
        self._label: LargeLabelFn = make_large_label_fn(
            segmenter.model_def, self.info.num_classes, self._protocol
        )

    def __call__(
        self, image: LargeImage
    ) -> Iterator[tuple[Box, UInt8[np.ndarray, "a b"]]]:
        """Yields the class indices of a part of the image, with its place, until done.

        Args:
            image: An array (h, w, 3), RGB 0-255, of a model of bands (h, w, c) uint16
                as `scale_bands` returns; or an object that reads parts of one.

        Raises:
            TypeError: Another dtype or shape.
        """
        dtype = np.dtype(np.uint16 if self.info.banded else np.uint8)
        found: Any = getattr(image, "dtype", None)
        shape: tuple[int, ...] = getattr(image, "shape", ())
        channels = self.info.channels
        if found != dtype or len(shape) != 3 or shape[2] != channels or 0 in shape:
            raise TypeError(
                f"image: {type(image).__name__} of {found} {shape}; allowed is {dtype} "
                f"(h, w, {channels})"
            )
        protocol = self.protocol_of(image)
        arrays = self._segmenter.params, self._segmenter.batch_stats
        return self._label(*arrays, image, protocol)

    def protocol_of(self, image: LargeImage) -> TTAProtocol:
        """Returns how an image is cut into windows."""
        if self._base_size is None:
            return self._protocol
        return self._protocol.with_long_side(self._base_size or max(image.shape[:2]))


class TileFile:
    """Labels on disk, uncompressed, in tiles; the file has no name.

    Args:
        folder: Where.
        shape: That of the image.

    Raises:
        UserError: There is not enough space.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]):
        self.shape = shape[:2]
        self.grid = tuple(-(-length // TILE) for length in self.shape)
        needed = self.grid[0] * self.grid[1] * TILE**2
        if needed > shutil.disk_usage(folder).free:
            raise UserError(
                f"{folder}: labels of {shape[1]} x {shape[0]} pixels need up to "
                f"{2 * needed} bytes of disk"
            )
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)

    def write(self, box: Box, labels: UInt8[np.ndarray, "a b"]) -> None:
        """Keeps the labels of a tile; raises `UserError` if the disk is full."""
        tile = np.zeros((TILE, TILE), np.uint8)
        tile[: labels.shape[0], : labels.shape[1]] = labels
        place = box[0].start // TILE * self.grid[1] + box[1].start // TILE
        try:
            self._file.seek(place * TILE**2)
            self._file.write(tile.tobytes())
        except OSError as error:
            reason = error.strerror
            raise UserError(f"{self._folder}: cannot be written: {reason}") from error

    def tiles(self) -> Iterator[UInt8[np.ndarray, "t t"]]:
        """Yields the tiles row by row, padded with zeros."""
        self._file.seek(0)
        for _ in range(self.grid[0] * self.grid[1]):
            yield np.frombuffer(self._file.read(TILE**2), np.uint8).reshape(TILE, TILE)

    def every(self, step: int) -> UInt8[np.ndarray, "a b"]:
        """Returns every `step`-th label of every `step`-th row."""
        height, width = self.shape
        rows, columns = np.arange(0, height, step), np.arange(0, width, step)
        result = np.zeros((len(rows), len(columns)), np.uint8)
        for index, tile in enumerate(self.tiles()):
            top, left = (TILE * k for k in divmod(index, self.grid[1]))
            i = slice(*np.searchsorted(rows, [top, top + TILE]).tolist())
            j = slice(*np.searchsorted(columns, [left, left + TILE]).tolist())
            result[i, j] = tile[np.ix_(rows[i] - top, columns[j] - left)]
        return result

    def close(self) -> None:
        """Frees the disk."""
        self._file.close()


class LargeSegmentation(NamedTuple):
    """The labels of a large image, on disk.

    Attributes:
        labels: The class indices.
        counts: The number of pixels of each class.
        thumbnail: Every `step`-th pixel of every `step`-th row of the image.
        step: At least 1; bounds the size of the thumbnail.
        geographic: Tags of a GeoTIFF.
    """

    labels: TileFile
    counts: Int64[np.ndarray, " n"]
    thumbnail: UInt8[np.ndarray, "a b 3"]
    step: int
    geographic: list[tuple]


def label_tiff(
    segmenter: LargeSegmenter, path: Path, folder: Path
) -> LargeSegmentation:
    """Predicts a TIFF.

    Args:
        segmenter: The model.
        path: The image.
        folder: Where the labels are kept, without a name, until they are closed.

    Raises:
        UserError: The image cannot be read, or the folder is full.
    """
    info = segmenter.info
    with open_tiff(path, info) as image:
        _log_size(segmenter, image, path)
        labels = TileFile(folder, image.shape)
        counts = np.zeros(info.num_classes, np.int64)
        counter = Counter(labels.grid[0] * labels.grid[1], f"tiles of {path.name}")
        try:
            for done, (box, part) in enumerate(segmenter(image), 1):
                labels.write(box, part)
                counts += np.bincount(part.ravel(), minlength=len(counts))
                counter.show(done)
        except BaseException:
            labels.close()
            raise
        finally:
            counter.close()
        step = -(-max(labels.shape) // _OVERLAY_SIDE)
        rows, columns = (np.arange(0, length, step) for length in labels.shape)
        thumbnail = displayed(image[np.ix_(rows, columns)], info)
        geographic = image.geographic_tags()
    return LargeSegmentation(labels, counts, thumbnail, step, geographic)


def plan_large_predictions(
    images: Sequence[Path], output: Path, kinds: Sequence[str]
) -> OutputPlan:
    """Returns the files of all images, having created nothing.

    Raises:
        UserError: As `plan_predictions`.
    """
    check_folder(output, "--output")
    return plan_outputs(images, output, [ENDINGS[kind] for kind in kinds])


def write_large_predictions(
    segmenter: LargeSegmenter, plan: OutputPlan, output: Path, kinds: Sequence[str]
) -> int:
    """Writes `NAME.tif` and `NAME-overlay.png` for each TIFF.

    The first holds labels in the data set's values, in compressed tiles. The second is
    reduced to at most 2048 pixels.

    Args:
        segmenter: The model.
        plan: The files; each image has one for each kind.
        output: The output folder.
        kinds: Which of `ENDINGS`, in that order.

    Returns:
        How many images failed; each is reported on standard error.

    Raises:
        UserError: A file cannot be written.
    """
    make_folder(output, "--output")
    failed = list(plan.problems)

    def predict(path: Path) -> LargeSegmentation:
        return label_tiff(segmenter, path, output)

    for image, result in predict_each(predict, plan.images, failed):
        with contextlib.closing(result.labels):
            for kind, path in zip(kinds, image.outputs):
                with writing(path) as file:
                    save = _save_labels if kind == "labels" else _save_overlay
                    save(result, segmenter.info, image.path, file)
        shares = result.counts / result.counts.sum()
        print_result(image, segmenter.info.class_names, shares)
    return len(failed)


def _save_labels(
    result: LargeSegmentation, info: DatasetInfo, source: Path, file: BinaryIO
) -> None:
    import tifffile

    published = np.zeros(256, np.uint8)
    published[: info.num_classes] = published_labels(info)
    height, width = result.labels.shape
    tifffile.imwrite(
        file,
        (published[tile] for tile in result.labels.tiles()),
        shape=(height, width),
        dtype=np.uint8,
        bigtiff=height * width > _CLASSIC_BYTES,
        photometric="palette",
        colormap=np.array(label_palette(info), np.uint16).T * 257,
        tile=(TILE, TILE),
        compression="zlib",
        metadata=None,
        extratags=result.geographic,
        **tiff_tags(source),
    )


def _save_overlay(
    result: LargeSegmentation, info: DatasetInfo, source: Path, file: BinaryIO
) -> None:
    labels = result.labels.every(result.step)
    drawn = overlay(result.thumbnail, labels, info.colors, info.class_names)
    save_result(drawn, file, source)


def _log_size(segmenter: LargeSegmenter, image: LargeImage, path: Path) -> None:
    size = (image.shape[0], image.shape[1])
    scaled = segmenter.protocol_of(image).scaled_size(size)
    if scaled != size:
        _log.info(
            "%s: %d x %d pixels, resized to %d x %d; --base_size=0 keeps them",
            path,
            *size[::-1],
            *scaled[::-1],
        )
