"""Tests of host decoding and resizing, against PIL on the whole image."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.augment_device import resized_batch
from encnet_jax.data.augmentation import Augmentation, sample_crop
from encnet_jax.errors import UserError
from tests.data import geometry

augment_host = pytest.importorskip("encnet_jax.data.augment_host")

KINDS = {
    "JPEG 4:4:4": dict(format="JPEG", quality=85, subsampling="4:4:4"),
    "JPEG 4:2:2": dict(format="JPEG", quality=85, subsampling="4:2:2"),
    "JPEG 4:2:0": dict(format="JPEG", quality=85, subsampling="4:2:0"),
    "JPEG progressive": dict(format="JPEG", quality=85, progressive=True),
    "PNG": dict(format="PNG"),
}
finish = jax.jit(resized_batch, static_argnames="augmentation")


def photograph(height, width, seed=0):
    """Returns an image with patches of saturated color, edges, and noise."""
    rng = np.random.default_rng(seed)
    low_res = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    image = low_res.repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.clip(image + rng.normal(0, 15, image.shape), 0, 255).astype(np.uint8)


def encoded_image(image, **settings):
    file = io.BytesIO()
    Image.fromarray(image).save(file, **(settings or KINDS["PNG"]))
    return augment_host.EncodedImage.open(file.getvalue())


def host_crop(encoded, augmentation, params):
    resizer = augment_host.HostResizer(augmentation)
    batch = resizer.empty(1)
    resizer.fill(batch, 0, encoded, params)
    return batch["images"][0]


def device_crop(encoded, augmentation, params, padded_size=0):
    resizer = augment_host.DeviceResizer(augmentation, padded_size)
    batch = resizer.empty(1)
    batch["padded"][:] = 77  # pixels beyond the image must not matter
    resizer.fill(batch, 0, encoded, params)
    images, _ = finish(
        {**batch, "labels": np.zeros((1, 1, 1), "u1")}, augmentation=augmentation
    )
    return np.asarray(images)[0]


def whole_by_pil(encoded, augmentation, params):
    """Returns the crop by the steps of the original: resize all, pad, crop, flip."""
    rows, columns = params.rows, params.columns
    with Image.open(io.BytesIO(encoded.data)) as image:
        resized = image.convert("RGB").resize(
            (columns.size, rows.size), Image.Resampling.BILINEAR
        )
    padded = np.zeros(
        (rows.size + augmentation.crop_size, columns.size + augmentation.crop_size, 3),
        "u1",
    )
    padded[: rows.size, : columns.size] = np.asarray(resized)
    crop = padded[rows.start :, columns.start :][
        : augmentation.crop_size, : augmentation.crop_size
    ]
    return crop[:, ::-1] if params.flipped else crop


def sampled_params(augmentation, size, count):
    return [
        sample_crop(augmentation, size, np.random.default_rng(seed))
        for seed in range(count)
    ]


@pytest.mark.parametrize("max_share", [0.0, 2.0], ids=["whole", "region"])
@pytest.mark.parametrize("kind", KINDS)
def test_crop_equals_that_of_the_whole_image_resized_by_pil(
    kind, max_share, monkeypatch
):
    monkeypatch.setattr(augment_host, "_MAX_REGION_SHARE", max_share)
    augmentation = Augmentation(base_size=130, crop_size=64, scale_range=(0.3, 2.0))
    image = photograph(97, 131)
    different = 0
    for params in sampled_params(augmentation, (97, 131), 40):
        encoded = encoded_image(image, **KINDS[kind])
        expected = whole_by_pil(encoded, augmentation, params).astype(int)
        error = np.abs(host_crop(encoded, augmentation, params) - expected)
        assert error.max() <= 1  # PIL computes the box in single precision
        different += (error > 0).mean() / 40
    assert different < 0.01


def test_regions_are_decoded_where_that_is_faster(monkeypatch):
    parts = []
    decode = augment_host._decode_region
    monkeypatch.setattr(
        augment_host,
        "_decode_region",
        lambda encoded, rows, columns, shrink: (
            parts.append((rows, columns))
            or decode(encoded, rows, columns, shrink=shrink)
        ),
    )
    augmentation = Augmentation(base_size=400, crop_size=64, scale_range=(1.0, 1.0))
    (params,) = sampled_params(augmentation, (300, 400), 1)
    host_crop(
        encoded_image(photograph(300, 400), **KINDS["JPEG 4:2:0"]), augmentation, params
    )
    ((rows, columns),) = parts
    # The crop, the kernel's reach of 1 rounded up, and the margin of 2 on each side.
    for (first, end), axis in zip((rows, columns), (params.rows, params.columns)):
        assert axis.start - 4 <= first and end <= axis.start + 64 + 4


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3), (500, 20)])
@pytest.mark.parametrize("kind", ["JPEG 4:2:0", "PNG"])
def test_extreme_shapes_agree_with_pil_in_both_modes(size, kind):
    augmentation = Augmentation(base_size=60, crop_size=32, scale_range=(0.3, 2.0))
    encoded = encoded_image(photograph(*size), **KINDS[kind])
    for params in sampled_params(augmentation, size, 6):
        encoded = encoded_image(photograph(*size), **KINDS[kind])
        expected = whole_by_pil(encoded, augmentation, params).astype(int)
        assert np.abs(host_crop(encoded, augmentation, params) - expected).max() <= 1
        crop = device_crop(
            encoded_image(photograph(*size), **KINDS[kind]), augmentation, params
        )
        steps = params.rows.step, params.columns.step
        error = np.abs(crop - expected)
        assert error.max() <= 1 if max(steps) < 2 else error.mean() < 4


@pytest.mark.parametrize("kind", KINDS)
def test_device_crop_equals_the_host_crop(kind):
    augmentation = Augmentation(base_size=130, crop_size=64, scale_range=(0.3, 2.0))
    image = photograph(97, 131)
    for params in sampled_params(augmentation, (97, 131), 20):
        crop = device_crop(encoded_image(image, **KINDS[kind]), augmentation, params)
        expected = host_crop(
            encoded_image(image, **KINDS[kind]), augmentation, params
        ).astype(int)
        # PIL rounds after each of its two passes.
        assert np.abs(crop - expected).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG 4:2:0", "JPEG 4:4:4", "PNG"])
def test_image_too_large_for_the_buffer_is_downscaled_in_place(kind):
    augmentation = Augmentation(base_size=64, crop_size=64, scale_range=(0.1, 1.0))
    image = geometry.ramp()[0].repeat(16, 0).repeat(16, 1)  # 576x704, 5 levels in 16
    shrunk = 0
    for params in sampled_params(augmentation, image.shape[:2], 20):
        resizer = augment_host.DeviceResizer(augmentation, 0)
        shrunk += resizer._shrink(params) > 1
        crop = device_crop(encoded_image(image, **KINDS[kind]), augmentation, params)
        expected = host_crop(
            encoded_image(image, **KINDS[kind]), augmentation, params
        ).astype(int)
        # A crop pixel spans 11 to 110 source pixels, or 3.4 to 34 levels: a shift by
        # half a pixel would exceed the tolerance.
        assert np.abs(crop - expected).max() <= 3
    assert shrunk >= 10


def test_labels_and_colors_agree_after_downscaling():
    rng = np.random.default_rng(0)
    image, labels = geometry.labeled_by_color(rng)
    image, labels = (x.repeat(8, 0).repeat(8, 1) for x in (image, labels))
    augmentation = Augmentation(base_size=44, crop_size=40, scale_range=(0.5, 2.0))
    images, picked = np.zeros((12, 40, 40, 3)), np.full((12, 40, 40), 255, np.uint8)
    for row, params in enumerate(sampled_params(augmentation, labels.shape, 12)):
        images[row] = device_crop(encoded_image(image), augmentation, params)
        picked[row][params.inside(40)] = params.crop_labels(labels)
    geometry.check_labels_follow_colors(images, picked)


def test_buffer_too_small_is_named_with_the_size_needed():
    augmentation = Augmentation(base_size=100, crop_size=64, scale_range=(0.7, 0.7))
    (params,) = sampled_params(augmentation, (75, 100), 1)
    with pytest.raises(
        UserError, match="data.padded_size=80: .* 100x75 pixels needs 9"
    ):
        device_crop(
            encoded_image(photograph(75, 100)), augmentation, params, padded_size=80
        )
    expected = host_crop(encoded_image(photograph(75, 100)), augmentation, params)
    crop = device_crop(
        encoded_image(photograph(75, 100)), augmentation, params, padded_size=100
    )
    assert np.abs(crop - expected).max() <= 1


def test_default_buffer_fits_images_of_any_size():
    rng = np.random.default_rng(0)
    augmentation = Augmentation(base_size=60, crop_size=32, scale_range=(0.3, 3.0))
    resizer, largest = augment_host.DeviceResizer(augmentation, 0), 0
    for _ in range(3000):
        size = tuple(np.exp(rng.uniform(0, 9, 2)).astype(int).tolist())
        params = sample_crop(augmentation, size, rng)
        shrink = resizer._shrink(params)  # raises if it does not fit
        for axis in (params.rows, params.columns):
            first, end = axis.source_range(2 * shrink)
            largest = max(largest, -(-end // shrink) - first // shrink)
    assert resizer.padded_size - 16 < largest <= resizer.padded_size


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_gray_is_decoded_into_three_channels(kind):
    augmentation = Augmentation(
        base_size=32, crop_size=32, scale_range=(1.0, 1.0), flip=False
    )
    gray = photograph(32, 32)[..., 0]
    (params,) = sampled_params(augmentation, (32, 32), 1)
    expected = whole_by_pil(encoded_image(gray, format=kind), augmentation, params)
    for make in (host_crop, device_crop):
        crop = make(encoded_image(gray, format=kind), augmentation, params)
        np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize("size", [(64, 48), (37, 53), (1, 1), (8, 200)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_regions_of_a_jpeg_equal_those_of_the_whole_image(size, subsampling):
    settings = dict(format="JPEG", quality=75, subsampling=subsampling)
    encoded = encoded_image(photograph(*size), **settings)
    whole = np.asarray(Image.open(io.BytesIO(encoded.data)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        (top, bottom), (left, right) = (sorted(rng.integers(0, n + 1, 2)) for n in size)
        if top == bottom or left == right:
            continue
        part = augment_host._decode_region(
            encoded, (int(top), int(bottom)), (int(left), int(right)), shrink=1
        )
        # Without one pixel on each side that is not a border of the image.
        inner = np.s_[
            1 if top else 0 : bottom - top - (bottom < size[0]),
            1 if left else 0 : right - left - (right < size[1]),
        ]
        expected = whole[top:bottom, left:right]
        np.testing.assert_array_equal(part[inner], expected[inner])
