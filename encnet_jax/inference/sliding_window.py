"""The windows of many images through a network, in full batches of one shape."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from encnet_jax.inference.score_map import ScoreMap, ScoreMapPool, ScoreMapSharding
from encnet_jax.inference.tta import TTAProtocol, WindowPlacement

# float32 windows (b, h, w, 3) -> what `merge_hflip` returns.
Apply = Callable[[np.ndarray], tuple[jax.Array, jax.Array | None]]
_Item = TypeVar("_Item")


class Finished(NamedTuple):
    """An image of which every window has passed.

    Attributes:
        key: What it came with.
        score_map: Its scores.
        presence: Of each window, an array (b, n) and the row in it; empty if the
            network tells none.
    """

    key: Any
    score_map: ScoreMap
    presence: list[tuple[jax.Array, int]]


class _Window(NamedTuple):
    pixels: np.ndarray
    image: Finished
    rows: WindowPlacement
    columns: WindowPlacement
    ends_view: bool
    ends_image: bool


def add_hflip(windows: Any, mirror: bool) -> Any:
    """Returns (b, h, w, 3), with `mirror` (2 b, ...): each beside its mirror image."""
    if not mirror:
        return windows
    xp = jnp if isinstance(windows, jax.Array) else np
    pairs = xp.stack([windows, windows[:, :, ::-1]], 1)
    return pairs.reshape(-1, *windows.shape[1:])


def merge_hflip(
    logits: jax.Array,
    presence: jax.Array | None,
    mirror: bool,
    sharding: ScoreMapSharding,
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the scores of windows and the probability that classes are present.

    Args:
        logits: Of `add_hflip` windows, (b or 2 b, h, w, n).
        presence: Likewise (b or 2 b, n), before the sigmoid, or None.
        mirror: Add up each window and its mirror image.
        sharding: Of what they are added to.

    Returns:
        float32 (b, h, w, depth), split by class; float32 (b, n) or None.
    """
    # Up to here each device has windows of its own, from here on classes.
    logits = jax.lax.with_sharding_constraint(logits, sharding.by_row)
    scores = logits.astype(jnp.float32)
    if presence is not None:
        presence = jax.nn.sigmoid(presence.astype(jnp.float32))
    if mirror:
        scores = scores[::2] + scores[1::2, :, ::-1]
        if presence is not None:
            presence = (presence[::2] + presence[1::2]) / 2
    if not sharding.softmax:
        scores = jnp.exp(scores)
    unused = sharding.depth - scores.shape[-1]
    if unused:
        scores = jnp.pad(scores, [(0, 0)] * 3 + [(0, unused)])
    scores = jax.lax.with_sharding_constraint(scores, sharding.windows_by_class)
    return scores, presence


def run_sliding_window(
    images: Iterable[tuple[Any, np.ndarray]],
    apply: Apply,
    protocol: TTAProtocol,
    score_maps: ScoreMapPool,
    batch_size: int,
) -> Iterator[Finished]:
    """Passes the windows of images through a network and yields the images in order.

    Windows of the full size share batches, whatever images they are of; smaller ones,
    that only mmsegmentation's rules have, are of a shape of their own and do not wait.

    Args:
        images: Keys and images, as `protocol` takes them.
        apply: Maps float32 (b, h, w, 3) to what `merge_hflip` returns.
        protocol: How images are cut.
        score_maps: Where scores are added.
        batch_size: Windows that pass together; a multiple of the devices.
    """
    full = (protocol.window_size, protocol.window_size, 3)
    running: deque[jax.Array] = deque()
    waiting: list[_Window] = []

    def flush() -> Iterator[Finished]:
        shape = waiting[0].pixels.shape
        devices = score_maps.sharding.mesh.size
        size = batch_size if shape == full else -(-len(waiting) // devices) * devices
        fill = [waiting[-1].pixels] * (size - len(waiting))
        scores, presence = apply(np.stack([w.pixels for w in waiting] + fill))
        # One batch is computed while the next is made; more would only take memory.
        running.append(scores)
        if len(running) > 1:
            running.popleft().block_until_ready()
        for row, window in enumerate(waiting):
            score_map = window.image.score_map
            score_map.add(scores, row, window.rows, window.columns)
            if presence is not None:
                window.image.presence.append((presence, row))
            if window.ends_view:
                score_map.finish_view()
            if window.ends_image:
                yield window.image
        waiting.clear()

    for window in _windows(images, protocol, score_maps):
        if waiting and waiting[0].pixels.shape != window.pixels.shape:
            yield from flush()
        waiting.append(window)
        small_end = window.ends_image and window.pixels.shape != full
        if small_end or len(waiting) == batch_size:
            yield from flush()
    if waiting:
        yield from flush()


def _windows(
    images: Iterable[tuple[Any, np.ndarray]],
    protocol: TTAProtocol,
    score_maps: ScoreMapPool,
) -> Iterator[_Window]:
    for key, image in images:
        result = Finished(key, score_maps.create(image.shape[:2]), [])
        for view, last_view in _marked(protocol.views(image)):
            places = itertools.product(view.rows, view.columns)
            for (rows, columns), last in _marked(places):
                pixels = view.pixels[rows.window, columns.window]
                ends = last_view and last
                yield _Window(pixels, result, rows, columns, last, ends)


def _marked(items: Iterable[_Item]) -> Iterator[tuple[_Item, bool]]:
    """Yields each item and whether it is the last."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True
