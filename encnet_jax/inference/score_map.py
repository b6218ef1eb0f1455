"""Score maps: the class scores of an image accumulated on the devices, in tiles.

Tiles have one shape, so no program depends on the image size. A window is added to the
tiles it touches by interpolation whose indices and weights are data. On several devices
the tiles are split by class, so that adding needs no communication.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, UInt8

from encnet_jax.inference.placement import WindowPlacement

TILE = 256  # height and width in pixels; divisible by any smaller power of two


@dataclasses.dataclass(frozen=True)
class ScoreMapSharding:
    """How score maps are laid out over devices.

    Attributes:
        num_classes: Number of classes n.
        softmax: Whether the scores of a view are the softmax of what was added.
        mesh: The devices that share a score map. Rows are split only where their number
            divides `TILE`.
    """

    num_classes: int
    softmax: bool
    mesh: Mesh

    @property
    def depth(self) -> int:
        """The number of classes, padded to a multiple of the devices."""
        return math.ceil(self.num_classes / self.mesh.size) * self.mesh.size

    @property
    def by_row(self) -> NamedSharding:
        """The first axis split: rows of a tile, or a batch."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    @property
    def of_result(self) -> NamedSharding:
        """Tiles with the final scores: the sum over views, or the only view."""
        return self.by_row if self.softmax else self.by_class

    @property
    def by_class(self) -> NamedSharding:
        """Tiles split by class."""
        return NamedSharding(self.mesh, PartitionSpec(None, None, "data"))

    @property
    def windows_by_class(self) -> NamedSharding:
        """Batches of windows split by class."""
        return NamedSharding(self.mesh, PartitionSpec(None, None, None, "data"))


class TileBlock(NamedTuple):
    """A rectangle of tiles; `TILE` times the ranges are its pixels."""

    rows: range
    columns: range


class ScoreMapPool:
    """Creates score maps of one sharding and reuses their memory between images."""

    def __init__(self, sharding: ScoreMapSharding):
        self.sharding = sharding
        self._free: dict[bool, list[jax.Array]] = {False: [], True: []}

    def create(
        self, size: tuple[int, int], block: TileBlock | None = None
    ) -> "ScoreMap":
        """Returns an empty score map for an image of (height, width) pixels.

        With a block, what is added outside of it is dropped.
        """
        return ScoreMap(self, size, block)

    def acquire(self, total: bool = False) -> jax.Array:
        """Returns a tile of zeros, split by class, or by row for a total."""
        try:  # not first asking for one: another thread may take it in between
            return self._free[total].pop()
        except IndexError:
            return _zeros(self.sharding, total)

    def release(self, tile: jax.Array, total: bool = False) -> None:
        """Takes back a tile, which must be zeros again."""
        self._free[total].append(tile)


class ScoreMap:
    """The scores of an image while its windows arrive; see `ScoreMapPool`."""

    def __init__(
        self,
        pool: ScoreMapPool,
        size: tuple[int, int],
        block: TileBlock | None = None,
    ):
        self.size = size
        self._pool = pool
        height, width = (-(-length // TILE) for length in size)
        self._block = block or TileBlock(range(height), range(width))
        # Tiles of the current view and, with softmax, of the sum over finished views.
        self._view: dict[tuple[int, int], jax.Array] = {}
        self._total: dict[tuple[int, int], jax.Array] = {}

    def add(
        self,
        scores: Float32[Array, "b h w depth"],
        index: int,
        rows: WindowPlacement,
        columns: WindowPlacement,
    ) -> None:
        """Adds the scores of a window.

        Args:
            scores: Scores of a batch of windows, split by class.
            index: Index of the window in the batch.
            rows: Placement of the window along the height.
            columns: Placement of the window along the width.
        """
        for i in _tiles_of(rows, self._block.rows):
            for j in _tiles_of(columns, self._block.columns):
                pixels = np.stack(
                    [_cut(rows.pixels, rows, i), _cut(columns.pixels, columns, j)]
                )
                weights = np.stack(
                    [_cut(rows.weights, rows, i), _cut(columns.weights, columns, j)]
                )
                tile = self._view.get((i, j))
                if tile is None:
                    tile = self._pool.acquire()
                self._view[i, j] = _add(tile, scores, np.int32(index), pixels, weights)

    def finish_view(self, row: int | None = None) -> None:
        """Marks the end of a view; windows of the next one may follow.

        Args:
            row: Finish this row of tiles only; None: all.
        """
        sharding = self._pool.sharding
        if not sharding.softmax:
            return
        for place in _places(self._view, row):
            tile = self._view.pop(place)
            total = self._total.get(place)
            if total is None:
                total = self._pool.acquire(total=True)
            tile, self._total[place] = _add_softmax(tile, total, sharding)
            self._pool.release(tile)

    def labels(self, row: int | None = None) -> "Labels":
        """Returns the highest-scoring classes and frees the score map.

        Asynchronous: the result is still being computed, see `Labels`.

        Args:
            row: Label this row of tiles only; None: all.
        """
        parts = {}
        sharding, tiles = self._pool.sharding, self._tiles()
        for place in _places(tiles, row):
            parts[place], tile = _argmax(tiles.pop(place), sharding)
            self._pool.release(tile, total=sharding.softmax)
        return Labels(self.size, parts)

    def labels_with_confidence(
        self,
    ) -> tuple[UInt8[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
        """Returns the labels and their confidence; frees the score map.

        The confidence is the share of the class in the scores of all classes.
        """
        labels = np.zeros(self.size, np.uint8)
        confidence = np.zeros(self.size, np.float32)
        sharding, tiles = self._pool.sharding, self._tiles()
        for place in list(tiles):
            box = _box(place, self.size)
            classes, shares, tile = _argmax_with_confidence(tiles.pop(place), sharding)
            labels[box] = _crop(np.asarray(classes), box)
            confidence[box] = _crop(np.asarray(shares), box)
            self._pool.release(tile, total=sharding.softmax)
        return labels, confidence

    def scores(self) -> Float32[np.ndarray, "h w n"]:
        """Returns the scores and frees the score map."""
        num_classes = self._pool.sharding.num_classes
        result = np.zeros((*self.size, num_classes), np.float32)
        tiles = self._tiles()
        for place in list(tiles):
            box = _box(place, self.size)
            result[box] = _crop(np.asarray(tiles.pop(place)), box)[..., :num_classes]
        return result

    def _tiles(self) -> dict[tuple[int, int], jax.Array]:
        return self._total if self._pool.sharding.softmax else self._view


class Labels:
    """Labels that devices are still computing."""

    def __init__(self, size: tuple[int, int], parts: dict[tuple[int, int], jax.Array]):
        self._size = size
        self._parts = parts

    def fetch(self) -> UInt8[np.ndarray, "h w"]:
        """Waits for the labels and returns them."""
        result = np.zeros(self._size, np.uint8)
        for box, labels in self.fetch_tiles():
            result[box] = labels
        return result

    def fetch_tiles(
        self,
    ) -> Iterator[tuple[tuple[slice, slice], UInt8[np.ndarray, "a b"]]]:
        """Waits for each tile; yields its place in the image and its labels."""
        for place, part in self._parts.items():
            box = _box(place, self._size)
            yield box, _crop(np.asarray(part), box)


def _tiles_of(placement: WindowPlacement, tiles: range) -> range:
    """Returns which of the tiles along an axis a window contributes to."""
    first, last = placement.first // TILE, -(-placement.last // TILE)
    return range(max(first, tiles.start), min(last, tiles.stop))


def _places(tiles: dict[tuple[int, int], jax.Array], row: int | None) -> list:
    """Returns the places of tiles, of one row or all."""
    return [place for place in tiles if row in (None, place[0])]


def _box(place: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Returns the image pixels of the tile at a row and column of tiles."""
    rows, columns = (
        slice(p * TILE, min((p + 1) * TILE, s)) for p, s in zip(place, size)
    )
    return rows, columns


def _crop(tile: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    rows, columns = box
    return tile[: rows.stop - rows.start, : columns.stop - columns.start]


def _cut(values: np.ndarray, placement: WindowPlacement, tile: int) -> np.ndarray:
    """Returns the values (2, TILE) of a tile's pixels; 0 where the window is not."""
    result = np.zeros((2, TILE), values.dtype)
    first = max(placement.first, tile * TILE)
    last = min(placement.last, (tile + 1) * TILE)
    result[:, first - tile * TILE : last - tile * TILE] = values[
        :, first - placement.first : last - placement.first
    ]
    return result


@functools.partial(jax.jit, static_argnames=("sharding", "total"))
def _zeros(sharding: ScoreMapSharding, total: bool) -> jax.Array:
    # Compiled: there a size that the devices do not divide is allowed.
    depth = sharding.num_classes if total else sharding.depth
    layout = sharding.by_row if total else sharding.by_class
    zeros = jnp.zeros((TILE, TILE, depth), jnp.float32)
    return jax.lax.with_sharding_constraint(zeros, layout)


@functools.partial(jax.jit, donate_argnums=0)
def _add(
    tile: jax.Array,
    scores: jax.Array,
    index: jax.Array,
    pixels: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    (upper, lower), (left, right) = pixels
    (above, below), (before, after) = weights
    window = scores[index]
    rows = above[:, None, None] * window[upper] + below[:, None, None] * window[lower]
    # Otherwise XLA recomputes each row for both of its taps, which is slower on CPU.
    rows = jax.lax.optimization_barrier(rows)
    return tile + before[:, None] * rows[:, left] + after[:, None] * rows[:, right]


@functools.partial(jax.jit, donate_argnums=(0, 1), static_argnames="sharding")
def _add_softmax(
    view: jax.Array, total: jax.Array, sharding: ScoreMapSharding
) -> tuple[jax.Array, jax.Array]:
    """Returns zeros in the memory of the view, and the total plus its softmax."""
    logits = jax.lax.with_sharding_constraint(view, sharding.by_row)
    total += jax.nn.softmax(logits[..., : sharding.num_classes], axis=-1)
    zeros = jax.lax.with_sharding_constraint(jnp.zeros_like(view), sharding.by_class)
    return zeros, jax.lax.with_sharding_constraint(total, sharding.by_row)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="sharding")
def _argmax(tile: jax.Array, sharding: ScoreMapSharding) -> tuple[jax.Array, jax.Array]:
    """Returns the highest-scoring classes, and zeros in the memory of the tile."""
    scores, zeros = _take_scores(tile, sharding)
    return scores.argmax(-1).astype(jnp.uint8), zeros


@functools.partial(jax.jit, donate_argnums=0, static_argnames="sharding")
def _argmax_with_confidence(
    tile: jax.Array, sharding: ScoreMapSharding
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns classes, their shares of the scores, and zeros as `_argmax` does."""
    scores, zeros = _take_scores(tile, sharding)
    total = jnp.maximum(scores.sum(-1), jnp.finfo(jnp.float32).tiny)
    return scores.argmax(-1).astype(jnp.uint8), scores.max(-1) / total, zeros


def _take_scores(
    tile: jax.Array, sharding: ScoreMapSharding
) -> tuple[jax.Array, jax.Array]:
    """Returns the scores of the classes by row, and zeros in the memory of the tile."""
    scores = jax.lax.with_sharding_constraint(tile, sharding.by_row)
    zeros = jax.lax.with_sharding_constraint(jnp.zeros_like(tile), sharding.of_result)
    return scores[..., : sharding.num_classes], zeros
