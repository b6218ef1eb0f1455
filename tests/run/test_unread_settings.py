"""Keys set by a user that nothing reads: told, each with what it needs."""

import pytest

from encnet_jax.config import default
from encnet_jax.models.encnet import EncNet
from encnet_jax.models.registry import MODELS
from encnet_jax.run.unread_settings import unread_settings
from tests.commands import SMALL, errors, run


def lines(keys, **changes):
    config = default()
    config.update_from_flattened_dict(changes)
    return unread_settings(config, keys.split())


@pytest.mark.parametrize(
    "key, without, with_effect",
    [
        ("optimizer.nesterov", {"optimizer.name": "adamw"}, {}),
        ("optimizer.beta2", {}, {"optimizer.name": "adamw"}),
        ("optimizer.power", {"optimizer.schedule": "cosine"}, {}),
        ("loss.se_weight", {"model.se_loss": False}, {}),
        ("loss.se_weight", {"model.name": "fcn"}, {}),
        ("loss.aux_weight", {"model.aux_head": False}, {}),
        ("evaluation.stride", {}, {"evaluation.mode": "slide"}),
        ("evaluation.crop_size", {}, {"evaluation.scales": (0.5, 1.0)}),
        (
            "evaluation.stride",
            {"evaluation.protocol": "mmseg", "evaluation.scales": (0.5, 1.0)},
            {"evaluation.protocol": "mmseg", "evaluation.mode": "slide"},
        ),
        (
            "evaluation.crop_size",
            {"evaluation.protocol": "mmseg"},
            {"evaluation.mode": "slide"},
        ),
        (
            "evaluation.mode",
            {"evaluation.scales": (0.5, 1.0)},
            {"evaluation.protocol": "mmseg", "evaluation.scales": (0.5, 1.0)},
        ),
        ("evaluation.base_size", {"model.name": "encnet14"}, {}),
        ("data.scale_range", {"model.name": "encnet14"}, {}),
        ("model.decoder_stride", {"model.name": "pspnet"}, {}),
        ("model.se_stages", {"model.se_loss": False}, {}),
        ("model.code_reduction", {"model.num_codes": 0}, {}),
        ("model.scale_init", {"model.num_codes": 0}, {"model.name": "encnet14"}),
        ("model.stem_width", {"model.stem": "plain"}, {}),
        (
            "evaluation.align_corners",
            {"evaluation.mode": "slide"},
            {"evaluation.mode": "slide", "evaluation.protocol": "mmseg"},
        ),
        ("model.num_codes", {"model.name": "fcn"}, {}),
        ("model.output_stride", {"model.backbone": "dinov2_vits14"}, {}),
        (
            "model.output_stride",
            {"model.name": "deeplabv3", "model.backbone": "dinov2_vits14"},
            {"model.name": "deeplabv3"},
        ),
        ("model.backbone", {"model.name": "resnet14"}, {"model.name": "fcn"}),
    ],
)
def test_key_without_effect_is_named(key, without, with_effect):
    (line,) = lines(key, **without)
    assert line.startswith(f"{key}: has no effect here: ")
    assert not lines(key, **with_effect)


def test_loss_of_a_network_with_its_own_presence_is_read(monkeypatch):
    class Mine(EncNet):
        """As a plugin adds one."""

    monkeypatch.setitem(MODELS, "mine", Mine)
    assert not lines("loss.se_weight loss.aux_weight", **{"model.name": "mine"})


def test_windows_asked_for_twice_are_no_mistake():
    changes = {"evaluation.mode": "slide", "evaluation.scales": (0.5, 1.0)}
    assert not lines("evaluation.mode evaluation.scales", **changes)


def test_every_other_key_is_read():
    keys = "seed batch_size data.crop_size model.name model.weights model.remat"
    assert not lines(f"{keys} model.dtype optimizer.momentum evaluation.split")


def test_command_warns_before_it_fails(camvid, tmp_path):
    result = run(
        "train.py",
        "--config=camvid:cpu",
        f"--config.data.data_dir={camvid}",
        f"--workdir={tmp_path / 'run'}",
        *SMALL,
        "--config.evaluation.stride=32",
        "--config.evaluation.split=dev",
    )
    assert result.returncode == 2 and "allowed are train" in errors(result)[0]
    (warning,) = [x for x in result.stderr.splitlines() if x.startswith("WARNING: --")]
    assert warning.startswith("WARNING: --config.evaluation.stride: has no effect")
    assert not (tmp_path / "run").exists()
