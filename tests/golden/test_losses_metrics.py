"""Losses, scores and learning rates against both originals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encnet_jax.losses import se_loss, segmentation_loss
from encnet_jax.metrics import confusion_matrix, segmentation_metrics
from encnet_jax.models.segmentation import SegmentationOutput
from encnet_jax.ops.class_presence import class_presence
from encnet_jax.optimizer import cosine_schedule, poly_schedule

from .cases import load_case, nchw, nhwc

# The originals' own float32 errors are not known here, so the floor of all tolerances
# holds: 1e-5 of the largest value, a hundred times the rounding of one float32 number.


def _scored(arrays, **settings):
    """Returns loss, parts and gradients for the stored logits."""
    output = SegmentationOutput(
        nhwc(arrays["main_logits"]),
        arrays["se_logits"],
        nhwc(arrays["aux_logits"]),
    )
    labels = np.where(arrays["target"] == -1, 255, arrays["target"])
    loss = functools.partial(segmentation_loss, num_classes=7, **settings)
    (total, parts), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        output, labels
    )
    return total, parts, grads


def _check_gradients(check, case, grads, suffix=""):
    check(case, f"grad_main_logits{suffix}", nchw(grads.logits))
    check(case, f"grad_se_logits{suffix}", grads.se_logits)
    check(case, f"grad_aux_logits{suffix}", nchw(grads.aux_logits))


def test_losses_of_pytorch_encoding_match(check):
    case = load_case("losses")
    total, parts, grads = _scored(case.arrays, se_weight=0.2, aux_weight=0.2)
    main, se, aux = parts["pixel_loss"], parts["se_loss"], parts["aux_loss"]
    check(case, "loss", total)
    check(case, "loss_main_only", main)
    check(case, "loss_se_term", se)
    check(case, "loss_aux_only_term", aux)
    check(case, "loss_main_and_aux_weight_0.4", main + 0.4 * aux)
    check(case, "loss_main_and_se_weight_0.2", main + 0.2 * se)
    check(case, "loss_all_class_defaults", main + 0.2 * se + 0.4 * aux)
    _check_gradients(check, case, grads)


def test_class_presence_matches():
    arrays = load_case("losses").arrays
    labels = np.where(arrays["target"] == -1, 255, arrays["target"])
    assert (labels == 255).all((1, 2)).any(), "no image without a label"
    np.testing.assert_array_equal(
        class_presence(jnp.asarray(labels), 7), arrays["se_target"]
    )


def test_se_loss_of_extreme_logits_matches(check):
    # The original clips logarithms at -100: a logit of 300 on the wrong side costs 100
    # there and 300 here. With logits up to 100 the two agree.
    case = load_case("losses")
    logits = case.arrays["extreme_se_logits"].clip(-100, 100)
    cost = se_loss(jnp.asarray(logits), jnp.asarray(case.arrays["se_target"]))
    check(case, "extreme_se_term", cost)


@pytest.mark.parametrize("average", ["all", "valid"])
def test_losses_of_mmsegmentation_match(average, check):
    case = load_case("losses_mmseg")
    # The logits and labels are those of the other case, but for the ignored label.
    arrays = load_case("losses").arrays
    total, parts, grads = _scored(
        arrays, se_weight=0.2, aux_weight=0.4, normalize_by=average
    )
    suffix = "" if average == "all" else "_avg_non_ignore"
    check(case, f"loss{suffix}", total)
    check(case, f"loss_main_term{suffix}", parts["pixel_loss"])
    check(case, f"loss_aux_term_unweighted{suffix}", parts["aux_loss"])
    check(case, "loss_se_term_unweighted", parts["se_loss"])
    _check_gradients(check, case, grads, suffix)


def test_scores_match_after_each_batch(check):
    case = load_case("metrics")
    arrays = case.arrays
    total = np.zeros((8, 8), np.int64)
    for i in range(3):
        labels = np.where(
            arrays[f"batch{i}_target"] == -1, 255, arrays[f"batch{i}_target"]
        )
        total += np.asarray(confusion_matrix(labels, arrays[f"batch{i}_pred"], 8))
        correct = np.diag(total)
        union = total.sum(0) + total.sum(1) - correct
        exact = {
            "correct_labelled": (correct.sum(), total.sum()),
            "inter": correct,
            "union": union,
        }
        for name, value in exact.items():
            np.testing.assert_array_equal(value, arrays[f"after{i}_{name}"])
        found = segmentation_metrics(total, absent_classes="zero")
        pair = (found["pixel_accuracy"], found["mean_iou"])
        # Ratios of integers in float64; the original adds 2e-16 to its unions.
        check(case, f"after{i}_pixAcc_mIoU", pair, allowed=1e-12)
    check(case, "iou_per_class", found["per_class_iou"], allowed=1e-12)
    skipped = segmentation_metrics(total, absent_classes="skip")["mean_iou"]
    check(case, "miou_over_classes_with_union", skipped, allowed=1e-12)


@pytest.mark.parametrize("kind", ["poly", "poly_warmup", "cos"])
def test_learning_rates_match(kind, check):
    case = load_case("lr_schedule")
    settings = case.facts["config"][kind]
    per_epoch = settings["iters_per_epoch"]
    create = cosine_schedule if kind == "cos" else poly_schedule
    schedule = create(
        settings["base_lr"],
        settings["epochs"] * per_epoch,
        warmup_steps=settings.get("warmup_epochs", 0) * per_epoch,
    )
    steps = case.arrays[f"{kind}_iteration"]
    rates = np.array([schedule(step) for step in steps])
    # Both heads run ten times as fast; `test_training_runs.py` tests that factor.
    check(case, f"{kind}_lr_backbone_head_aux", rates[:, None] * [1, 10, 10])
