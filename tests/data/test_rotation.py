"""Rotation and color jitter on every path: host, device, and cached on the device."""

import functools
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.augment_device import augmented_batch, resized_batch
from encnet_jax.data.augmentation import Augmentation, padded_crop, sample_crop
from encnet_jax.data.rotation import max_window
from tests.data import geometry

augment_host = pytest.importorskip("encnet_jax.data.augment_host")

RNG = np.random.default_rng(0)
UNSCALED = dict(scale_range=(1.0, 1.0), flip=False)
# Draws of scale, row, column, flip, brightness, contrast, saturation.
STILL = (0.0, 0.0, 0.0, 0.9, 0.5, 0.5, 0.5)
WEAKEST_CONTRAST = (*STILL[:5], 0.0, 0.5)


class Draws:
    """In place of a generator: the same draws each time, then the one of the angle."""

    def __init__(self, values, angle=1.0):
        self.values, self.angle = np.array(values), angle

    def random(self, size=None, dtype=float):
        return self.angle if size is None else self.values[-size:].astype(dtype)


def encoded_image(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return augment_host.EncodedImage.open(file.getvalue())


def host_labels(labels, params, crop_size):
    crop = np.full((crop_size, crop_size), 255, np.uint8)
    visible = params.crop_labels(labels)
    if params.angle:
        visible[~params.covered()] = 255
    crop[params.inside(crop_size)] = visible
    return crop


def on_host(image, labels, augmentation, rng):
    params = sample_crop(augmentation, labels.shape, rng)
    resizer = augment_host.HostResizer(augmentation)
    batch = resizer.empty(1)
    batch["images"][:] = 77
    resizer.fill(batch, 0, encoded_image(image), params)
    return batch["images"][0], host_labels(labels, params, augmentation.crop_size)


def on_device(image, labels, augmentation, rng):
    params = sample_crop(augmentation, labels.shape, rng)
    resizer = augment_host.DeviceResizer(augmentation, 0)
    batch = resizer.empty(1)
    batch["padded"][:] = 77
    resizer.fill(batch, 0, encoded_image(image), params)
    labels = host_labels(labels, params, augmentation.crop_size)
    images, labels = resized({**batch, "labels": labels[None]}, augmentation)
    return np.asarray(images)[0], np.asarray(labels)[0]


def cached(image, labels, augmentation, rng):
    """Gives the compiled function the draws of the host's generator."""
    arrays = {"images": image[None], "labels": labels[None]}
    draws = rng.random(7)
    images, labels = augmented(arrays, draws, 2 * rng.random() - 1, augmentation)
    return np.asarray(images)[0], np.asarray(labels)[0]


@functools.partial(jax.jit, static_argnames="augmentation")
def augmented(arrays, draws, angle, augmentation):
    """Returns `augmented_batch` of one image for given draws."""
    zero = {"index": jnp.zeros(1, int), "epoch": jnp.zeros(1, int)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            jax.random, "uniform", lambda key, shape, **_: draws if shape else angle
        )
        return augmented_batch(arrays, zero, 0, augmentation)


resized = jax.jit(resized_batch, static_argnames="augmentation")
PATHS = pytest.mark.parametrize("path", [on_host, on_device, cached])


def noise(height, width):
    image = RNG.integers(1, 256, (height, width, 3), np.uint8)
    return image, RNG.integers(0, 12, (height, width), np.uint8)


@PATHS
@pytest.mark.parametrize("sign", [1, -1])
def test_square_rotated_by_90_degrees(path, sign):
    image, labels = noise(6, 6)
    augmentation = Augmentation(6, 6, rotation=90, **UNSCALED)
    pixels, found = path(image, labels, augmentation, Draws(STILL, (1 + sign) / 2))
    # Both count counterclockwise.
    np.testing.assert_array_equal(pixels, np.rot90(image, sign))
    np.testing.assert_array_equal(found, np.rot90(labels, sign))


@PATHS
def test_frame_keeps_its_size_and_the_rest_is_black_and_ignored(path):
    image, labels = noise(4, 8)
    augmentation = Augmentation(8, 8, rotation=90, **UNSCALED)
    pixels, found = path(image, labels, augmentation, Draws(STILL))
    expected, ignored = np.zeros((8, 8, 3)), np.full((8, 8), 255)
    # The middle square of the image; beside it nothing, and below it padding.
    expected[:4, 2:6] = np.rot90(image[:, 2:6])
    ignored[:4, 2:6] = np.rot90(labels[:, 2:6])
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(found, ignored)


@PATHS
def test_crop_is_taken_from_the_rotated_image_and_then_flipped(path):
    image, labels = noise(8, 8)
    augmentation = Augmentation(8, 4, scale_range=(1.0, 1.0), rotation=90)
    # Starts at row 2 of 0 to 4 and column 4, flipped.
    draws = Draws((0.0, 0.5, 0.99, 0.1, 0.5, 0.5, 0.5))
    pixels, found = path(image, labels, augmentation, draws)
    window = np.s_[2:6, 4:8]
    np.testing.assert_array_equal(pixels, np.rot90(image)[window][:, ::-1])
    np.testing.assert_array_equal(found, np.rot90(labels)[window][:, ::-1])


@PATHS
def test_ramp_is_interpolated_between_pixels(path):
    image, labels = geometry.ramp()  # 36x44, 5 levels a pixel
    augmentation = Augmentation(44, 44, rotation=10, **UNSCALED)
    pixels, found = path(image, labels, augmentation, Draws(STILL))
    rows, columns = np.mgrid[:36, :44]
    down, right = rows - 17.5, columns - 21.5
    cos, sin = math.cos(math.radians(10)), math.sin(math.radians(10))
    source = cos * down + sin * right + 17.5, cos * right - sin * down + 21.5
    inner = (source[0] > 0) & (source[0] < 35) & (source[1] > 0) & (source[1] < 43)
    for channel, position in enumerate(source):
        error = pixels[:36, :44, channel] - 5 * position
        assert np.abs(error[inner]).max() < 0.6
    covered = inner | (
        (np.abs(source[0] - 17.5) < 18) & (np.abs(source[1] - 21.5) < 22)
    )
    np.testing.assert_array_equal(found[:36, :44] == 0, covered)
    assert (found[36:] == 255).all() and not pixels[found == 255].any()


@pytest.mark.parametrize(("rotation", "jitter"), [(10, 0.0), (45, 0.3), (179, 0.0)])
def test_paths_agree(rotation, jitter):
    augmentation = Augmentation(
        60, 32, (0.4, 2.0), rotation=rotation, color_jitter=jitter
    )
    ignored = 0
    for seed in range(12):
        image, labels = noise(*((36, 44), (70, 25), (36, 44))[seed % 3])
        image = np.asarray(Image.fromarray(image // 2).resize(labels.shape[::-1]))
        pixels, found = on_host(
            image, labels, augmentation, np.random.default_rng(seed)
        )
        assert not pixels[found == 255].any()
        ignored += (found == 255).mean() / 12
        for path in (on_device, cached):
            others, same = path(
                image, labels, augmentation, np.random.default_rng(seed)
            )
            assert not others[same == 255].any()
            # Single precision decides a few ties between labels.
            agree = found == same
            assert agree.mean() > 0.995
            error = np.abs(pixels.astype(int) - others)[agree]
            assert error.max() <= (1 if not jitter else 3)
    assert 0.05 < ignored < 0.7


@PATHS
def test_labels_follow_colors(path):
    image, labels = geometry.labeled_by_color(np.random.default_rng(3))
    augmentation = Augmentation(60, 48, (1.0, 2.0), rotation=30)
    for seed in range(6):
        pixels, found = path(image, labels, augmentation, np.random.default_rng(seed))
        decided = (found != 255) & (np.abs(pixels[..., 0] - 127.5) > 60)
        assert decided.sum() > 0.6 * (found != 255).sum()
        assert ((pixels[..., 0] > 127.5) == found)[decided].mean() > 0.999


def slope_angles(images):
    """Returns the angle in degrees of each rotated `ramp()`, near its middle."""
    middle = np.asarray(images, float)[:, 15:21, 18:26]
    down = np.diff(middle, axis=1).mean((1, 2))
    right = np.diff(middle, axis=2).mean((1, 2))
    # Sine and cosine of red, which rises downwards, and of green, to the right.
    sin, cos = right[:, 0] - down[:, 1], down[:, 0] + right[:, 1]
    return np.degrees(np.arctan2(sin, cos))


def check_uniform(angles, bound):
    assert -bound - 0.2 < angles.min() < -0.95 * bound
    assert 0.95 * bound < angles.max() < bound + 0.2
    quartiles = np.quantile(angles, [0.25, 0.5, 0.75]) / bound
    np.testing.assert_allclose(quartiles, [-0.5, 0, 0.5], atol=0.12)


def test_angles_are_uniform_in_both_directions():
    image, labels = geometry.ramp()
    augmentation = Augmentation(44, 44, rotation=10, **UNSCALED)
    rng = np.random.default_rng(0)
    images = [on_host(image, labels, augmentation, rng)[0] for _ in range(300)]
    check_uniform(slope_angles(images), 10)
    batch = {"index": np.zeros(300, np.int32), "epoch": np.arange(300, dtype=np.int32)}
    arrays = {"images": image[None], "labels": labels[None]}
    apply = jax.jit(augmented_batch, static_argnames="augmentation")
    images, _ = apply(arrays, batch, np.uint32(0), augmentation=augmentation)
    check_uniform(slope_angles(images), 10)


def test_without_rotation_the_draws_are_those_of_before():
    settings = dict(base_size=44, crop_size=40)
    rng, same = np.random.default_rng(5), np.random.default_rng(5)
    plain = sample_crop(Augmentation(**settings), (36, 44), rng)
    assert plain.angle == 0 and rng.random() == same.random(8)[7]
    rotated = sample_crop(
        Augmentation(**settings, rotation=10), (36, 44), np.random.default_rng(5)
    )
    assert rotated.angle and rotated.rows == plain.rows
    assert rotated.columns == plain.columns and rotated.flipped == plain.flipped
    np.testing.assert_array_equal(rotated.colors, plain.colors)


@pytest.mark.parametrize("rotation", [3, 10, 45, 90, 179])
def test_windows_fit_the_buffer_and_contain_what_is_covered(rotation):
    rng, largest = np.random.default_rng(0), 0
    augmentation = Augmentation(60, 32, (0.3, 3.0), rotation=rotation)
    resizer = augment_host.DeviceResizer(augmentation, 0)
    for _ in range(500):
        size = tuple(np.exp(rng.uniform(0, 7, 2)).astype(int).tolist())
        params = sample_crop(augmentation, size, rng)
        _, rows, columns = params.rotated()
        for axis in (rows, columns):
            assert 0 <= axis.start < axis.start + axis.visible <= axis.size
            largest = max(largest, axis.visible)
        resizer._shrink(params._replace(rows=rows, columns=columns))  # or raises
    assert max_window(32, rotation) - 4 < largest <= max_window(32, rotation)


@PATHS
def test_contrast_keeps_flat_gray_in_padding(path):
    image, labels = np.full((8, 16, 3), 120, np.uint8), np.zeros((8, 16), np.uint8)
    for rotation in (0, 20):
        augmentation = Augmentation(
            16, 16, color_jitter=0.4, rotation=rotation, **UNSCALED
        )
        pixels, found = path(image, labels, augmentation, Draws(WEAKEST_CONTRAST))
        assert (pixels[found == 0] == 120).all() and not pixels[found == 255].any()
        assert (found == 0).sum() > 90


@PATHS
def test_contrast_is_relative_to_the_mean_of_the_image(path):
    image, labels = np.full((8, 16, 3), 100, np.uint8), np.zeros((8, 16), np.uint8)
    image[:, :4] = 200  # the mean is 125
    augmentation = Augmentation(16, 16, color_jitter=0.4, **UNSCALED)
    pixels, _ = path(image, labels, augmentation, Draws(WEAKEST_CONTRAST))
    # Differences from the mean, 75 and -25, times 0.6.
    assert (pixels[:8, :4] == 170).all() and (pixels[:8, 4:] == 110).all()
    assert not pixels[8:].any()


def padded_on_host(image, augmentation, draws):
    return padded_crop(image, augmentation, Draws(draws))


def padded_on_device(image, augmentation, draws):
    arrays = {"images": image[None], "labels": np.zeros(1, np.uint8)}
    return np.asarray(augmented(arrays, np.array(draws), 0.0, augmentation)[0])[0]


@pytest.mark.parametrize("path", [padded_on_host, padded_on_device])
@pytest.mark.parametrize("flipped", [False, True])
def test_contrast_of_classification_leaves_the_border_out(path, flipped):
    image = np.full((4, 4, 3), 100, np.uint8)
    image[:, 1] = 200
    augmentation = Augmentation(4, 4, color_jitter=0.4, pad=2)
    # The crop starts in the upper left corner: two rows and columns of border.
    draws = (0.0, 0.0, 0.1 if flipped else 0.9, 0.5, 0.0, 0.5)
    expected = np.zeros((4, 4))
    expected[2:, 2:] = [120, 180]  # 150 -+ 0.6 x 50
    if flipped:
        expected = expected[:, ::-1]
    pixels = path(image, augmentation, draws)
    np.testing.assert_allclose(pixels, np.stack([expected] * 3, -1), atol=1e-4)
