"""Test-time augmentation: how published evaluations cut images into windows.

An image at one scale is a `TTAView`. Its windows lie on a grid, so averaging where they
overlap and resizing the result to the image are separable: a `WindowPlacement` holds
the weights of both along one axis. NumPy only; all shapes that reach a device are
independent of the image size.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, Self

import numpy as np
from jaxtyping import Float32, Num

from encnet_jax.inference.placement import (
    LargeImage,
    WindowPlacement,
    mirrored,
    place_windows,
    resize_part,
)
from encnet_jax.ops.normalize import normalize, to_byte_scale


class ViewLayout(NamedTuple):
    """The geometry of a `TTAView`, which depends only on the size of the image.

    Attributes:
        size: Height and width of the image at this scale, without padding.
        mirrored: Whether the view is that of the layout before it, mirrored.
        rows: As in `TTAView`.
        columns: Likewise.
    """

    size: tuple[int, int]
    mirrored: bool
    rows: tuple[WindowPlacement, ...]
    columns: tuple[WindowPlacement, ...]


class TTAView(NamedTuple):
    """An image at one scale, normalized and possibly mirrored, and its windows.

    Attributes:
        pixels: The view.
        rows: Placements of the rows of windows, from the top.
        columns: Placements of the columns of windows, from the left of `pixels`.
    """

    pixels: Float32[np.ndarray, "h w c"]
    rows: tuple[WindowPlacement, ...]
    columns: tuple[WindowPlacement, ...]


@dataclasses.dataclass(frozen=True)
class TTAProtocol(ABC):
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

    @property
    def window_distance(self) -> int:
        """Pixels from one window to the next: `stride`, or what its 0 stands for.

        1 with a `crop_size` of 0, where the image is one window and no stride matters.
        """
        default = max(int(self.crop_size * (2 / 3)), 1)
        return self.stride or default if self.crop_size else 1

    def with_long_side(self, base_size: int) -> Self:
        """Returns the protocol with images of this long side at scale 1."""
        return dataclasses.replace(self, base_size=base_size)

    def views(self, image: Num[np.ndarray, "h w c"]) -> Iterator[TTAView]:
        """Yields the views of an image, RGB 0-255 or uint16 bands."""
        pixels = None
        for layout in self.layouts(image.shape[:2]):
            if layout.mirrored and pixels is not None:
                pixels = pixels[:, ::-1]
            else:
                rows, columns = self._extent(layout)
                pixels = self.window(image, layout, rows, columns)
            yield TTAView(pixels, layout.rows, layout.columns)

    @abstractmethod
    def scaled_size(self, size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Returns the height and width of an image of `size` in the network."""

    @abstractmethod
    def layouts(self, size: tuple[int, int]) -> Iterator[ViewLayout]:
        """Yields the layouts of the views of an image of (height, width) pixels."""

    @abstractmethod
    def window(
        self,
        image: LargeImage,
        layout: ViewLayout,
        rows: slice,
        columns: slice,
    ) -> Float32[np.ndarray, "a b c"]:
        """Returns a window of a view, having read only that part of the image.

        Args:
            image: 0-255; uint16: 0-65535.
            layout: One of `layouts`.
            rows: The pixels of the view that the window covers.
            columns: Likewise.
        """

    def _extent(self, layout: ViewLayout) -> tuple[slice, slice]:
        """Returns all pixels of a view, its padding included."""
        ends = (layout.rows[-1].window.stop, layout.columns[-1].window.stop)
        height, width = np.maximum(ends, layout.size).tolist()
        return slice(0, height), slice(0, width)


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

    def scaled_size(  # noqa: D102
        self, size: tuple[int, int], scale: float = 1.0
    ) -> tuple[int, int]:
        return _with_long_side(size, math.ceil(self.base_size * scale))

    def layouts(self, size: tuple[int, int]) -> Iterator[ViewLayout]:  # noqa: D102
        for scale in self.scales:
            scaled = self.scaled_size(size, scale)
            rows, columns = (
                place_windows(self._grid(length), length, target, self.align_corners)
                for length, target in zip(scaled, size)
            )
            yield ViewLayout(scaled, False, rows, columns)

    def window(
        self,
        image: LargeImage | Float32[np.ndarray, "h w c"],
        layout: ViewLayout,
        rows: slice,
        columns: slice,
    ) -> Float32[np.ndarray, "a b c"]:
        """As in `TTAProtocol`; the image may be normalized already."""
        black = -np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        shape = (rows.stop - rows.start, columns.stop - columns.start, len(black))
        window = np.empty(shape, np.float32)
        window[...] = black
        part = resize_part(
            image,
            layout.size,
            rows,
            columns,
            self.align_corners,
            lambda pixels: normalize(pixels, self.mean, self.std),
        )
        window[: part.shape[0], : part.shape[1]] = part
        return window

    def _grid(self, length: int) -> list[slice]:
        stride = self.window_distance
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

    def with_long_side(self, base_size: int) -> Self:  # noqa: D102
        return dataclasses.replace(self, base_size=base_size, short_size=0)

    def layouts(self, size: tuple[int, int]) -> Iterator[ViewLayout]:  # noqa: D102
        for scale in self.scales:
            scaled = self.scaled_size(size, scale)
            rows, columns = (
                place_windows(self._grid(length), length, target, self.align_corners)
                for length, target in zip(scaled, size)
            )
            yield ViewLayout(scaled, False, rows, columns)
            if self.flip:
                # Mirrored placements undo the flip: the last column of the view lands
                # on the first of the image.
                columns = tuple(mirrored(p, size[1]) for p in columns)
                yield ViewLayout(scaled, True, rows, columns)

    def window(  # noqa: D102
        self,
        image: LargeImage,
        layout: ViewLayout,
        rows: slice,
        columns: slice,
    ) -> Float32[np.ndarray, "a b c"]:
        if layout.mirrored:
            width = layout.size[1]
            columns = slice(width - columns.stop, width - columns.start)
        pixels = resize_part(image, layout.size, rows, columns, False, to_byte_scale)
        if image.dtype == np.uint8:
            pixels = np.rint(pixels)
        pixels = normalize(pixels, self.mean, self.std)
        return pixels[:, ::-1] if layout.mirrored else pixels

    def scaled_size(  # noqa: D102
        self, size: tuple[int, int], scale: float = 1.0
    ) -> tuple[int, int]:
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
        stride = self.window_distance
        count = math.ceil((length - crop) / stride) + 1
        starts = [min(i * stride, length - crop) for i in range(count)]
        return [slice(start, start + crop) for start in starts]


def _with_long_side(size: Sequence[int], long_side: int) -> tuple[int, int]:
    height, width = size
    if height > width:
        return long_side, _rounded(width * long_side / height)
    return _rounded(height * long_side / width), long_side


def _rounded(length: float) -> int:
    """Returns a length in pixels, at least 1: an image may be a thin line."""
    return max(int(length + 0.5), 1)
