"""Scores of one image on the devices, in tiles: no program depends on its size.

Windows are added to the tiles they touch by interpolation whose places and weights are
data. On many devices the tiles are split by class, so that adding needs no exchange.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from encnet_jax.inference.tta import WindowPlacement

TILE = 256  # pixels, height and width; a multiple of any number of devices below it


@dataclasses.dataclass(frozen=True)
class ScoreMapSharding:
    """How score_maps lie on devices.

    Attributes:
        num_classes: Number of classes n.
        softmax: Whether a view's scores are the softmax of what was added.
        mesh: The devices that share a score_map; their number divides `TILE`.
    """

    num_classes: int
    softmax: bool
    mesh: Mesh

    @property
    def depth(self) -> int:
        """As many classes as can be split evenly; the last are unused."""
        return math.ceil(self.num_classes / self.mesh.size) * self.mesh.size

    @property
    def by_row(self) -> NamedSharding:
        """The first axis split: tiles from above, or batches."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    @property
    def by_class(self) -> NamedSharding:
        """Tiles split by class."""
        return NamedSharding(self.mesh, PartitionSpec(None, None, "data"))

    @property
    def windows_by_class(self) -> NamedSharding:
        """Batches of windows split by class."""
        return NamedSharding(self.mesh, PartitionSpec(None, None, None, "data"))


class ScoreMapPool:
    """Makes score_maps of one sharding, and keeps their memory for the next image."""

    def __init__(self, sharding: ScoreMapSharding):
        self.sharding = sharding
        self._free: dict[bool, list[jax.Array]] = {False: [], True: []}

    def create(self, size: tuple[int, int]) -> "ScoreMap":
        """Returns an empty score_map for an image of (height, width) pixels."""
        return ScoreMap(self, size)

    def acquire(self, total: bool = False) -> jax.Array:
        """Returns a tile of zeros, split by class, or by row for a total."""
        if self._free[total]:
            return self._free[total].pop()
        layout = self.sharding
        depth = layout.num_classes if total else layout.depth
        zeros = np.zeros((TILE, TILE, depth), np.float32)
        return jax.device_put(zeros, layout.by_row if total else layout.by_class)

    def release(self, tile: jax.Array, total: bool = False) -> None:
        """Keeps a tile of zeros."""
        self._free[total].append(tile)


class ScoreMap:
    """The scores of an image while its windows come in; see `ScoreMapPool`."""

    def __init__(self, factory: ScoreMapPool, size: tuple[int, int]):
        self.size = size
        self._factory = factory
        # Tiles of the view at hand, and with softmax of all views before it.
        self._view: dict[tuple[int, int], jax.Array] = {}
        self._total: dict[tuple[int, int], jax.Array] = {}

    def add(
        self,
        scores: jax.Array,
        row: int,
        rows: WindowPlacement,
        columns: WindowPlacement,
    ) -> None:
        """Adds a window's scores where they belong.

        Args:
            scores: float32 (b, h, w, depth), split by class.
            row: Which of them.
            rows: Where the window lies, from above.
            columns: Where, from the left.
        """
        for i in range(rows.first // TILE, -(-rows.last // TILE)):
            for j in range(columns.first // TILE, -(-columns.last // TILE)):
                pixels = np.stack([_cut(rows.pixels, i), _cut(columns.pixels, j)])
                weights = np.stack([_cut(rows.weights, i), _cut(columns.weights, j)])
                tile = self._view.get((i, j))
                if tile is None:
                    tile = self._factory.acquire()
                self._view[i, j] = _add(tile, scores, np.int32(row), pixels, weights)

    def finish_view(self) -> None:
        """Closes a view: from here on another one is added."""
        sharding = self._factory.sharding
        if not sharding.softmax:
            return
        for place, tile in self._view.items():
            total = self._total.get(place)
            if total is None:
                total = self._factory.acquire(total=True)
            tile, self._total[place] = _add_softmax(tile, total, sharding)
            self._factory.release(tile)
        self._view.clear()

    def labels(self) -> "Labels":
        """Returns the classes of highest score, and frees the score_map.

        The result is on its way; see `Labels`.
        """
        parts = {}
        sharding, tiles = self._factory.sharding, self._tiles()
        for place in list(tiles):
            parts[place], tile = _highest(tiles.pop(place), sharding)
            self._factory.release(tile, total=sharding.softmax)
        return Labels(self.size, parts)

    def scores(self) -> np.ndarray:
        """Returns float32 (h, w, n), and frees the score_map."""
        depth = self._factory.sharding.num_classes
        result = np.zeros((*self.size, depth), np.float32)
        tiles = self._tiles()
        for place in list(tiles):
            box = _box(place, self.size)
            result[box] = _inside(np.asarray(tiles.pop(place)), box)[..., :depth]
        return result

    def _tiles(self) -> dict[tuple[int, int], jax.Array]:
        return self._total if self._factory.sharding.softmax else self._view


class Labels:
    """Labels that devices still work on."""

    def __init__(self, size: tuple[int, int], parts: dict[tuple[int, int], jax.Array]):
        self._size = size
        self._parts = parts

    def fetch(self) -> np.ndarray:
        """Waits for them and returns uint8 (h, w)."""
        result = np.zeros(self._size, np.uint8)
        for place, part in self._parts.items():
            box = _box(place, self._size)
            result[box] = _inside(np.asarray(part), box)
        return result


def _box(place: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    rows, columns = (
        slice(p * TILE, min((p + 1) * TILE, s)) for p, s in zip(place, size)
    )
    return rows, columns


def _inside(tile: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    rows, columns = box
    return tile[: rows.stop - rows.start, : columns.stop - columns.start]


def _cut(numbers: np.ndarray, tile: int) -> np.ndarray:
    """Returns the numbers of a tile's pixels, (2, TILE); 0 beyond the image."""
    part = numbers[:, tile * TILE : (tile + 1) * TILE]
    return np.pad(part, ((0, 0), (0, TILE - part.shape[1])))


@functools.partial(jax.jit, donate_argnums=0)
def _add(
    tile: jax.Array,
    scores: jax.Array,
    row: np.ndarray,
    pixels: np.ndarray,
    weights: np.ndarray,
) -> jax.Array:
    (upper, lower), (left, right) = pixels
    (above, below), (before, after) = weights
    part = scores[row]
    lines = above[:, None, None] * part[upper] + below[:, None, None] * part[lower]
    # Otherwise the compiler interpolates each line anew for every tap: slower on CPU.
    lines = jax.lax.optimization_barrier(lines)
    return tile + before[:, None] * lines[:, left] + after[:, None] * lines[:, right]


@functools.partial(jax.jit, donate_argnums=(0, 1), static_argnames="sharding")
def _add_softmax(
    view: jax.Array, total: jax.Array, sharding: ScoreMapSharding
) -> tuple[jax.Array, jax.Array]:
    """Returns zeros in place of the view, and the total with its softmax."""
    logits = jax.lax.with_sharding_constraint(view, sharding.by_row)
    total += jax.nn.softmax(logits[..., : sharding.num_classes], axis=-1)
    zeros = jax.lax.with_sharding_constraint(jnp.zeros_like(view), sharding.by_class)
    return zeros, jax.lax.with_sharding_constraint(total, sharding.by_row)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="sharding")
def _highest(
    tile: jax.Array, sharding: ScoreMapSharding
) -> tuple[jax.Array, jax.Array]:
    """Returns the classes of highest score, and zeros in place of the tile."""
    scores = jax.lax.with_sharding_constraint(tile, sharding.by_row)
    kept = sharding.by_row if sharding.softmax else sharding.by_class
    zeros = jax.lax.with_sharding_constraint(jnp.zeros_like(tile), kept)
    return scores[..., : sharding.num_classes].argmax(-1).astype(jnp.uint8), zeros
