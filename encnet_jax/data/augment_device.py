"""Augmentation inside the compiled step, without TensorFlow.

For data sets cached on the device, the host sends only indices, and the parameters are
sampled here, from the same distribution as `augmentation.sample_crop`. For data sets in
files, it sends decoded pixels with the parameters that it sampled.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Num, UInt8

from encnet_jax.data.augmentation import Augmentation, jitter, max_offsets
from encnet_jax.data.class_crop import class_centered_start
from encnet_jax.data.crop_grid import Axis, CropGrid, RotatedGrid
from encnet_jax.data.dataset_info import IGNORE_LABEL
from encnet_jax.data.rotation import Frame, Rotation, max_window, rotate
from encnet_jax.ops.normalize import to_byte_scale


def augmented_batch(
    arrays: dict[str, jax.Array],
    batch: dict[str, jax.Array],
    seed: jax.Array | int,
    augmentation: Augmentation,
) -> tuple[Float32[Array, "b crop crop c"], UInt8[Array, "b ..."]]:
    """Gathers and augments the examples of a batch; to be called under `jax.jit`.

    Bands are scaled to 0-255, but not rounded.

    Args:
        arrays: The output of `array_dataset.load_arrays`, on the device.
        batch: `index` and `epoch`, int32 (b,), from `sampler.index_batches`.
        seed: Seed of the run.
        augmentation: Settings of the augmentation.

    Returns:
        Images, 0-255 RGB, and labels, (b, crop, crop), or (b,) for classification.
    """
    augment = _scaled_crop if arrays["labels"].ndim == 3 else _padded_crop

    def augment_one(index: jax.Array, epoch: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        key = jax.random.fold_in(key, index)
        image, labels = arrays["images"][index], arrays["labels"][index]
        return augment(to_byte_scale(image), labels, key, augmentation)

    return jax.vmap(augment_one)(batch["index"], batch["epoch"])


def resized_batch(
    batch: dict[str, jax.Array], augmentation: Augmentation
) -> tuple[Float32[Array, "b crop crop c"], UInt8[Array, "b crop crop"]]:
    """Resizes a batch of padded source pixels to crops, under `jax.jit`.

    Args:
        batch: The batch that `augment_host.DeviceResizer` filled, with `labels` uint8
            (b, crop, crop): cropped on the host, they are a ninth of the bytes.
        augmentation: The settings by which the batch was sampled.

    Returns:
        Images, 0-255 RGB, and labels.
    """
    pixels = max_window(augmentation.crop_size, augmentation.rotation)

    def resize_one(example: dict[str, jax.Array]) -> jax.Array:
        rows, columns = (
            Axis(length, step, start, visible, pixels, size)
            for (start, step, visible, length), size in zip(
                (example["rows"], example["columns"]), example["padded"].shape
            )
        )
        grid = CropGrid(rows, columns)
        if augmentation.rotation:
            rotation = Rotation(*example["rotation"])
            grid = RotatedGrid(rows, columns, rotation, augmentation.crop_size)
        if augmentation.flip:
            grid.flip(example["flipped"])
        padded = to_byte_scale(example["padded"])
        return _resample(padded, grid, example["colors"], augmentation)

    examples = {key: value for key, value in batch.items() if key != "labels"}
    return jax.vmap(resize_one)(examples), batch["labels"]


def _scaled_crop(
    image: Num[Array, "h w c"],
    labels: UInt8[Array, "h w"],
    key: jax.Array,
    augmentation: Augmentation,
) -> tuple[Float32[Array, "crop crop c"], UInt8[Array, "crop crop"]]:
    """Scales, crops, flips and jitters an image with its label map at random."""
    draws = jax.random.uniform(key, (7,))
    original = jnp.asarray(labels.shape, jnp.float32)
    low, high = augmentation.scale_range
    long_side = jnp.round((low + (high - low) * draws[0]) * augmentation.base_size)
    size = jnp.maximum(jnp.round(original * long_side / original.max()), 1)
    max_start = jnp.maximum(size - augmentation.crop_size, 0)
    start = jnp.minimum(jnp.floor(draws[1:3] * (max_start + 1)), max_start)
    angle = None
    if augmentation.rotation:
        angle = jax.random.uniform(jax.random.fold_in(key, 1), (), minval=-1, maxval=1)
        angle = augmentation.rotation * angle
    if augmentation.class_crop_rate:
        own_key = jax.random.fold_in(key, 2)
        start = class_centered_start(start, size, angle, labels, own_key, augmentation)
    visible, crop = size - start, augmentation.crop_size
    if augmentation.rotation:
        frames = (Frame(*axis) for axis in zip(size, start, jnp.minimum(visible, crop)))
        rotation, windows = rotate(angle, frames, jnp)
        start, visible = map(jnp.stack, zip(*windows))
    pixels = max_window(crop, augmentation.rotation)
    rows, columns = (
        Axis(length, length / size[i], start[i], visible[i], pixels)
        for i, length in enumerate(labels.shape)
    )
    grid = CropGrid(rows, columns)
    if augmentation.rotation:
        grid = RotatedGrid(rows, columns, rotation, crop)
    if augmentation.flip:
        grid.flip(draws[3] < 0.5)
    image = _resample(image, grid, draws[4:], augmentation)
    nearest = grid.nearest(labels)
    return image, jnp.where(grid.inside, nearest, jnp.uint8(IGNORE_LABEL))


def _padded_crop(
    image: Num[Array, "h w c"],
    label: UInt8[Array, ""],
    key: jax.Array,
    augmentation: Augmentation,
) -> tuple[Float32[Array, "crop crop c"], UInt8[Array, ""]]:
    """Pads an image with black, then crops, flips and jitters it at random."""
    draws = jax.random.uniform(key, (6,))
    border = (augmentation.pad, augmentation.pad)
    padded = jnp.pad(image, (border, border, (0, 0))).astype(jnp.float32)
    limits = jnp.asarray(max_offsets(augmentation, image.shape))
    start = jnp.minimum((draws[:2] * (limits + 1)).astype(jnp.int32), limits)
    size = (augmentation.crop_size, augmentation.crop_size)
    crop = jax.lax.dynamic_slice(
        padded, (start[0], start[1], 0), (*size, image.shape[-1])
    )
    if augmentation.flip:
        crop = jnp.where(draws[2] < 0.5, crop[:, ::-1], crop)
    if augmentation.color_jitter:
        inside = jnp.pad(jnp.ones(image.shape[:2], bool), augmentation.pad)
        inside = jax.lax.dynamic_slice(inside, (start[0], start[1]), size)
        if augmentation.flip:
            inside = jnp.where(draws[2] < 0.5, inside[:, ::-1], inside)
        crop = jitter(crop, draws[3:], augmentation.color_jitter, inside)
        crop = jnp.clip(crop, 0, 255)
    return crop, label


def _resample(
    image: Num[Array, "h w c"],
    grid: CropGrid,
    colors: Float[Array, "3"],
    augmentation: Augmentation,
) -> Float32[Array, "crop crop c"]:
    """Returns the jittered crop, 0-255, black outside the image.

    uint8 images are rounded, as on the host.
    """
    pixels = grid.resample(image)
    if augmentation.color_jitter:
        pixels = jitter(pixels, colors, augmentation.color_jitter, grid.inside)
    pixels = jnp.clip(pixels, 0, 255)
    return jnp.round(pixels) if image.dtype == jnp.uint8 else pixels
