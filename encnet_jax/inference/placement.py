"""Where windows lie on an image, and views of it resized in parts.

Along each axis by itself, in NumPy.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, Int32, Num

from encnet_jax.ops.resize import source_positions


class LargeImage(Protocol):
    """An image that is read in parts: an array (h, w, c), or a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w, c)."""

    @property
    def dtype(self) -> Any:
        """uint8 of RGB, uint16 of bands."""

    def __getitem__(self, key: Any) -> Num[np.ndarray, "a b c"]:
        """Returns the pixels of `[rows, columns]`, slices or the arrays of `np.ix_`."""


class WindowPlacement(NamedTuple):
    """Where a row or column of windows lands on the image, along that axis.

    Attributes:
        window: The pixels of the view that the window covers.
        first: The first image pixel that the window contributes to.
        last: One past the last of them.
        pixels: For each image pixel from `first` to `last` its two neighbors in the
            window.
        weights: Their weights; 0 outside the window.
    """

    window: slice
    first: int
    last: int
    pixels: Int32[np.ndarray, "2 length"]
    weights: Float32[np.ndarray, "2 length"]


def resized(
    image: Num[np.ndarray, "h w c"], size: tuple[int, int], align_corners: bool
) -> Float32[np.ndarray, "H W c"]:
    """Resizes an image bilinearly, without antialiasing."""
    rows, columns = (slice(0, length) for length in size)
    return resize_part(image, size, rows, columns, align_corners)


def resize_part(
    image: Any,
    size: tuple[int, int],
    rows: slice,
    columns: slice,
    align_corners: bool,
    prepare: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> Float32[np.ndarray, "a b c"]:
    """Returns a part of `resized(image, size)`, cut at its border.

    Args:
        image: A `LargeImage`, or normalized; only what the part needs is read.
        size: Height and width of the whole.
        rows: The rows of the part.
        columns: The columns of the part.
        align_corners: See `TTAProtocol`.
        prepare: Applied to the pixels of an image of integers.
    """
    taps, used = [], []
    for axis, wanted in enumerate((rows, columns)):
        pixels, weights = _neighbors(image.shape[axis], size[axis], align_corners)
        pixels = pixels[:, wanted]
        distinct, places = np.unique(pixels, return_inverse=True)
        used.append(distinct)
        taps.append((places.reshape(pixels.shape), weights[:, wanted]))
    part = _gather(image, *used)
    if np.issubdtype(part.dtype, np.unsignedinteger):
        part = prepare(part)
    for axis, (pixels, weights) in enumerate(taps):
        shape = (-1, 1, 1) if axis == 0 else (-1, 1)
        below, above = weights.astype(np.float32).reshape(2, *shape)
        part = part.take(pixels[0], axis) * below + part.take(pixels[1], axis) * above
    return part


def _gather(image: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the pixels in these rows and columns, ascending."""
    box = [slice(int(used[0]), int(used[-1]) + 1) for used in (rows, columns)]
    if all(s.stop - s.start == len(used) for s, used in zip(box, (rows, columns))):
        return image[box[0], box[1]]
    return image[np.ix_(rows, columns)]


def _neighbors(
    source: int, target: int, align_corners: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two source pixels (2, target) next to each target, and weights."""
    position = np.asarray(source_positions(source, target, align_corners))
    low = np.minimum(position.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    return np.stack([low, high]), np.stack([1 - (position - low), position - low])


def place_windows(
    grid: Sequence[slice], source: int, target: int, align_corners: bool
) -> tuple[WindowPlacement, ...]:
    """Places the windows of a view of `source` pixels on an image of `target`."""
    index, weight = _neighbors(source, target, align_corners)
    counts = np.zeros(max(source, grid[-1].stop))
    for window in grid:
        counts[window] += 1
    weight = weight / counts[index]
    placements = []
    for window in grid:
        # Both neighbors ascend, and are at most 1 apart.
        first = int(np.searchsorted(index[1], window.start))
        last = int(np.searchsorted(index[0], window.stop))
        if first < last:  # not if the image is tiny relative to the view
            near, share = index[:, first:last], weight[:, first:last]
            inside = (near >= window.start) & (near < window.stop)
            pixels = np.clip(near - window.start, 0, window.stop - window.start - 1)
            placements.append(
                WindowPlacement(
                    window,
                    first,
                    last,
                    pixels.astype(np.int32),
                    np.where(inside, share, 0).astype(np.float32),
                )
            )
    return tuple(placements)


def mirrored(placement: WindowPlacement, length: int) -> WindowPlacement:
    """Places a window on the mirror image of one of `length` pixels."""
    return WindowPlacement(
        placement.window,
        length - placement.last,
        length - placement.first,
        placement.pixels[:, ::-1],
        placement.weights[:, ::-1],
    )
