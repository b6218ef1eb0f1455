"""Labels of images that are larger than memory, a block of score tiles at a time."""

import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import UInt8

from encnet_jax.inference.context import MergedModel
from encnet_jax.inference.placement import LargeImage, WindowPlacement
from encnet_jax.inference.score_map import (
    TILE,
    ScoreMap,
    ScoreMapPool,
    ScoreMapSharding,
    TileBlock,
)
from encnet_jax.inference.sliding_window import ApplyFn, make_forward_fn
from encnet_jax.inference.tta import TTAProtocol, ViewLayout
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.state import PureDict

Box = tuple[slice, slice]
# On an accelerator a window alone leaves most of it idle; on a CPU it does not.
_WINDOWS_PER_BATCH = {"cpu": 1}
_ACCELERATOR_BATCH = 8


# (params, batch_stats, image, protocol) -> parts of the label map, one per tile
LargeLabelFn = Callable[
    [PureDict, PureDict, LargeImage, TTAProtocol],
    Iterator[tuple[Box, UInt8[np.ndarray, "a b"]]],
]


def make_large_label_fn(
    model_def: MergedModel,
    num_classes: int,
    protocol: TTAProtocol,
    score_bytes: int = 1 << 30,
) -> LargeLabelFn:
    """Returns a function that labels images of any size in bounded memory.

    The labels are those of `make_score_fn` for one window a batch. Scores are kept for
    one block of the image at a time; windows that reach into several blocks pass the
    network once for each.

    Args:
        model_def: Definition of an `InferenceModel`.
        num_classes: Number of classes.
        protocol: How images are cut into windows and their scores merged. The protocol
            given with an image may have other sizes.
        score_bytes: Upper bound on the memory of the scores that are kept; at least one
            tile is kept.
    """
    device = jax.local_devices()[0]
    mesh = mesh_of([device])
    sharding = ScoreMapSharding(num_classes, protocol.softmax, mesh)
    pool = ScoreMapPool(sharding)
    bind = make_forward_fn(model_def, protocol, sharding)
    tiles = max(score_bytes // (4 * TILE**2 * sharding.depth), 1)
    count = _WINDOWS_PER_BATCH.get(device.platform, _ACCELERATOR_BATCH)

    def label(
        params: PureDict,
        batch_stats: PureDict,
        image: LargeImage,
        protocol: TTAProtocol,
    ) -> Iterator[tuple[Box, UInt8[np.ndarray, "a b"]]]:
        size = (image.shape[0], image.shape[1])
        layouts = [*protocol.layouts(size)]
        apply = bind(params, batch_stats)
        for block in blocks(layouts, size, tiles, protocol.softmax):
            adder = _WindowAdder(apply, pool.create(size, block), count)
            yield from _label_block(adder, protocol, layouts, image, block)

    return label


def blocks(
    layouts: list[ViewLayout], size: tuple[int, int], tiles: int, softmax: bool
) -> Iterator[TileBlock]:
    """Divides an image into blocks; the scores of one block are in memory at a time.

    With one view, rows of tiles are finished and freed as the windows move down, so
    that a block has the full height. With several, all windows of the first view come
    before those of the second.

    Args:
        layouts: Those of the image.
        size: Height and width of the image.
        tiles: How many tiles may be in memory.
        softmax: Whether there are tiles of a view and tiles of the total.
    """
    height, width = (-(-length // TILE) for length in size)
    reach = max(rows.last - rows.first for rows in layouts[0].rows)
    active = min(-(-reach // TILE) + 1 + softmax, height)
    if len(layouts) == 1 and active <= tiles:
        rows, columns = height, tiles // active
    else:
        rows = columns = max(math.isqrt(tiles // (1 + softmax)), 1)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield TileBlock(
                range(top, min(top + rows, height)),
                range(left, min(left + columns, width)),
            )


class _WindowAdder:
    """Passes windows through the network and adds their scores, in batches."""

    def __init__(self, apply: ApplyFn, score_map: ScoreMap, count: int):
        self.score_map = score_map
        self._apply = apply
        self._count = count
        self._waiting: list[tuple[np.ndarray, WindowPlacement, WindowPlacement]] = []
        self._running: jax.Array | None = None

    def add(
        self, window: np.ndarray, rows: WindowPlacement, columns: WindowPlacement
    ) -> None:
        if self._waiting and self._waiting[0][0].shape != window.shape:
            self.flush()
        self._waiting.append((window, rows, columns))
        if len(self._waiting) == self._count:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        windows = [window for window, *_ in self._waiting]
        windows += windows[-1:] * (self._count - len(windows))
        scores, *_ = self._apply(np.stack(windows))
        # One batch runs while the next is read; more would only take memory.
        if self._running is not None:
            self._running.block_until_ready()
        self._running = scores
        for index, (_, rows, columns) in enumerate(self._waiting):
            self.score_map.add(scores, index, rows, columns)
        self._waiting.clear()


def _label_block(
    adder: _WindowAdder,
    protocol: TTAProtocol,
    layouts: list[ViewLayout],
    image: LargeImage,
    block: TileBlock,
) -> Iterator[tuple[Box, UInt8[np.ndarray, "a b"]]]:
    score_map = adder.score_map
    finished = block.rows.start  # rows of tiles above it
    for layout in layouts:
        columns = _touching(layout.columns, block.columns)
        for row in _touching(layout.rows, block.rows):
            if len(layouts) == 1:  # rows of tiles that no further window touches
                adder.flush()
                while (finished + 1) * TILE <= row.first:
                    yield from _row_labels(score_map, finished)
                    finished += 1
            for column in columns:
                window = protocol.window(image, layout, row.window, column.window)
                adder.add(window, row, column)
        adder.flush()
        if len(layouts) > 1:
            score_map.finish_view()
    for row_of_tiles in range(finished, block.rows.stop):
        yield from _row_labels(score_map, row_of_tiles)


def _row_labels(
    score_map: ScoreMap, row: int
) -> Iterator[tuple[Box, UInt8[np.ndarray, "a b"]]]:
    score_map.finish_view(row)
    yield from score_map.labels(row).fetch_tiles()


def _touching(
    placements: tuple[WindowPlacement, ...], tiles: range
) -> list[WindowPlacement]:
    """Returns the windows that contribute to any of the tiles along an axis."""
    first, last = tiles.start * TILE, tiles.stop * TILE
    return [p for p in placements if p.first < last and p.last > first]
