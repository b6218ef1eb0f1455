"""Which parts of an image pass the network, and where their scores go: NumPy alone.

An image at one scale is a `TTAView`, cut into windows. Windows lie on a grid, so
averaging where they overlap and resizing to the image both work along rows and columns
apart: a `WindowPlacement` holds the two in one, as numbers. No shape depends on the
    size of an image.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from encnet_jax.ops.normalize import normalize


class WindowPlacement(NamedTuple):
    """How windows at one place along an axis land on the image.

    Attributes:
        window: The pixels of the view.
        first: The first pixel of the image to which the window adds.
        last: The one after the last.
        pixels: int32 (2, length), the two in the window next to each of the image.
        weights: float32 (2, length), of them; 0 outside of the window.
    """

    window: slice
    first: int
    last: int
    pixels: np.ndarray
    weights: np.ndarray


class TTAView(NamedTuple):
    """An image at one scale, normalized, perhaps mirrored, and its windows.

    Attributes:
        pixels: float32 (h, w, 3).
        rows: Of the windows, from above.
        columns: Of the windows, from the left of `picture`.
    """

    pixels: np.ndarray
    rows: tuple[WindowPlacement, ...]
    columns: tuple[WindowPlacement, ...]


class TTAProtocol(Protocol):
    """What an evaluation by windows needs to know.

    Attributes:
        window_size: Pixels of a window; smaller ones are of images that are smaller.
        mirror_windows: Each window passes mirrored too, and the logits are added.
        softmax: A view's scores are the softmax of its averaged logits; otherwise they
            are the average of the windows' exponentials.
        views: Yields the views of an image, uint8 (h, w, 3).
    """

    @property
    def window_size(self) -> int: ...  # noqa: D102
    @property
    def mirror_windows(self) -> bool: ...  # noqa: D102
    @property
    def softmax(self) -> bool: ...  # noqa: D102
    def views(self, image: np.ndarray) -> Iterator[TTAView]: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class PyTorchEncodingProtocol:
    """PyTorch-Encoding's evaluation (`MultiEvalModule` of its encoding/models/base.py).

    For every scale the long side becomes `base_size` times it. Scores of a window are
    the exponential of its logits, with `flip` of the sum with the mirrored window's;
    they are averaged where windows overlap, resized, and summed over the scales.

    Attributes:
        base_size: Pixels of the long side at scale 1.
        crop_size: Pixels, height and width of a window.
        scales: Factors of `base_size`.
        flip: Add the logits of the mirrored window.
        stride: Pixels between windows; 0: two thirds of `crop_size`.
        align_corners: Of both resizings.
        mean: Of the channels, on the scale 0 to 1; what is padded is black.
        std: Likewise.
    """

    base_size: int
    crop_size: int
    scales: tuple[float, ...]
    flip: bool
    stride: int
    align_corners: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    softmax = False

    @property
    def window_size(self) -> int:
        """Every window has this size."""
        return self.crop_size

    @property
    def mirror_windows(self) -> bool:
        """Mirroring is of windows, not of images."""
        return self.flip

    def views(self, image: np.ndarray) -> Iterator[TTAView]:
        """Yields the views of an image, uint8 or normalized float32 (h, w, 3)."""
        if image.dtype == np.uint8:
            image = normalize(image, self.mean, self.std)
        black = -np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        for scale in self.scales:
            size = _with_long_side(image.shape[:2], math.ceil(self.base_size * scale))
            grids = [self._grid(length) for length in size]
            ends = [grid[-1].stop for grid in grids]
            picture = np.empty((*np.maximum(ends, size), 3), np.float32)
            picture[...] = black
            picture[: size[0], : size[1]] = resized(image, size, self.align_corners)
            rows, columns = (
                _placements(grids[axis], size[axis], image.shape[axis], self)
                for axis in (0, 1)
            )
            yield TTAView(picture, rows, columns)

    def _grid(self, length: int) -> list[slice]:
        stride = self.stride or int(self.crop_size * (2 / 3))
        count = math.ceil(max(length - self.crop_size, 0) / stride) + 1
        return [slice(i * stride, i * stride + self.crop_size) for i in range(count)]


@dataclasses.dataclass(frozen=True)
class MmsegProtocol:
    """mmsegmentation's evaluation, modes whole and slide, of its segmentors and TTA.

    Images are resized within bounds for long and short side, without antialiasing and
    in 8 bits. The last windows are moved inwards and none is padded. Their logits are
    averaged and resized, and the softmax is averaged over scales and mirror images.

    Attributes:
        base_size: Greatest long side at scale 1; 0: no bound.
        short_size: Greatest short side at scale 1; 0: no bound. With neither, scales
            are of the image's own size.
        crop_size: Pixels, height and width of a window; 0: whole images.
        scales: Factors of the size at scale 1.
        flip: Average with the mirror image, which has windows of its own.
        stride: Pixels between windows; 0: two thirds of `crop_size`.
        align_corners: Of resizing logits.
        mean: Of the channels, on the scale 0 to 1.
        std: Likewise.
    """

    base_size: int
    short_size: int
    crop_size: int
    scales: tuple[float, ...]
    flip: bool
    stride: int
    align_corners: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    softmax = True
    mirror_windows = False

    @property
    def window_size(self) -> int:
        """0 for whole images."""
        return self.crop_size

    def views(self, image: np.ndarray) -> Iterator[TTAView]:
        """Yields the views of an image, uint8 (h, w, 3)."""
        for scale in self.scales:
            size = self._scaled_size(image.shape[:2], scale)
            picture = np.rint(resized(image, size, align_corners=False))
            picture = normalize(picture, self.mean, self.std)
            grids = [self._grid(length) for length in size]
            rows = _placements(grids[0], size[0], image.shape[0], self)
            columns = _placements(grids[1], size[1], image.shape[1], self)
            yield TTAView(picture, rows, columns)
            if self.flip:
                # Back by the order of the columns: the last is the image's first.
                columns = tuple(_mirrored(p, image.shape[1]) for p in columns)
                yield TTAView(picture[:, ::-1], rows, columns)

    def _scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        factors = [
            int(bound * scale) / side
            for bound, side in (
                (self.base_size, max(size)),
                (self.short_size, min(size)),
            )
            if bound
        ]
        factors = factors or [int(side * scale + 0.5) / side for side in size]
        factor = min(factors)
        return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)

    def _grid(self, length: int) -> list[slice]:
        crop = min(self.crop_size or length, length)
        stride = self.stride or max(int(self.crop_size * (2 / 3)), 1)
        count = math.ceil((length - crop) / stride) + 1
        starts = [min(i * stride, length - crop) for i in range(count)]
        return [slice(start, start + crop) for start in starts]


def resized(image: np.ndarray, size: Sequence[int], align_corners: bool) -> np.ndarray:
    """Resizes (h, w, c) bilinearly to float32 (*size, c), without antialiasing."""
    for axis in (0, 1):
        (low, high), (below, above) = _neighbors(
            image.shape[axis], size[axis], align_corners
        )
        shape = (-1, 1, 1) if axis == 0 else (-1, 1)
        below, above = (w.astype(np.float32).reshape(shape) for w in (below, above))
        image = image.take(low, axis) * below + image.take(high, axis) * above
    return image


def _with_long_side(size: Sequence[int], long_side: int) -> tuple[int, int]:
    height, width = size
    if height > width:
        return long_side, int(width * long_side / height + 0.5)
    return int(height * long_side / width + 0.5), long_side


def _neighbors(
    source: int, target: int, align_corners: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Of linear interpolation: two pixels (2, target) for each, and their weights."""
    place = np.arange(target, dtype=np.float64)
    if align_corners:
        place *= (source - 1) / max(target - 1, 1)
    else:
        place = np.clip((place + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.minimum(place.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    return np.stack([low, high]), np.stack([1 - (place - low), place - low])


def _placements(
    grid: Sequence[slice],
    source: int,
    target: int,
    protocol: PyTorchEncodingProtocol | MmsegProtocol,
) -> tuple[WindowPlacement, ...]:
    """Places the windows of a view with `source` pixels on an image with `target`."""
    index, weight = _neighbors(source, target, protocol.align_corners)
    counts = np.zeros(max(source, grid[-1].stop))
    for window in grid:
        counts[window] += 1
    weight = weight / counts[index]
    places = []
    for window in grid:
        inside = (index >= window.start) & (index < window.stop)
        touched = np.flatnonzero(inside.any(0))
        if touched.size:  # none, if the image is tiny against the view
            near = np.clip(index - window.start, 0, window.stop - window.start - 1)
            places.append(
                WindowPlacement(
                    window,
                    int(touched[0]),
                    int(touched[-1]) + 1,
                    near.astype(np.int32),
                    np.where(inside, weight, 0).astype(np.float32),
                )
            )
    return tuple(places)


def _mirrored(place: WindowPlacement, length: int) -> WindowPlacement:
    return WindowPlacement(
        place.window,
        length - place.last,
        length - place.first,
        place.pixels[:, ::-1],
        place.weights[:, ::-1],
    )
