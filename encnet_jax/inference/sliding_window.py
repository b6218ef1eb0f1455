"""Sliding windows: the windows of many images in full batches of one shape."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from encnet_jax.errors import UserError
from encnet_jax.inference.context import MergedModel, forward_with_gate
from encnet_jax.inference.placement import WindowPlacement
from encnet_jax.inference.predict_fn import pad_inputs, presence_probabilities
from encnet_jax.inference.score_map import ScoreMap, ScoreMapPool, ScoreMapSharding
from encnet_jax.inference.tta import TTAProtocol, TTAView
from encnet_jax.ops.resize_argmax import resize_logits
from encnet_jax.run.sharding import batch_sharded
from encnet_jax.run.state import PureDict

# Windows (b, h, w, c), normalized -> what `merge_hflip` returns, and the gates of the
# Context Encoding Module or None.
ApplyFn = Callable[
    [Float32[np.ndarray, "b h w c"]],
    tuple[
        Float32[Array, "b h w depth"],
        Float32[Array, "b n"] | None,
        Float32[Array, "b c"] | None,
    ],
]
MAX_LOGIT = 80.0  # keeps the sum of some windows' exponentials finite in float32
_Item = TypeVar("_Item")


class ImageScores(NamedTuple):
    """The scores of an image, complete when `run_sliding_window` yields it.

    Attributes:
        key: The key that the image came with.
        score_map: Its scores.
        presence: For each window an array (b, n) and the index of the window in it;
            empty if the network has no semantic encoding branch.
        gates: Likewise the gates (b, c) of the Context Encoding Module.
    """

    key: Any
    score_map: ScoreMap
    presence: list[tuple[jax.Array, int]]
    gates: list[tuple[jax.Array, int]]


# (params, batch_stats, keys and images, windows per batch and device, mirrored ones
# included) -> the scores of each image, in order.
ScoreFn = Callable[
    [PureDict, PureDict, Iterable[tuple[Any, np.ndarray]], int], Iterator[ImageScores]
]


class _Window(NamedTuple):
    pixels: np.ndarray
    image: ImageScores
    rows: WindowPlacement
    columns: WindowPlacement
    ends_view: bool
    ends_image: bool


def add_hflip(windows: Any, mirror: bool) -> Any:
    """Returns windows (b, h, w, c), or with `mirror` (2 b, h, w, c).

    Each window is followed by its mirror image. NumPy in, NumPy out.
    """
    if not mirror:
        return windows
    xp = jnp if isinstance(windows, jax.Array) else np
    pairs = xp.stack([windows, windows[:, :, ::-1]], 1)
    return pairs.reshape(-1, *windows.shape[1:])


def merge_hflip(
    logits: Float[Array, "b h w n"],
    se_logits: Float[Array, "b n"] | None,
    mirror: bool,
    sharding: ScoreMapSharding,
) -> tuple[Float32[Array, "c h w depth"], Float32[Array, "c n"] | None]:
    """Returns scores and class presence probabilities of windows.

    Args:
        logits: Logits of what `add_hflip` returned.
        se_logits: Presence logits of the same, or None.
        mirror: Whether to sum each window and its mirror image; then b is 2 c.
        sharding: Layout of the score map that the scores are added to.

    Returns:
        Scores, split by class, and probabilities or None.

    Raises:
        UserError: The logits have another number of classes.
    """
    if logits.shape[-1] != sharding.num_classes:
        raise UserError(
            f"num_classes={sharding.num_classes}: must be {logits.shape[-1]}, that of "
            "the logits"
        )
    # Up to here each device holds whole windows, from here on classes.
    logits = jax.lax.with_sharding_constraint(logits, sharding.by_row)
    scores = logits.astype(jnp.float32)
    presence = presence_probabilities(se_logits)
    if mirror:
        scores = scores[::2] + scores[1::2, :, ::-1]
        if presence is not None:
            presence = (presence[::2] + presence[1::2]) / 2
    if not sharding.softmax:
        # Logits of the published networks stay far below: no score becomes infinite.
        scores = jnp.exp(jnp.minimum(scores, MAX_LOGIT))
    unused = sharding.depth - scores.shape[-1]
    if unused:
        scores = jnp.pad(scores, [(0, 0)] * 3 + [(0, unused)])
    scores = jax.lax.with_sharding_constraint(scores, sharding.windows_by_class)
    return scores, presence


def make_forward_fn(
    model_def: MergedModel, protocol: TTAProtocol, sharding: ScoreMapSharding
) -> Callable[[PureDict, PureDict], ApplyFn]:
    """Returns a function from (params, batch_stats) to the network with them.

    Args:
        model_def: Definition of an `InferenceModel`.
        protocol: Whether windows are mirrored as well.
        sharding: Layout of the score map that the scores are added to.
    """
    mirror = protocol.mirror_windows

    @jax.jit
    def forward(
        params: PureDict, batch_stats: PureDict, windows: Float32[Array, "b h w c"]
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        network: Any = model_def.merge(params, batch_stats)
        padded = pad_inputs(network, add_hflip(windows, mirror))
        output, gates = forward_with_gate(network, padded)
        logits = resize_logits(
            output.logits,
            [(windows.shape[1], windows.shape[2])],
            [network.align_corners],
            covers=(padded.shape[1], padded.shape[2]),
        )
        if gates is not None and mirror:
            gates = (gates[::2] + gates[1::2]) / 2
        return *merge_hflip(logits, output.se_logits, mirror, sharding), gates

    def bind(params: PureDict, batch_stats: PureDict) -> ApplyFn:
        return lambda windows: forward(
            params, batch_stats, jax.device_put(windows, batch_sharded(sharding.mesh))
        )

    return bind


def make_score_fn(
    model_def: MergedModel, num_classes: int, protocol: TTAProtocol, mesh: Mesh
) -> ScoreFn:
    """Returns a function from images to their scores, with the network of a model.

    Args:
        model_def: Definition of an `InferenceModel`.
        num_classes: Number of classes.
        protocol: How images are cut into windows and their scores merged.
        mesh: Devices that share a batch of windows.
    """
    sharding = ScoreMapSharding(num_classes, protocol.softmax, mesh)
    pool = ScoreMapPool(sharding)
    mirror = protocol.mirror_windows
    bind = make_forward_fn(model_def, protocol, sharding)

    def scores_of(
        params: PureDict,
        batch_stats: PureDict,
        images: Iterable[tuple[Any, np.ndarray]],
        batch_size: int,
    ) -> Iterator[ImageScores]:
        windows_per_device = max(batch_size // 2, 1) if mirror else batch_size
        count = windows_per_device * mesh.size
        return run_sliding_window(
            images, bind(params, batch_stats), protocol, pool, count
        )

    return scores_of


def mean_over_windows(
    values: Sequence[tuple[jax.Array, int]],
) -> Float32[np.ndarray, " n"] | None:
    """Returns the mean of `ImageScores.presence` or `.gates`, or None."""
    rows = [np.asarray(array)[row] for array, row in values]
    return np.asarray(np.mean(rows, 0, dtype=np.float32)) if rows else None


def run_sliding_window(
    images: Iterable[tuple[Any, np.ndarray]],
    apply: ApplyFn,
    protocol: TTAProtocol,
    pool: ScoreMapPool,
    batch_size: int,
) -> Iterator[ImageScores]:
    """Passes the windows of images through a network; yields the images in order.

    Full-size windows of all images share batches. Smaller ones, which only
    `MmsegProtocol` produces, form batches of their own shape and do not wait for more.

    Args:
        images: Keys and images, as `protocol.views` takes them.
        apply: The network; see `ApplyFn`.
        protocol: How images are cut into windows.
        pool: Source of score maps.
        batch_size: Windows per batch; a multiple of the number of devices.
    """
    full = (protocol.crop_size, protocol.crop_size, len(protocol.mean))
    running: deque[jax.Array] = deque()
    waiting: list[_Window] = []

    def flush() -> Iterator[ImageScores]:
        shape = waiting[0].pixels.shape
        devices = pool.sharding.mesh.size
        size = batch_size if shape == full else -(-len(waiting) // devices) * devices
        fill = [waiting[-1].pixels] * (size - len(waiting))
        scores, presence, gates = apply(np.stack([w.pixels for w in waiting] + fill))
        # One batch runs while the next is assembled; more would only take memory.
        running.append(scores)
        if len(running) > 1:
            running.popleft().block_until_ready()
        for index, window in enumerate(waiting):
            score_map = window.image.score_map
            score_map.add(scores, index, window.rows, window.columns)
            if presence is not None:
                window.image.presence.append((presence, index))
            if gates is not None:
                window.image.gates.append((gates, index))
            if window.ends_view:
                score_map.finish_view()
            if window.ends_image:
                yield window.image
        waiting.clear()

    for window in _windows(images, protocol, pool):
        if waiting and waiting[0].pixels.shape != window.pixels.shape:
            yield from flush()
        waiting.append(window)
        small_end = window.ends_image and window.pixels.shape != full
        if small_end or len(waiting) == batch_size:
            yield from flush()
    if waiting:
        yield from flush()


def _windows(
    images: Iterable[tuple[Any, np.ndarray]], protocol: TTAProtocol, pool: ScoreMapPool
) -> Iterator[_Window]:
    ahead = images_ahead(pool.sharding.mesh)
    for key, size, views in _views_of(images, protocol, ahead):
        result = ImageScores(key, pool.create(size), [], [])
        for view, last_view in _mark_last(views):
            placements = itertools.product(view.rows, view.columns)
            for (rows, columns), last in _mark_last(placements):
                pixels = view.pixels[rows.window, columns.window]
                ends_image = last_view and last
                yield _Window(pixels, result, rows, columns, last, ends_image)


def images_ahead(mesh: Mesh) -> int:
    """Returns for how many images threads make the views before they are needed.

    On a GPU the network takes less time than the resizing. On CPU both would share the
    cores.
    """
    return 0 if mesh.devices.flat[0].platform == "cpu" else 3


def _views_of(
    images: Iterable[tuple[Any, np.ndarray]], protocol: TTAProtocol, ahead: int
) -> Iterator[tuple[Any, tuple[int, int], Iterable[TTAView]]]:
    """Yields keys, sizes and views of images.

    The views of the first image are made lazily, so that its windows start at once.

    Args:
        images: Keys and images.
        protocol: What makes the views.
        ahead: See `images_ahead`.
    """
    threads = ThreadPoolExecutor(max(ahead, 1))  # started by the first image but one
    waiting: deque[tuple[Any, tuple[int, int], Callable[[], Iterable[TTAView]]]]
    waiting = deque()

    def next_image() -> tuple[Any, tuple[int, int], Iterable[TTAView]]:
        key, size, views = waiting.popleft()
        return key, size, views()

    try:
        for index, (key, image) in enumerate(images):
            make: Callable[[], Iterable[TTAView]]
            make = functools.partial(protocol.views, image)
            if ahead and index > 0:
                make = threads.submit(lambda make: list(make()), make).result
            waiting.append((key, image.shape[:2], make))
            if len(waiting) > ahead:
                yield next_image()
        while waiting:
            yield next_image()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _mark_last(items: Iterable[_Item]) -> Iterator[tuple[_Item, bool]]:
    """Yields each item and whether it is the last."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True
