"""Tests of the losses against values worked out by hand."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from encnet_jax.losses import (
    classification_loss,
    lovasz_softmax,
    pixel_cross_entropy,
    se_loss,
    segmentation_loss,
)
from encnet_jax.models.cifar import ClassifierOutput
from encnet_jax.models.segmentation import SegmentationOutput
from encnet_jax.ops import dispatch
from encnet_jax.ops.class_weights import check_class_weights
from encnet_jax.ops.resize import resize_bilinear

# Probabilities of three classes in two pixels.
PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32)
LOGITS = jnp.log(PROBABILITIES).reshape(1, 1, 2, 3) + 7.0
ALL = dispatch._AUTO["resized_cross_entropy"]
# Labels of no class; in eight bits the first and last would be others.
OUTSIDE = [-1, 3, 7, 256]


def labels(*values, dtype=jnp.uint8):
    return jnp.array(values, dtype).reshape(1, 1, -1)


@pytest.fixture
def unchecked(monkeypatch):
    """Turns the shape checks of `tests/conftest.py` off: users have none."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(params=["scan", "one_pass"])
def impl(request, monkeypatch):
    """Makes each implementation in turn that of this platform."""
    fastest = {jax.default_backend(): request.param}
    monkeypatch.setitem(dispatch._AUTO, "resized_cross_entropy", {**ALL, **fastest})


@pytest.mark.parametrize(
    "pixels, settings, expected",
    [
        ((0, 2), {}, -(np.log(0.5) + np.log(0.7)) / 2),
        ((0, 255), {}, -np.log(0.5)),
        ((0, 255), dict(normalize_by="all"), -np.log(0.5) / 2),
        ((0, 1), dict(ignore_label=1), -np.log(0.5)),
        ((255, 255), {}, 0.0),
        (
            (1, 2),
            dict(class_weights=(9.0, 3.0, 1.0)),
            -(3 * np.log(0.25) + np.log(0.7)) / 4,
        ),
        (
            (1, 255),
            dict(class_weights=(9.0, 3.0, 1.0), normalize_by="all"),
            -3 * np.log(0.25) / 2,
        ),
        (  # weights that sum to less than 1
            (1, 2),
            dict(class_weights=(0.9, 0.3, 0.1)),
            -(3 * np.log(0.25) + np.log(0.7)) / 4,
        ),
        (
            (1, 2),
            dict(class_weights=(0.9, 0.3, 0.1), normalize_by="all"),
            -(0.3 * np.log(0.25) + 0.1 * np.log(0.7)) / 2,
        ),
        (
            (0, 2),
            dict(label_smoothing=0.3),
            -(0.7 * np.log(0.5) + 0.1 * np.log(0.5 * 0.25 * 0.25)) / 2
            - (0.7 * np.log(0.7) + 0.1 * np.log(0.1 * 0.2 * 0.7)) / 2,
        ),
        ((0, 1), dict(hard_pixel_fraction=0.5), -np.log(0.2)),
        ((0, 1), dict(hard_pixel_fraction=0.51), -np.log(0.5 * 0.2) / 2),
        ((0, 255), dict(hard_pixel_fraction=0.5), -np.log(0.5)),
        ((255, 255), dict(hard_pixel_fraction=0.5), 0.0),
        (
            (1, 2),
            dict(hard_pixel_fraction=0.5, class_weights=(1.0, 3.0, 90.0)),
            -np.log(0.25),
        ),
        (
            (1, 2),
            dict(hard_pixel_fraction=0.5, normalize_by="all"),
            -np.log(0.25) / 2,
        ),
    ],
)
def test_pixel_cross_entropy_has_the_value_worked_out_by_hand(
    pixels, settings, expected
):
    cost = pixel_cross_entropy(LOGITS, labels(*pixels), **settings)
    assert cost.dtype == jnp.float32
    np.testing.assert_allclose(cost, expected, rtol=1e-5, atol=1e-7)


def test_tied_pixels_divide_the_rest_of_the_hard_ones():
    # Of five pixels two count; four cost exactly 0 in float32.
    logits = jnp.asarray([[[0.0, 0.0], *[[40.0, 0.0]] * 4]])[None]
    assert logits.shape == (1, 1, 5, 2)
    pixels = np.zeros((1, 1, 5), np.uint8)
    for normalize_by, pixel_count in (("valid", 2), ("all", 5)):
        cost = pixel_cross_entropy(
            logits, pixels, hard_pixel_fraction=0.4, normalize_by=normalize_by
        )
        np.testing.assert_allclose(cost, np.log(2) / pixel_count, rtol=1e-6)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e3, 1e9])
def test_scale_of_class_weights_changes_neither_loss_nor_gradient(scale, coarse):
    pixels = jnp.asarray([[[1, 1, 2, 255]] * 2], jnp.uint8)
    rng = np.random.default_rng(0)
    size = (1, 1, 2, 3) if coarse else (1, 2, 4, 3)
    logits = jnp.asarray(rng.standard_normal(size), jnp.float32)
    weights = np.array([1, 1 / 4, 1 / 2])  # 1 over the count; class 0 has no pixel

    def loss(logits, weights):
        return pixel_cross_entropy(logits, pixels, class_weights=weights.tolist())

    cost, gradient = jax.value_and_grad(loss)(logits, weights * scale)
    expected, slope = jax.value_and_grad(loss)(logits, weights)
    np.testing.assert_allclose(cost, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-7)
    if not coarse:  # the mean of the means of both classes
        costs = jax.nn.logsumexp(logits, -1) - jnp.where(
            pixels == 1, logits[..., 1], logits[..., 2]
        )
        by_hand = (costs[0, :, :2].mean() + costs[0, :, 2].mean()) / 2
        np.testing.assert_allclose(cost, by_hand, rtol=1e-5)


@pytest.mark.parametrize("pixels", [(0, 0), (255, 255), (0, 255)])
def test_pixels_without_weight_cost_nothing(pixels):
    weights = (0.0, 1e-3, 1.0)
    cost, gradient = jax.value_and_grad(pixel_cross_entropy)(
        LOGITS, labels(*pixels), class_weights=weights
    )
    assert cost == 0 and not gradient.any()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, -1.0, 1.0), "weight 1 is -1.0: must be finite, at least 0"),
        ((1.0, 1.0, np.nan), "weight 2 is nan: must be finite"),
        ((np.inf, 1.0, 1.0), "weight 0 is inf: must be finite"),
        ((1e39, 1.0, 1.0), "weight 0 is 1e.39: must be finite"),
        ((0.0, 0.0, 0.0), "all weights are 0"),
        ((1.0, 1.0), "class_weights has 2 values; must be one for each of 3 classes"),
    ],
)
def test_class_weights_of_no_mean_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        pixel_cross_entropy(LOGITS, labels(0, 1), class_weights=weights)


@pytest.mark.parametrize(
    "weight", ["1", b"1", np.str_("1"), True, np.True_, jnp.asarray(True), [1.0], None]
)
def test_class_weights_are_numbers(weight):
    with pytest.raises(ValueError, match="weight 1 is .*: must be a number"):
        check_class_weights((1.0, weight))


@pytest.mark.parametrize(
    "weights",
    [
        (2, np.float16(1), np.int64(0), Fraction(1, 3)),
        (jnp.asarray(1), jnp.bfloat16(0.5), np.asarray(2.0)),
        jnp.asarray([1.0, 2.0]),
        np.asarray([1, 2], np.uint8),
    ],
)
def test_class_weights_are_numbers_of_any_type(weights):
    check_class_weights(weights)


def test_gradient_is_probability_less_truth_and_zero_where_ignored():
    gradient = jax.grad(pixel_cross_entropy)(LOGITS, labels(1, 255))
    expected = [[0.5, 0.25 - 1, 0.25], [0, 0, 0]]
    np.testing.assert_allclose(gradient[0, 0], expected, atol=1e-6)


def test_ignored_pixels_may_have_any_logits():
    logits = LOGITS.at[0, 0, 1].set(jnp.array([np.inf, np.nan, -np.inf]))
    cost, gradient = jax.value_and_grad(pixel_cross_entropy)(logits, labels(0, 255))
    np.testing.assert_allclose(cost, np.log(2), rtol=1e-5)
    assert not np.isnan(gradient[0, 0, 0]).any()


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, -np.log(0.5)),
        (dict(ignore_label=-1), -np.log(0.5)),
        (dict(ignore_label=2), -np.log(0.5)),
        (dict(normalize_by="all"), -np.log(0.5) / 2),
        (dict(class_weights=(2.0, 3.0, 9.0)), -np.log(0.5)),
        (
            dict(class_weights=(2.0, 3.0, 9.0), normalize_by="all"),
            -2 * np.log(0.5) / 2,
        ),
        (
            dict(label_smoothing=0.3),
            -0.7 * np.log(0.5) - 0.1 * np.log(0.5 * 0.25 * 0.25),
        ),
        (dict(hard_pixel_fraction=0.5), -np.log(0.5)),
    ],
)
def test_labels_of_no_class_cost_nothing(settings, expected, outside):
    logits = LOGITS.at[0, 0, 1].add(jnp.array([-50.0, 0, 50]))  # else hard, or free
    cost, gradient = jax.value_and_grad(pixel_cross_entropy)(
        logits, labels(0, outside, dtype=jnp.int32), **settings
    )
    np.testing.assert_allclose(cost, expected, rtol=1e-5)
    assert gradient[0, 0, 0].any() and not gradient[0, 0, 1].any()


@pytest.mark.parametrize("outside", [-1, 7])
@pytest.mark.parametrize(
    "settings, expected",
    [
        # Of four pixels the first has a class; it lies on the left logits.
        ({}, np.log(2)),
        (dict(normalize_by="all"), np.log(2) / 4),
        (dict(class_weights=(2.0, 5.0), normalize_by="all"), np.log(2) / 2),
        (dict(label_smoothing=0.5, normalize_by="all"), np.log(2) / 4),
        (dict(hard_pixel_fraction=0.5), np.log(2)),
    ],
)
def test_resized_labels_of_no_class_cost_nothing(impl, settings, expected, outside):
    logits = jnp.log(jnp.asarray([[[[1.0, 1.0], [1.0, 3.0]]]]))
    pixels = labels(0, outside, outside, outside, dtype=jnp.int32)
    cost, gradient = jax.jit(
        jax.value_and_grad(lambda x: pixel_cross_entropy(x, pixels, **settings))
    )(logits)
    np.testing.assert_allclose(cost, expected, rtol=1e-5)
    share = expected / np.log(2)  # the left pixel, of the left logits alone
    smoothing = settings.get("label_smoothing", 0)
    slope = share * (1 - smoothing) * np.array([-0.5, 0.5])
    np.testing.assert_allclose(gradient[0, 0], [slope, [0, 0]], atol=1e-6)


def test_labels_of_eight_bits_have_no_class_from_256_on():
    logits = jnp.zeros((1, 1, 2, 300))
    for lower in (logits, logits[:, :, :1]):
        cost = pixel_cross_entropy(lower, labels(40, 50), ignore_label=-1)
        np.testing.assert_allclose(cost, np.log(300), rtol=1e-5)
        # -1 in eight bits is the class 255.
        cost = pixel_cross_entropy(
            lower, labels(40, 255), ignore_label=-1, normalize_by="all"
        )
        np.testing.assert_allclose(cost, np.log(300), rtol=1e-5)


@pytest.mark.parametrize("outside", OUTSIDE)
def test_lovasz_softmax_leaves_labels_of_no_class_out(outside):
    loss, gradient = jax.value_and_grad(lovasz_softmax)(
        LOGITS, labels(0, outside, dtype=jnp.int32)
    )
    np.testing.assert_allclose(loss, 0.5, rtol=1e-5)
    assert gradient[0, 0, 0].any() and not gradient[0, 0, 1].any()


@pytest.mark.parametrize("outside", OUTSIDE)
def test_all_parts_ignore_labels_of_no_class(outside):
    output = SegmentationOutput(
        LOGITS, se_logits=jnp.full((1, 3), np.log(3.0)), aux_logits=LOGITS
    )
    pixels = labels(0, outside, dtype=jnp.int32)
    _, parts = segmentation_loss(output, pixels, num_classes=3, lovasz_weight=1.0)
    expected = dict(pixel_loss=np.log(2), lovasz_loss=0.5, aux_loss=np.log(2))
    # Only class 0 is there; all probabilities are 3/4.
    expected["se_loss"] = -np.mean(np.log([0.75, 0.25, 0.25]))
    assert parts.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(parts[key], value, rtol=1e-5)


@pytest.mark.parametrize("outside", [-1, 3, 255])
@pytest.mark.parametrize(
    "smoothing, expected",
    [
        (0.0, -np.log(0.25)),
        (0.3, -0.7 * np.log(0.25) - 0.1 * np.log(0.5 * 0.25 * 0.25)),
    ],
)
def test_images_of_no_class_are_in_no_mean(smoothing, expected, outside):
    def loss(logits, images):
        output = ClassifierOutput(logits)
        return classification_loss(output, images, label_smoothing=smoothing)

    both = jax.value_and_grad(loss, has_aux=True)
    logits = LOGITS[0, 0]
    (cost, parts), gradient = both(logits, jnp.array([1, outside]))
    np.testing.assert_allclose(cost, expected, rtol=1e-5)
    assert parts["error"] == 1
    assert gradient[0].any() and not gradient[1].any()
    (cost, parts), gradient = both(logits, jnp.array([outside, outside]))
    assert cost == parts["error"] == 0 and not gradient.any()


WHOLE = SegmentationOutput(
    jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 3)), jnp.zeros((2, 2, 2, 3))
)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (4, 4), (2, 4, 4, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("jit", [jax.jit, lambda function: function])
@pytest.mark.usefixtures("unchecked")
def test_labels_of_other_images_are_refused(jit, stride, shape):
    output = WHOLE._replace(logits=WHOLE.logits[:, ::stride, ::stride])
    losses = [
        lambda pixels: segmentation_loss(output, pixels, num_classes=3),
        lambda pixels: pixel_cross_entropy(output.logits, pixels),
        lambda pixels: pixel_cross_entropy(
            output.logits, pixels, hard_pixel_fraction=0.5
        ),
        lambda pixels: lovasz_softmax(output.logits, pixels),
    ]
    for loss in losses:
        with pytest.raises(ValueError, match=r"labels of \(.*\) for logits of \(2, "):
            jit(loss)(np.zeros(shape, np.uint8))


@pytest.mark.usefixtures("unchecked")
def test_other_shapes_than_those_of_the_logits_are_refused():
    pixels = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="num_classes=4: must be 3"):
        segmentation_loss(WHOLE, pixels, num_classes=4)
    for part in (dict(se_logits=jnp.zeros((1, 3))), dict(se_logits=jnp.zeros((2, 1)))):
        with pytest.raises(ValueError, match=r"target of \(2, 3\): must be that of se"):
            segmentation_loss(WHOLE._replace(**part), pixels, num_classes=3)
    with pytest.raises(ValueError, match=r"for logits of \(1, 2, 2, 3\)"):
        other = WHOLE._replace(aux_logits=WHOLE.aux_logits[:1])
        segmentation_loss(other, pixels, num_classes=3)
    with pytest.raises(ValueError, match=r"for logits of \(4, 4, 3\)"):
        pixel_cross_entropy(WHOLE.logits[0], pixels)
    for shape in ((1,), (3,), (2, 1), ()):
        with pytest.raises(ValueError, match=r"labels of \(.*for logits of \(2, 3\)"):
            classification_loss(
                ClassifierOutput(WHOLE.se_logits), np.zeros(shape, np.uint8)
            )


@pytest.mark.usefixtures("unchecked")
def test_labels_that_are_no_integers_are_refused():
    pixels = np.full((2, 4, 4), 0.7, np.float32)
    for loss in (pixel_cross_entropy, lovasz_softmax):
        with pytest.raises(TypeError, match="labels of float32: must be integers"):
            loss(WHOLE.logits, pixels)
    with pytest.raises(TypeError, match="labels of float32: must be integers"):
        classification_loss(ClassifierOutput(WHOLE.se_logits), pixels[:, 0, 0])
    # Booleans are classes 0 and 1.
    np.testing.assert_array_equal(
        pixel_cross_entropy(WHOLE.logits.at[..., 1].set(2), pixels > 0),
        pixel_cross_entropy(WHOLE.logits.at[..., 1].set(2), np.uint8(pixels > 0)),
    )


def test_large_logits_stay_finite():
    logits = jnp.array([1000.0, -1000.0, 0.0]).reshape(1, 1, 1, 3)
    assert pixel_cross_entropy(logits, labels(0)) == 0
    assert pixel_cross_entropy(logits, labels(1)) == 2000


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 40, 50, 8), jnp.bfloat16)
    cost = pixel_cross_entropy(logits, jnp.zeros((1, 40, 50), jnp.uint8))
    np.testing.assert_allclose(cost, np.log(8), rtol=1e-5)


def test_unknown_average_raises():
    with pytest.raises(ValueError, match="'mean': allowed are 'valid', 'all'"):
        pixel_cross_entropy(LOGITS, labels(0, 0), normalize_by="mean")


@pytest.mark.parametrize("size", [(40, 56), (37, 9)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(align_corners=False, normalize_by="all"),
        dict(class_weights=(1.0, 0.0, 2.0, 0.5, 3.0, 1.0, 1.0), ignore_label=6),
        dict(label_smoothing=0.2),
        dict(hard_pixel_fraction=0.3, align_corners=False),
    ],
)
def test_coarse_logits_cost_what_resized_ones_do(settings, size):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(3 * rng.standard_normal((2, 5, 7, 7)), jnp.float32)
    labels = rng.integers(0, 7, (2, *size))
    labels[0, :3] = labels[1, :, -2:] = settings.get("ignore_label", 255)
    align_corners = settings.get("align_corners", True)

    @jax.jit
    @jax.value_and_grad
    def whole(logits):
        resized = resize_bilinear(logits, size, align_corners=align_corners)
        return 3 * pixel_cross_entropy(resized, labels, **settings)

    @jax.jit
    @jax.value_and_grad
    def blocks(logits):
        return 3 * pixel_cross_entropy(logits, labels, **settings)

    (expected, slope), (cost, gradient) = whole(logits), blocks(logits)
    np.testing.assert_allclose(cost, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, atol=2e-6 * abs(slope).max())


@pytest.mark.parametrize("fraction, count", [(0.3, 30), (0.6, 60), (0.601, 61)])
def test_share_of_hard_pixels_is_rounded_up_once(fraction, count):
    logits = jnp.zeros((1, 10, 10, 2)).at[..., 1].set(jnp.arange(100).reshape(10, 10))
    loss = pixel_cross_entropy(
        logits,
        jnp.zeros((1, 10, 10), jnp.uint8),
        hard_pixel_fraction=fraction,
        normalize_by="all",
    )
    costs = np.log1p(np.exp(np.arange(100.0)))[-count:]
    np.testing.assert_allclose(loss, costs.sum() / 100, rtol=1e-5)


@pytest.mark.parametrize("normalize_by", ["valid", "all"])
def test_hardest_pixels_are_those_of_the_whole_batch(normalize_by):
    """Devices whose pixels are all easy, or without a label, give none."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((8, 5, 7, 3)), jnp.float32)
    logits *= jnp.arange(1.0, 9)[:, None, None, None]  # the last are the hardest
    labels = rng.integers(0, 3, (8, 40, 56)).astype(np.uint8)
    labels[7] = labels[2, :9] = 255

    @jax.jit
    @jax.value_and_grad
    def cost(logits, labels):
        return pixel_cross_entropy(
            logits, labels, hard_pixel_fraction=0.2, normalize_by=normalize_by
        )

    resized = resize_bilinear(logits, (40, 56), align_corners=True)
    logs = jax.nn.log_softmax(resized)
    costs = -np.take_along_axis(np.asarray(logs), labels[..., None] % 3, -1)[..., 0]
    valid = labels != 255
    hardest = np.sort(costs[valid])[-int(np.ceil(0.2 * valid.sum())) :]
    count = valid.size if normalize_by == "all" else len(hardest)

    here, gradient = cost(logits, labels)
    np.testing.assert_allclose(here, hardest.sum() / count, rtol=1e-5)
    split = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec("data"))
    there, slope = cost(*jax.device_put((logits, labels), split))
    np.testing.assert_allclose(there, here, rtol=1e-6)
    np.testing.assert_allclose(slope, gradient, atol=1e-6 * abs(gradient).max())


def test_coarse_logits_are_never_resized_whole():
    logits = jax.ShapeDtypeStruct((2, 20, 20, 150), jnp.bfloat16)
    labels = jax.ShapeDtypeStruct((2, 160, 160), jnp.int32)
    gradient = jax.jit(jax.grad(pixel_cross_entropy))
    memory = gradient.lower(logits, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.7 * 2 * 160 * 160 * 150 * 4


@pytest.mark.parametrize(
    "pixels, settings, expected",
    [
        # One pixel a class: its error is the larger one, and weighs 1.
        ((0, 2), {}, (0.5 + 0.3) / 2),
        ((1, 2), {}, (0.75 + 0.3) / 2),
        ((0, 255), {}, 0.5),
        ((0, 1), dict(ignore_label=1), 0.5),
        ((0, 0), {}, (0.9 + 0.5) / 2),
        ((255, 255), {}, 0.0),
    ],
)
def test_lovasz_softmax_has_the_value_worked_out_by_hand(pixels, settings, expected):
    loss = lovasz_softmax(LOGITS, labels(*pixels), **settings)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
@pytest.mark.parametrize("align_corners", [True, False])
def test_lovasz_softmax_of_coarse_logits_is_that_of_resized_ones(align_corners, dtype):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 5, 7, 4)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, (2, 33, 20)), dtype).at[0, :3].set(255)
    resized = resize_bilinear(logits, (33, 20), align_corners=align_corners)
    loss = lovasz_softmax(logits, labels, align_corners=align_corners)
    np.testing.assert_allclose(loss, lovasz_softmax(resized, labels), rtol=1e-6)


def test_lovasz_softmax_is_a_part_of_the_main_head_beside_all_other_settings():
    output = SegmentationOutput(LOGITS, aux_logits=LOGITS)
    settings = dict(
        class_weights=(9.0, 3.0, 1.0),
        label_smoothing=0.3,
        hard_pixel_fraction=0.5,
        normalize_by="all",
    )
    without, others = segmentation_loss(output, labels(1, 2), num_classes=3, **settings)
    loss, parts = segmentation_loss(
        output, labels(1, 2), num_classes=3, lovasz_weight=2.0, **settings
    )
    assert parts.keys() == others.keys() | {"lovasz_loss"}
    np.testing.assert_allclose(parts["lovasz_loss"], (0.75 + 0.3) / 2, rtol=1e-5)
    np.testing.assert_allclose(loss, without + 2 * parts["lovasz_loss"], rtol=1e-6)


def test_se_loss_is_the_mean_over_images_and_classes():
    presence = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1 / 3]]))  # 1/2, 3/4; 1/2, 1/4
    target = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    expected = -np.mean(np.log([0.5, 0.75, 0.5, 0.25]))
    np.testing.assert_allclose(se_loss(presence, target), expected, rtol=1e-6)


def test_se_loss_of_large_logits_is_finite():
    presence = jnp.array([[1000.0, -1000.0]])
    assert se_loss(presence, jnp.array([[1.0, 0.0]])) == 0
    assert se_loss(presence, jnp.array([[0.0, 1.0]])) == 1000


def test_segmentation_loss_is_the_weighted_sum_of_its_parts():
    output = SegmentationOutput(
        LOGITS,
        se_logits=jnp.zeros((1, 3)),
        aux_logits=jnp.zeros((1, 1, 2, 3)),
        stage3_se_logits=jnp.full((1, 3), np.log(3.0)),
    )
    loss, parts = segmentation_loss(
        output, labels(0, 255), num_classes=3, se_weight=0.5, aux_weight=0.25
    )
    # Class 0 is there, the two others are not: probabilities 1/2, then 3/4.
    se_loss = np.log(2) - np.mean(np.log([0.75, 0.25, 0.25]))
    expected = dict(pixel_loss=np.log(2), se_loss=se_loss, aux_loss=np.log(3))
    assert parts.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(parts[key], value, rtol=1e-5)
    total = np.log(2) + 0.5 * se_loss + 0.25 * np.log(3)
    np.testing.assert_allclose(loss, total, rtol=1e-5)


@pytest.mark.parametrize("ignored", [0, 2])
def test_ignored_label_in_the_range_of_classes_is_not_present(ignored):
    output = SegmentationOutput(LOGITS, se_logits=jnp.full((1, 3), np.log(3.0)))
    _, parts = segmentation_loss(
        output, labels(ignored, 1), num_classes=3, ignore_label=ignored
    )
    # Only class 1 is there; all probabilities are 3/4.
    expected = -np.mean(np.log([0.75, 0.25, 0.25]))
    np.testing.assert_allclose(parts["se_loss"], expected, rtol=1e-5)


def test_segmentation_loss_without_branches_is_that_of_the_pixels():
    loss, parts = segmentation_loss(
        SegmentationOutput(LOGITS), labels(0, 2), num_classes=3
    )
    assert parts.keys() == {"pixel_loss"}
    np.testing.assert_array_equal(loss, parts["pixel_loss"])


def test_weights_of_classes_and_average_reach_both_heads():
    output = SegmentationOutput(LOGITS, aux_logits=LOGITS)
    _, parts = segmentation_loss(
        output,
        labels(1, 255),
        num_classes=3,
        class_weights=(9.0, 3.0, 1.0),
        normalize_by="all",
    )
    for key in ("pixel_loss", "aux_loss"):
        np.testing.assert_allclose(parts[key], 3 * np.log(4) / 2, rtol=1e-5)
