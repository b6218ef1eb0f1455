"""Images that reveal their geometry, and checks of what augmentation did to them."""

import numpy as np

from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import IGNORE_LABEL

SIZE = 36, 44  # pixels
# Everything at once: padding, cropping, downscaling, upscaling, flips.
GEOMETRY = Augmentation(base_size=44, crop_size=40, scale_range=(0.5, 2.0))
# The crop holds the whole image at every scale.
SCALES = Augmentation(base_size=20, crop_size=40, scale_range=(0.5, 2.0))
# So many sizes and positions that no two results coincide by chance.
DIFFERENT = Augmentation(base_size=44, crop_size=24, scale_range=(1.0, 4.0))
CROPS = Augmentation(base_size=44, crop_size=30, scale_range=(1.0, 1.0))
COLORS = Augmentation(base_size=40, crop_size=40, scale_range=(1, 1), color_jitter=0.15)
DARK, LIGHT, COLORED = 60, 180, (180, 120, 60)


def labeled_by_color(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns an irregular checkerboard, black where the label is 0, white where 1."""

    def stripes(length):
        widths = rng.integers(5, 9, length)
        return np.repeat(np.arange(length) % 2, widths)[:length]

    labels = stripes(SIZE[0])[:, None] ^ stripes(SIZE[1])
    return np.repeat(labels[..., None] * 255, 3, -1).astype("u1"), labels.astype("u1")


def ramp() -> tuple[np.ndarray, np.ndarray]:
    """Returns an image of its own coordinates, 5 levels per pixel, and labels 0."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.stack([rows * 5, columns * 5, 0 * rows], -1)
    return image.astype(np.uint8), np.zeros(SIZE, np.uint8)


def color_bands() -> tuple[np.ndarray, np.ndarray]:
    """Returns an image of a dark, a light and a colored band, from top to bottom."""
    image = np.full((40, 40, 3), DARK, np.uint8)
    image[12:26] = LIGHT
    image[26:] = COLORED
    return image, np.zeros((40, 40), np.uint8)


def check_labels_follow_colors(images: np.ndarray, labels: np.ndarray) -> None:
    """Asserts that every pixel has the class whose color is nearest.

    Interpolated colors cross the midpoint exactly where the nearest label changes.
    """
    images = images.astype(float)
    valid = labels != IGNORE_LABEL
    assert set(np.unique(labels)) == {0, 1, IGNORE_LABEL}
    assert not images[~valid].any()
    decided = valid & (np.abs(images[..., 0] - 127.5) > 2)
    assert decided.sum() > 0.9 * valid.sum()
    np.testing.assert_array_equal((images[..., 0] > 127.5)[decided], labels[decided])
    # Padding is at the bottom and at the right, or at the left if flipped.
    rows, columns = valid.any(2), valid.any(1)
    assert (valid == rows[:, :, None] & columns[:, None, :]).all()
    assert (np.diff(rows.astype(int)) <= 0).all() and rows[:, 0].all()
    assert (columns[:, 0] | columns[:, -1]).all()
    assert (np.abs(np.diff(columns.astype(int))).sum(1) <= 1).all()


def check_scales(images: np.ndarray, labels: np.ndarray) -> None:
    """Checks the distribution of `SCALES` on many results for `ramp()`."""
    valid = labels != IGNORE_LABEL
    heights, widths = valid.any(2).sum(1), valid.any(1).sum(1)
    # The long side, 20 pixels at scale 1, is uniform in 10 to 40.
    assert 10 <= widths.min() <= 11 and 39 <= widths.max() <= 40
    quartiles = np.quantile(widths, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [17.5, 25, 32.5], atol=3)
    np.testing.assert_allclose(heights, widths * SIZE[0] / SIZE[1], atol=0.51)
    # Flipped images are darker on the right, and have their padding on the left.
    slopes = images[:, 0, -10:, 1].astype(float).mean(1) - images[:, 0, :10, 1].mean(1)
    full = widths == 40
    flipped = np.where(full, slopes < 0, valid[:, 0, -1])
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / len(images) ** 0.5
    # The whole ramp is visible: its ends are those of the original.
    for image, height, width in zip(
        images[~flipped], heights[~flipped], widths[~flipped]
    ):
        shown = image[:height, :width].astype(float)
        step = SIZE[1] / width
        expected = ((np.arange(width) + 0.5) * step - 0.5) * 5
        inner = slice(2, -2)  # the kernel is truncated at the border
        np.testing.assert_allclose(shown[0, inner, 1], expected[inner], atol=1.01)


def check_crops(images: np.ndarray, labels: np.ndarray) -> None:
    """Checks the distribution of `CROPS` on many results for `ramp()`."""
    assert not labels.any()
    top, left = images[:, 0, 0, 0] / 5, images[..., 1].min((1, 2)) / 5
    for starts, length in ((top, SIZE[0]), (left, SIZE[1])):
        max_start = length - 30
        assert starts.min() == 0 and starts.max() == max_start
        assert (starts == starts.round()).all()
        spread = max_start / 12**0.5
        assert abs(starts.mean() - max_start / 2) < 4 * spread / len(images) ** 0.5
    assert abs(np.corrcoef(top, left)[0, 1]) < 4 / len(images) ** 0.5
    flipped = images[:, 0, 0, 1] > images[:, 0, -1, 1]
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / len(images) ** 0.5
    assert abs(np.corrcoef(flipped, left)[0, 1]) < 4 / len(images) ** 0.5


def check_colors(images: np.ndarray) -> None:
    """Checks the distribution of `COLORS` on many results for `color_bands()`."""
    images = images.astype(float)
    dark, light, colored = images[:, 2, 20], images[:, 18, 20], images[:, 36, 20]
    # Gray stays gray, as saturation is last. Contrast preserves the mean.
    assert (np.ptp(dark, 1) == 0).all() and (np.ptp(light, 1) == 0).all()
    mean = color_bands()[0].mean()
    share = (LIGHT - mean) / (LIGHT - DARK)
    brightness = (share * dark[:, 0] + (1 - share) * light[:, 0]) / mean
    contrast = (light - dark)[:, 0] / (LIGHT - DARK) / brightness
    spread = (colored[:, 0] - colored[:, 2]) / (COLORED[0] - COLORED[2])
    factors = np.stack([brightness, contrast, spread / brightness / contrast])
    # Uniform in 0.85 to 1.15, up to rounding of the pixels.
    assert (factors.min(1) > 0.83).all() and (factors.min(1) < 0.865).all()
    assert (factors.max(1) > 1.135).all() and (factors.max(1) < 1.17).all()
    quartiles = np.quantile(factors, [0.25, 0.5, 0.75], axis=1)
    np.testing.assert_allclose(
        quartiles, [[0.925] * 3, [1.0] * 3, [1.075] * 3], atol=0.03
    )
    between = np.corrcoef(factors)[np.triu_indices(3, 1)]
    assert (abs(between) < 4 / len(images) ** 0.5).all()
