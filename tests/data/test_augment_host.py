"""Tests of what the host decodes and resizes, against PIL on the whole picture."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.augment_device import resized_batch
from encnet_jax.data.augmentation import Augmentation, sample_crop
from encnet_jax.errors import UserError
from tests.data import geometry

transforms = pytest.importorskip("encnet_jax.data.augment_host")

KINDS = {
    "JPEG 4:4:4": dict(format="JPEG", quality=85, subsampling="4:4:4"),
    "JPEG 4:2:2": dict(format="JPEG", quality=85, subsampling="4:2:2"),
    "JPEG 4:2:0": dict(format="JPEG", quality=85, subsampling="4:2:0"),
    "JPEG progressive": dict(format="JPEG", quality=85, progressive=True),
    "PNG": dict(format="PNG"),
}
finish = jax.jit(resized_batch, static_argnames="augmentation")


def photograph(height, width, seed=0):
    """Returns a picture with fields of strong color, edges, and noise."""
    rng = np.random.default_rng(seed)
    low_res = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    image = low_res.repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.clip(image + rng.normal(0, 15, image.shape), 0, 255).astype(np.uint8)


def opened(image, **settings):
    file = io.BytesIO()
    Image.fromarray(image).save(file, **(settings or KINDS["PNG"]))
    return transforms.EncodedImage.open(file.getvalue())


def host_crop(picture, augmentation, params):
    maker = transforms.HostResizer(augmentation)
    batch = maker.empty(1)
    maker.fill(batch, 0, picture, params)
    return batch["images"][0]


def device_crop(picture, augmentation, params, padded_size=0):
    maker = transforms.DeviceResizer(augmentation, padded_size)
    batch = maker.empty(1)
    batch["canvas"][:] = 77  # what is beyond the pixels must not matter
    maker.fill(batch, 0, picture, params)
    images, _ = finish(
        {**batch, "labels": np.zeros((1, 1, 1), "u1")}, augmentation=augmentation
    )
    return np.asarray(images)[0]


def whole_by_pil(picture, augmentation, params):
    """Returns the crop by the steps of the original: resize all, pad, crop, mirror."""
    rows, columns = params.rows, params.columns
    with Image.open(io.BytesIO(picture.encoded)) as image:
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
    return crop[:, ::-1] if params.mirrored else crop


def choices(augmentation, size, count):
    return [
        sample_crop(augmentation, size, np.random.default_rng(seed))
        for seed in range(count)
    ]


@pytest.mark.parametrize("cutting", [0.0, 2.0], ids=["whole", "part"])
@pytest.mark.parametrize("kind", KINDS)
def test_crop_is_that_of_the_whole_picture_resized_by_pil(kind, cutting, monkeypatch):
    monkeypatch.setattr(transforms, "_WORTH_CUTTING", cutting)
    augmentation = Augmentation(base_size=130, crop_size=64, scale_range=(0.3, 2.0))
    image = photograph(97, 131)
    different = 0
    for params in choices(augmentation, (97, 131), 40):
        picture = opened(image, **KINDS[kind])
        expected = whole_by_pil(picture, augmentation, params).astype(int)
        error = np.abs(host_crop(picture, augmentation, params) - expected)
        assert error.max() <= 1  # ends of the crop are single precision in PIL
        different += (error > 0).mean() / 40
    assert different < 0.01


def test_parts_are_decoded_where_that_is_quicker(monkeypatch):
    parts = []
    decode = transforms._decode_part
    monkeypatch.setattr(
        transforms,
        "_decode_part",
        lambda picture, rows, columns, shrink: (
            parts.append((rows, columns))
            or decode(picture, rows, columns, shrink=shrink)
        ),
    )
    augmentation = Augmentation(base_size=400, crop_size=64, scale_range=(1.0, 1.0))
    (params,) = choices(augmentation, (300, 400), 1)
    host_crop(opened(photograph(300, 400), **KINDS["JPEG 4:2:0"]), augmentation, params)
    ((rows, columns),) = parts
    # The crop, the kernel's reach of 1 rounded up, and the margin of 2 on each side.
    for (first, end), span in zip((rows, columns), (params.rows, params.columns)):
        assert span.start - 4 <= first and end <= span.start + 64 + 4


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3), (500, 20)])
@pytest.mark.parametrize("kind", ["JPEG 4:2:0", "PNG"])
def test_extreme_shapes_agree_with_pil_in_both_modes(size, kind):
    augmentation = Augmentation(base_size=60, crop_size=32, scale_range=(0.3, 2.0))
    picture = opened(photograph(*size), **KINDS[kind])
    for params in choices(augmentation, size, 6):
        picture = opened(photograph(*size), **KINDS[kind])
        expected = whole_by_pil(picture, augmentation, params).astype(int)
        assert np.abs(host_crop(picture, augmentation, params) - expected).max() <= 1
        crop = device_crop(
            opened(photograph(*size), **KINDS[kind]), augmentation, params
        )
        steps = params.rows.step, params.columns.step
        error = np.abs(crop - expected)
        assert error.max() <= 1 if max(steps) < 2 else error.mean() < 4


@pytest.mark.parametrize("kind", KINDS)
def test_device_makes_the_crop_of_the_host(kind):
    augmentation = Augmentation(base_size=130, crop_size=64, scale_range=(0.3, 2.0))
    image = photograph(97, 131)
    for params in choices(augmentation, (97, 131), 20):
        crop = device_crop(opened(image, **KINDS[kind]), augmentation, params)
        expected = host_crop(opened(image, **KINDS[kind]), augmentation, params).astype(
            int
        )
        # PIL rounds after each of its two passes.
        assert np.abs(crop - expected).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG 4:2:0", "JPEG 4:4:4", "PNG"])
def test_picture_too_large_for_the_canvas_is_shrunk_in_its_place(kind):
    augmentation = Augmentation(base_size=64, crop_size=64, scale_range=(0.1, 1.0))
    image = geometry.ramp()[0].repeat(16, 0).repeat(16, 1)  # 576x704, 5 levels in 16
    shrunk = 0
    for params in choices(augmentation, image.shape[:2], 20):
        maker = transforms.DeviceResizer(augmentation, 0)
        shrunk += maker._shrink(params) > 1
        crop = device_crop(opened(image, **KINDS[kind]), augmentation, params)
        expected = host_crop(opened(image, **KINDS[kind]), augmentation, params).astype(
            int
        )
        # A pixel of the crop is 11 to 110 of the picture, or 3.4 to 34 levels: half a
        # pixel out of place would show.
        assert np.abs(crop - expected).max() <= 3
    assert shrunk >= 10


def test_labels_and_colors_agree_where_the_picture_was_shrunk():
    rng = np.random.default_rng(0)
    image, labels = geometry.labeled_by_color(rng)
    image, labels = (x.repeat(8, 0).repeat(8, 1) for x in (image, labels))
    augmentation = Augmentation(base_size=44, crop_size=40, scale_range=(0.5, 2.0))
    images, picked = np.zeros((12, 40, 40, 3)), np.full((12, 40, 40), 255, np.uint8)
    for row, params in enumerate(choices(augmentation, labels.shape, 12)):
        images[row] = device_crop(opened(image), augmentation, params)
        picked[row][params.inside(40)] = params.pick(labels)
    geometry.check_labels_follow_colors(images, picked)


def test_canvas_too_small_is_named_with_what_is_needed():
    augmentation = Augmentation(base_size=100, crop_size=64, scale_range=(0.7, 0.7))
    (params,) = choices(augmentation, (75, 100), 1)
    with pytest.raises(
        UserError, match="data.padded_size=80: .* 100x75 pixels needs 9"
    ):
        device_crop(opened(photograph(75, 100)), augmentation, params, padded_size=80)
    expected = host_crop(opened(photograph(75, 100)), augmentation, params)
    crop = device_crop(
        opened(photograph(75, 100)), augmentation, params, padded_size=100
    )
    assert np.abs(crop - expected).max() <= 1


def test_default_canvas_is_enough_for_pictures_of_any_size():
    rng = np.random.default_rng(0)
    augmentation = Augmentation(base_size=60, crop_size=32, scale_range=(0.3, 3.0))
    maker, largest = transforms.DeviceResizer(augmentation, 0), 0
    for _ in range(3000):
        size = tuple(np.exp(rng.uniform(0, 9, 2)).astype(int).tolist())
        params = sample_crop(augmentation, size, rng)
        shrink = maker._shrink(params)  # raises if it is not
        for span in (params.rows, params.columns):
            first, end = span.needed(2 * shrink)
            largest = max(largest, -(-end // shrink) - first // shrink)
    assert maker.size - 16 < largest <= maker.size


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_gray_is_decoded_into_three_channels(kind):
    augmentation = Augmentation(
        base_size=32, crop_size=32, scale_range=(1.0, 1.0), flip=False
    )
    gray = photograph(32, 32)[..., 0]
    (params,) = choices(augmentation, (32, 32), 1)
    expected = whole_by_pil(opened(gray, format=kind), augmentation, params)
    for make in (host_crop, device_crop):
        crop = make(opened(gray, format=kind), augmentation, params)
        np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize("size", [(64, 48), (37, 53), (1, 1), (8, 200)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_parts_of_a_jpeg_are_those_of_the_whole(size, subsampling):
    settings = dict(format="JPEG", quality=75, subsampling=subsampling)
    picture = opened(photograph(*size), **settings)
    whole = np.asarray(Image.open(io.BytesIO(picture.encoded)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        (top, bottom), (left, right) = (sorted(rng.integers(0, n + 1, 2)) for n in size)
        if top == bottom or left == right:
            continue
        part = transforms._decode_part(
            picture, (int(top), int(bottom)), (int(left), int(right)), shrink=1
        )
        # One pixel less on each side that is no side of the picture.
        inner = np.s_[
            1 if top else 0 : bottom - top - (bottom < size[0]),
            1 if left else 0 : right - left - (right < size[1]),
        ]
        expected = whole[top:bottom, left:right]
        np.testing.assert_array_equal(part[inner], expected[inner])
