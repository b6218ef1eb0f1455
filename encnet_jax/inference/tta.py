"""Test-time augmentation: how published evaluations cut images into windows.

An image at one scale is a `TTAView`. Its windows lie on a grid, so averaging where they
overlap and resizing the result to the image are separable: a `WindowPlacement` holds
the weights of both along one axis. NumPy only; all shapes that reach a device are
independent of the image size.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Num, UInt8

from encnet_jax.ops.normalize import normalize
from encnet_jax.ops.resize import source_positions


class WindowPlacement(NamedTuple):
    """Where a row or column of windows lands on the image, along that axis.

    Attributes:
        window: The pixels of the view that the window covers.
        first: The first image pixel that the window contributes to.
        last: One past the last of them.
        pixels: For each image pixel its two neighbors in the window.
        weights: Their weights; 0 outside the window.
    """

    window: slice
    first: int
    last: int
    pixels: Int32[np.ndarray, "2 length"]
    weights: Float32[np.ndarray, "2 length"]


class TTAView(NamedTuple):
    """An image at one scale, normalized and possibly mirrored, and its windows.

    Attributes:
        pixels: The view.
        rows: Placements of the rows of windows, from the top.
        columns: Placements of the columns of windows, from the left of `pixels`.
    """

    pixels: Float32[np.ndarray, "h w 3"]
    rows: tuple[WindowPlacement, ...]
    columns: tuple[WindowPlacement, ...]


@dataclasses.dataclass(frozen=True)
class TTAProtocol:
    """The rules of a sliding-window evaluation; the settings its subclasses share.

    Attributes:
        base_size: Long side at scale 1, in pixels.
        crop_size: Height and width of a window, in pixels.
        scales: Factors of the size at scale 1.
        flip: Whether to evaluate mirrored as well.
        stride: Pixels between windows; 0 is two thirds of `crop_size`.
        align_corners: How scores are resized to the image.
        mean: Channel means on the scale 0 to 1.
        std: Channel standard deviations on the same scale.
        softmax: Whether the scores of a view are the softmax of its averaged logits;
            otherwise they are the average of the windows' exponentials.
    """

    base_size: int
    crop_size: int
    scales: tuple[float, ...]
    flip: bool
    stride: int
    align_corners: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    softmax: ClassVar[bool] = True

    @property
    def mirror_windows(self) -> bool:
        """Whether each window is mirrored as well, and the logits added."""
        return False

    def views(self, image: UInt8[np.ndarray, "h w 3"]) -> Iterator[TTAView]:
        """Yields the views of an image, RGB 0-255."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PyTorchEncodingProtocol(TTAProtocol):
    """PyTorch-Encoding's evaluation (`MultiEvalModule` of its encoding/models/base.py).

    At each scale the long side is resized to `base_size` times the scale. The scores of
    a window are exponentials of logits, summed with those of the mirrored window before
    the exponential; they are averaged over windows and summed over scales. Windows that
    reach beyond the image are padded with black. `align_corners` applies to the image
    as well.
    """

    softmax: ClassVar[bool] = False

    @property
    def mirror_windows(self) -> bool:  # noqa: D102
        return self.flip

    def views(
        self, image: UInt8[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"]
    ) -> Iterator[TTAView]:
        """Yields the views of an image, uint8 or already normalized."""
        if image.dtype == np.uint8:
            image = normalize(image, self.mean, self.std)
        black = -np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        for scale in self.scales:
            size = _with_long_side(image.shape[:2], math.ceil(self.base_size * scale))
            grids = [self._grid(length) for length in size]
            ends = [grid[-1].stop for grid in grids]
            padded = np.empty((*np.maximum(ends, size), 3), np.float32)
            padded[...] = black
            padded[: size[0], : size[1]] = resized(image, size, self.align_corners)
            rows, columns = (
                _placements(grids[axis], size[axis], image.shape[axis], self)
                for axis in (0, 1)
            )
            yield TTAView(padded, rows, columns)

    def _grid(self, length: int) -> list[slice]:
        stride = self.stride or max(int(self.crop_size * (2 / 3)), 1)
        count = math.ceil(max(length - self.crop_size, 0) / stride) + 1
        return [slice(i * stride, i * stride + self.crop_size) for i in range(count)]


@dataclasses.dataclass(frozen=True)
class MmsegProtocol(TTAProtocol):
    """mmsegmentation's evaluation: modes `whole` and `slide`, with its flip TTA.

    Images are resized within bounds on the long and short side, without antialiasing
    and rounded to 8 bits. The last windows are shifted inwards instead of padded. Their
    logits are averaged and resized, and the softmax is averaged over scales and mirror
    images. A `crop_size` of 0 is the whole image.

    Attributes:
        base_size: Upper bound on the long side at scale 1; 0 is no bound.
        short_size: Upper bound on the short side at scale 1; 0 is no bound. Without
            bounds, scales are relative to the image's own size.
    """

    short_size: int = 0

    def views(self, image: UInt8[np.ndarray, "h w 3"]) -> Iterator[TTAView]:  # noqa: D102
        for scale in self.scales:
            size = self._scaled_size(image.shape[:2], scale)
            pixels = np.rint(resized(image, size, align_corners=False))
            pixels = normalize(pixels, self.mean, self.std)
            grids = [self._grid(length) for length in size]
            rows = _placements(grids[0], size[0], image.shape[0], self)
            columns = _placements(grids[1], size[1], image.shape[1], self)
            yield TTAView(pixels, rows, columns)
            if self.flip:
                # Mirrored placements undo the flip: the last column of the view lands
                # on the first of the image.
                columns = tuple(_mirrored(p, image.shape[1]) for p in columns)
                yield TTAView(pixels[:, ::-1], rows, columns)

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
        return _rounded(size[0] * factor), _rounded(size[1] * factor)

    def _grid(self, length: int) -> list[slice]:
        crop = min(self.crop_size or length, length)
        stride = self.stride or max(int(self.crop_size * (2 / 3)), 1)
        count = math.ceil((length - crop) / stride) + 1
        starts = [min(i * stride, length - crop) for i in range(count)]
        return [slice(start, start + crop) for start in starts]


def resized(
    image: Num[np.ndarray, "h w c"], size: Sequence[int], align_corners: bool
) -> Float32[np.ndarray, "H W c"]:
    """Resizes an image bilinearly, without antialiasing."""
    for axis in (0, 1):
        pixels, weights = _neighbors(image.shape[axis], size[axis], align_corners)
        shape = (-1, 1, 1) if axis == 0 else (-1, 1)
        below, above = weights.astype(np.float32).reshape(2, *shape)
        image = (
            image.take(pixels[0], axis) * below + image.take(pixels[1], axis) * above
        )
    return image


def _with_long_side(size: Sequence[int], long_side: int) -> tuple[int, int]:
    height, width = size
    if height > width:
        return long_side, _rounded(width * long_side / height)
    return _rounded(height * long_side / width), long_side


def _rounded(length: float) -> int:
    """Returns a length in pixels, at least 1: an image may be a thin line."""
    return max(int(length + 0.5), 1)


def _neighbors(
    source: int, target: int, align_corners: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two source pixels (2, target) next to each target, and weights."""
    position = np.asarray(source_positions(source, target, align_corners))
    low = np.minimum(position.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    return np.stack([low, high]), np.stack([1 - (position - low), position - low])


def _placements(
    grid: Sequence[slice], source: int, target: int, protocol: TTAProtocol
) -> tuple[WindowPlacement, ...]:
    """Places the windows of a view of `source` pixels on an image of `target`."""
    index, weight = _neighbors(source, target, protocol.align_corners)
    counts = np.zeros(max(source, grid[-1].stop))
    for window in grid:
        counts[window] += 1
    weight = weight / counts[index]
    placements = []
    for window in grid:
        inside = (index >= window.start) & (index < window.stop)
        touched = np.flatnonzero(inside.any(0))
        if touched.size:  # none if the image is tiny relative to the view
            pixels = np.clip(index - window.start, 0, window.stop - window.start - 1)
            placements.append(
                WindowPlacement(
                    window,
                    int(touched[0]),
                    int(touched[-1]) + 1,
                    pixels.astype(np.int32),
                    np.where(inside, weight, 0).astype(np.float32),
                )
            )
    return tuple(placements)


def _mirrored(placement: WindowPlacement, length: int) -> WindowPlacement:
    return WindowPlacement(
        placement.window,
        length - placement.last,
        length - placement.first,
        placement.pixels[:, ::-1],
        placement.weights[:, ::-1],
    )
