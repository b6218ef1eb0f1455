"""A run and its data set: the classes must be the same, in names, order and labels."""

import dataclasses
import json

import pytest

from encnet_jax.config import default, load_config, save_config
from encnet_jax.data.dataset_info import CAMVID, IGNORE_LABEL, DatasetInfo, save_info
from encnet_jax.errors import UserError
from encnet_jax.run import workdir as module
from encnet_jax.run.checkpoint_folder import write_score
from encnet_jax.run.workdir import check_resumed_classes
from encnet_jax.train.resume import check_splits, check_workdir, log_changes

INFO = DatasetInfo("folder", ("road", "sky", "tree"), ((0, 0, 0),) * 3, {})


def changed(**values):
    return dataclasses.replace(INFO, **values)


@pytest.fixture
def run(tmp_path):
    save_info(INFO, tmp_path / "classes.json")
    return tmp_path


def test_run_without_a_checkpoint_is_no_obstacle(run):
    """As one that the first step ended: out of memory, or with infinite losses."""
    config = default()
    save_config(config, run / "config.json")
    config.model.width = 32
    check_workdir(config, run, changed(class_names=("sky", "road", "tree")))
    (run / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="model.width=32: the run in .* has 64"):
        check_workdir(config, run, INFO)


def test_somebodys_config_is_not_taken_for_that_of_a_run(tmp_path):
    """With it went the `metrics.jsonl` beside it."""
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    message = "config.json: not the config.*; choose another workdir"
    with pytest.raises(UserError, match=message):
        check_workdir(default(), tmp_path, INFO)


@pytest.fixture
def scored(run):
    """A run with a checkpoint whose score on val is known."""
    config = default()
    config.total_steps = 9
    config.data.data_dir = str(run / "photos")
    save_config(config, run / "config.json")
    (run / "checkpoints" / "1").mkdir(parents=True)
    write_score(run / "checkpoints" / "1", "mean_iou", 0.5)
    return run


def test_scores_of_two_splits_are_not_ranked_together(scored):
    config = load_config(scored / "config.json")
    config.evaluation.split = "test"
    with pytest.raises(UserError, match="evaluation.split='test': the run .* 'val'"):
        check_splits(config, scored, INFO)
    config.total_steps = 1  # none is left
    check_splits(config, scored, INFO)
    (scored / "checkpoints" / "1" / "metrics" / "metrics").unlink()
    with pytest.raises(UserError, match="evaluation.split='test': the run .* 'val'"):
        check_splits(config, scored, INFO)  # its evaluation was killed
    config.total_steps = 9
    check_splits(config, scored, INFO)


def test_split_to_train_on_stays(scored):
    config = load_config(scored / "config.json")
    config.data.train_split = "trainval"
    for steps in (9, 1):
        config.total_steps = steps
        with pytest.raises(UserError, match="train_split='trainval': the run"):
            check_splits(config, scored, INFO)


def test_scoring_otherwise_is_warned_of(scored, caplog):
    config = load_config(scored / "config.json")
    config.evaluation.batch_size = 2
    config.evaluation.boundary_iou = True
    log_changes(config, scored, INFO)
    assert not caplog.messages
    config.data.crop_size = 240  # whole images are scored
    config.evaluation.base_size = config.data.base_size
    log_changes(config, scored, INFO)
    (line,) = caplog.messages
    assert line.startswith("WARNING: data.crop_size=240 (so far: 480): the 1 steps")
    config.evaluation.base_size = 0
    config.data.base_size = 704
    config.evaluation.absent_classes = "zero"
    log_changes(config, scored, INFO)
    *_, line = caplog.messages
    assert "evaluation.absent_classes='zero' (training: 'skip')" in line
    assert "data.base_size=704 (training: 520)" in line
    assert "batch_size" not in line and "boundary_iou" not in line


def test_size_of_classified_images_is_warned_of(scored, caplog):
    info = dataclasses.replace(INFO, task="classification")
    (scored / "checkpoints/1/metrics/metrics").write_text('{"accuracy": 0.5}')
    config = load_config(scored / "config.json")
    log_changes(config, scored, info)
    assert not caplog.messages
    config.data.crop_size = 24
    log_changes(config, scored, info)
    _, line = caplog.messages
    assert "data.crop_size=24 (training: 480)" in line


@pytest.mark.parametrize(
    "settings, stride, warns",
    [
        (dict(mode="slide", crop_size=480), 320, False),  # what 0 stands for
        (dict(mode="slide", crop_size=480), 240, True),
        (dict(protocol="mmseg"), 100, False),  # whole images
        (dict(protocol="mmseg", mode="slide", crop_size=480), 320, False),
        (dict(protocol="mmseg", mode="slide", crop_size=480), 321, True),
    ],
)
def test_stride_of_equal_effect_is_not_warned_of(
    scored, caplog, settings, stride, warns
):
    config = load_config(scored / "config.json")
    config.evaluation.update(settings)
    save_config(config, scored / "config.json")
    config.evaluation.stride = stride
    log_changes(config, scored, INFO)
    assert [f"evaluation.stride={stride}" in x for x in caplog.messages] == [
        True
    ] * warns


def test_backbone_that_adamw_has_not_trained_stays_frozen(scored):
    """The first of its updates would be 3, the tenth 6.5 times too large."""
    stored = load_config(scored / "config.json")
    for name in ("adamw", "sgd"):
        stored.optimizer.name = name
        stored.model.freeze_backbone = True
        save_config(stored, scored / "config.json")
        config = load_config(scored / "config.json")
        check_workdir(config, scored, INFO)
        config.model.freeze_backbone = False
        if name == "sgd":
            check_workdir(config, scored, INFO)
            continue
        message = "^model.freeze_backbone=False: the run in .* has True"
        with pytest.raises(UserError, match=message):
            check_workdir(config, scored, INFO)


def test_other_folder_is_warned_of(scored, caplog):
    config = load_config(scored / "config.json")
    config.data.data_dir = f"{scored}/../{scored.name}/photos"
    log_changes(config, scored, INFO)
    assert not caplog.messages
    config.data.data_dir = "/elsewhere"
    config.total_steps = 1  # none is left
    log_changes(config, scored, INFO)
    assert not caplog.messages
    config.total_steps = 2
    log_changes(config, scored, INFO)
    (line,) = caplog.messages
    there = f"data.data_dir='/elsewhere' (so far: '{scored}/photos')"
    assert line == (
        f"WARNING: {there}: the 1 steps that the run in {scored} has taken stay as "
        "they are; to train anew use another --workdir"
    )


def test_learning_rate_of_a_longer_schedule_is_logged(scored, caplog):
    caplog.set_level("INFO", "encnet_jax")
    config = load_config(scored / "config.json")
    config.total_steps, config.optimizer.power = 2, 1.0
    stored = config.copy_and_resolve_references()
    stored.total_steps = 1
    save_config(stored, scored / "config.json")
    log_changes(config, scored, INFO)
    assert caplog.messages == [
        "total_steps=2 (so far: 1): the learning rate continues at 0.005, in place of 0"
    ]


def test_settings_that_train_otherwise_are_warned_of(scored, caplog):
    config = load_config(scored / "config.json")
    config.total_steps, config.eval_every, config.tracker = 1, 7, "wandb"
    config.model.conv_impl, config.model.head_init = "lax", "mmseg"
    config.evaluation.boundary_iou = True
    config.optimizer.beta2 = 0.9  # which nothing reads: the optimizer is SGD
    log_changes(config, scored, INFO)
    assert not caplog.messages
    config.learning_rate, config.loss.class_weights = 0.5, (1.0, 2.0)
    for config.total_steps in (1, 2):  # complete or not
        caplog.clear()
        log_changes(config, scored, INFO)
        (line,) = caplog.messages
        assert line == (
            "WARNING: learning_rate=0.5 (so far: 0.01), loss.class_weights=(1.0, 2.0) "
            f"(so far: ()): the 1 steps that the run in {scored} has taken stay as "
            "they are; to train anew use another --workdir"
        )


def test_same_classes_resume(run):
    check_resumed_classes(run, INFO)
    check_resumed_classes(run / "new", INFO)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("sky", "road", "tree"), "other 3: class 0 is 'road' there and 'sky' here"),
        (("road", "sky", "bush"), "other 3: class 2 is 'tree' there and 'bush' here"),
        (("road", "sky"), "has other 2"),
    ],
)
def test_renamed_and_reordered_classes_are_refused(run, names, message):
    before = (run / "classes.json").read_text()
    with pytest.raises(UserError, match=message):
        check_resumed_classes(run, changed(class_names=names))
    assert (run / "classes.json").read_text() == before


@pytest.fixture
def mapped(run, monkeypatch):
    """A run whose classes.json holds what labels mean: 7 road, 8 sky, 9 tree."""
    path = run / "classes.json"
    stored = json.loads(path.read_text()) | {"label_map": {"7": 0, "8": 1, "9": 2}}
    path.write_text(json.dumps(stored))
    colors = {(1, 1, 1): 7, (2, 2, 2): 8, (3, 3, 3): 9}
    info = changed(label_map={7: 0, 8: 1, 9: 2}, label_colors=colors)
    monkeypatch.setattr(module, "load_info", lambda path: info)
    return run, info


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({7: 1, 8: 0, 9: 2}, "with label 7 as 'road'; folder has it as 'sky'"),
        ({7: 0, 8: 1, 9: IGNORE_LABEL}, "with label 9 as 'tree'; .* as ignored"),
    ],
)
def test_labels_of_another_meaning_are_refused(mapped, label_map, message):
    run, info = mapped
    with pytest.raises(UserError, match=message):
        check_resumed_classes(run, dataclasses.replace(info, label_map=label_map))


def test_colors_of_another_meaning_are_refused(mapped):
    run, info = mapped
    colors = {(1, 1, 1): 8, (2, 2, 2): 7, (3, 3, 3): 9}
    with pytest.raises(UserError, match=r"color \(\d, \d, \d\) as '(road|sky)'"):
        check_resumed_classes(run, dataclasses.replace(info, label_colors=colors))


def test_further_label_to_ignore_is_no_change(mapped):
    run, info = mapped
    label_map = {**info.label_map, 200: IGNORE_LABEL}
    check_resumed_classes(run, dataclasses.replace(info, label_map=label_map))


def test_runs_that_stored_no_labels_resume(run):
    path = run / "classes.json"
    save_info(CAMVID, path)
    stored = json.loads(path.read_text())
    stored.pop("label_map", None)
    path.write_text(json.dumps(stored))
    check_resumed_classes(run, dataclasses.replace(CAMVID, label_map={}))


@pytest.mark.parametrize(
    ("trained", "given"),
    [
        (((0, 900), (0, 900)), ((0, 900), (0, 1000))),
        ((0, 4095), ((0, 4095),) * 3),
        (None, (0, 4095)),
        ((0, 4095), None),
    ],
)
def test_run_of_other_value_ranges_is_not_resumed(tmp_path, trained, given):
    """Pairs make bands of images that were RGB."""
    info = changed(value_range=trained)
    save_info(info, tmp_path / "classes.json")
    check_resumed_classes(tmp_path, info)
    with pytest.raises(UserError, match="was trained with value_range=.*has .*workdir"):
        check_resumed_classes(tmp_path, changed(value_range=given))
