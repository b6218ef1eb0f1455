"""Warnings: features placed beside their pixels, or of a random frozen backbone."""

import importlib
import logging

import numpy as np
import pytest
from flax import nnx

import encnet_jax
from encnet_jax.config import default
from encnet_jax.fit_arrays import small_config
from encnet_jax.models.registry import BACKBONES
from encnet_jax.train.geometry import warn_of_geometry
from encnet_jax.train.settings import (
    log_warnings,
    warn_of_random_backbone,
    warn_of_scales,
    warn_of_splits,
)
from tests.test_config import CONFIGS
from tests.test_fit_arrays import squares, tiny

NEAR_360 = (
    "model.align_corners=True from scratch with data.crop_size=360: logits of "
    "neighboring features, which lie 8 pixels apart, are placed 8.16 apart. Set "
    "model.align_corners=False with sizes of a multiple of 8 (data.crop_size=360), or "
    "sizes of a multiple of 8 plus 1 (data.crop_size=361)"
)


@pytest.fixture(autouse=True)
def _log_level(caplog):
    caplog.set_level(logging.INFO, "encnet_jax")


def warned(caplog, **changes):
    config = default()
    config.data.crop_size = 360
    config.update_from_flattened_dict(changes)
    caplog.clear()
    warn_of_geometry(config)
    return caplog.text


def test_warning_names_the_spacing_and_both_remedies(caplog):
    assert NEAR_360 in warned(caplog)
    text = warned(caplog, **{"data.crop_size": 352, "model.output_stride": 16})
    # 22 features 16 pixels apart cover 336 pixels, and are stretched over 351.
    assert "16 pixels apart, are placed 16.7 apart" in text
    assert "a multiple of 16 plus 1 (data.crop_size=353)" in text
    # With False at 100, 13 features would be 7.7 pixels apart: no better than True.
    text = warned(caplog, **{"data.crop_size": 100})
    assert "False with sizes of a multiple of 8 (data.crop_size=96), or" in text
    assert "of a multiple of 8 plus 1 (data.crop_size=97)" in text


def test_sizes_in_between_do_not_fit_without_aligned_corners_either(caplog):
    text = warned(caplog, **{"model.align_corners": False, "data.crop_size": 100})
    # 13 features 8 pixels apart cover 104.
    assert "align_corners=False from scratch with data.crop_size=100" in text
    assert (
        "8 pixels apart, are placed 7.69 apart. Set sizes of a multiple of 8 " in text
    )
    assert (
        "=96), or model.align_corners=True with sizes of a multiple of 8 plus" in text
    )


@pytest.mark.parametrize(
    "size, align_corners, crop",
    [(96, False, 96), (97, True, 97), (105, True, 105), (100, False, 96)],
)
def test_arrays_are_trained_with_the_geometry_that_fits(
    size, align_corners, crop, caplog
):
    images = np.zeros((1, size, size + 8, 3), np.uint8)
    config = small_config(images, images[..., 0])
    assert config.model.align_corners is align_corners
    assert config.data.crop_size == crop
    warn_of_geometry(config)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"data.crop_size": 361, "data.base_size": 521},
        {"data.crop_size": 361, "model.pad_to_stride": True},
        {"data.crop_size": 361, "evaluation.mode": "slide"},
        {"data.crop_size": 353, "model.output_stride": 32, "evaluation.base_size": 513},
        {"model.align_corners": False},
        {"model.weights": "weights.pth"},
        {"model.weights": "w.pth", "model.pad_to_stride": True, "data.crop_size": 361},
        {"model.name": "encnet14"},
    ],
)
def test_nothing_is_said_where_features_fit_or_are_pretrained(changes, caplog):
    assert warned(caplog, **changes) == ""


def test_whole_images_that_do_not_fit_are_named(caplog):
    text = warned(caplog, **{"data.crop_size": 361})  # 65 features at 520
    assert "images of data.base_size=520 pixels" in text
    assert "placed 8.11 pixels apart, in training 8. Set model.pad_to_stride" in text
    settings = {"model.align_corners": False, "evaluation.base_size": 100}
    text = warned(caplog, **settings)
    assert "images of evaluation.base_size=100 pixels" in text
    assert "placed 7.69 pixels apart, in training 8." in text


def test_padding_that_training_does_not_do_is_named(caplog):
    """Pretrained weights may be of any size, but not change their own in prediction."""
    settings = {"model.weights": "weights.pth", "model.pad_to_stride": True}
    text = warned(caplog, **settings)
    assert "model.pad_to_stride=True with data.crop_size=360: training places" in text
    assert "8.16 pixels apart, prediction 8. Set data.crop_size=361, or" in text
    settings |= {"model.align_corners": False, "data.crop_size": 100}
    text = warned(caplog, **settings)
    assert "7.69 pixels apart, prediction 8. Set data.crop_size=96, or" in text


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, True),
        ({"model.scale_init": "scaled"}, False),
        ({"model.weights": "weights.pth"}, False),
        ({"model.num_codes": 0}, False),
        ({"model.name": "fcn"}, False),
        ({"model.name": "encnet14"}, False),
    ],
)
def test_scales_of_the_original_are_named_from_scratch(changes, said, caplog):
    config = default()
    config.update_from_flattened_dict(changes)
    warn_of_scales(config)
    assert ("Set model.scale_init=scaled" in caplog.text) is said


@pytest.mark.parametrize(
    "trained, scored, said",
    [
        ("train", "val", False),
        ("train", "train", True),
        ("trainval", "val", True),
        ("trainval", "train", True),
        ("trainval", "test", False),
    ],
)
def test_scores_of_images_trained_on_are_named(trained, scored, said, caplog):
    config = default()
    config.data.train_split, config.evaluation.split = trained, scored
    warn_of_splits(config)
    expected = f"evaluation.split={scored} is trained on (data.train_split={trained})"
    assert (expected in caplog.text) is said


@pytest.mark.parametrize("resumes", [False, True])
def test_a_network_is_not_warned_of_when_it_stays_as_it_is(resumes, caplog):
    config = default()
    config.model.freeze_backbone = True
    log_warnings(config, resumes)
    keys = ["align_corners=", "scale_init=", "freeze_backbone="]
    for key, line in zip(keys[2 * resumes :], caplog.messages, strict=True):
        assert key in line


@pytest.mark.parametrize(
    "centered, aligned, size, said",
    [
        (False, False, 360, "neighboring features, which lie 16 pixels apart"),
        (False, True, 361, "a multiple of 16 plus 1 (data.crop_size=353)"),
        (False, False, 352, ""),
        (True, True, 361, "model.backbone=mine: features lie at the centers of equal"),
        (True, False, 361, ""),
    ],
)
def test_a_backbone_says_where_its_features_lie(
    centered, aligned, size, said, caplog, monkeypatch
):
    declared = {"stride": 16, "centered": centered}
    monkeypatch.setitem(BACKBONES, "mine", type("Mine", (nnx.Module,), declared))
    settings = {"model.backbone": "mine", "model.align_corners": aligned}
    sizes = {"data.crop_size": size, "data.base_size": size}
    text = warned(caplog, **settings, **sizes)
    assert said in text and bool(said) == bool(text)


def test_recipes_from_scratch_fit_their_sizes(caplog):
    scratch = 0
    for name, variants in CONFIGS.items():
        for variant in variants:
            config = importlib.import_module(f"configs.{name}").get_config(variant)
            warn_of_geometry(config)
            scratch += not config.model.weights and config.model.name == "encnet"
    assert scratch >= 4 and caplog.text == ""


@pytest.mark.parametrize("weights", ["", "hf://timm/resnet18/model.safetensors"])
@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_backbone_of_random_weights_is_named(weights, frozen, caplog):
    config = default()
    config.model.update(weights=weights, freeze_backbone=frozen)
    warn_of_random_backbone(config)
    messages = [
        line for line in caplog.messages if "model.freeze_backbone=True" in line
    ]
    assert len(messages) == (frozen and not weights)


@pytest.mark.slow
def test_training_warns(tmp_path, caplog):
    images, labels = squares()
    config = tiny(small_config(images, labels))
    config.model.align_corners = config.model.freeze_backbone = True
    config.total_steps = config.eval_every = 6
    encnet_jax.fit(images, labels, config=config, workdir=tmp_path)
    assert "model.align_corners=True from scratch" in caplog.text
    assert "model.freeze_backbone=True without model.weights" in caplog.text
