"""The CamVid benchmark: its runs, its conventions, and the time that it keeps to."""

import json
import shutil
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from benchmarks import (
    camvid_images,
    camvid_scores,
    camvid_training,
    curves,
    time_budget,
)
from benchmarks.camvid_images import pack, packed_quality
from benchmarks.camvid_runs import (
    RUNS,
    Run,
    check_identity,
    open_splits,
    parse_overrides,
)
from benchmarks.camvid_training import Limits, run_once
from benchmarks.time_budget import Speed, plan_steps
from encnet_jax.config import leaves
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from encnet_jax.models.layers import BatchNorm
from encnet_jax.ops.normalize import normalize
from encnet_jax.run.model_config import abstract_model
from encnet_jax.run.workdir import load_workdir
from tests.commands import ROOT, environment, errors

TINY = {
    "total_steps": 6,
    "batch_size": 2,
    "log_every": 1,
    "mesh.data": 1,
    "optimizer.warmup_steps": 0,
    "model.backbone": "tiny",
    "model.stem": "plain",
    "model.width": 4,
    "model.head_channels": 8,
    "model.num_codes": 4,
    "data.base_size": 48,
    "data.crop_size": 32,
    "evaluation.base_size": 0,
    "evaluation.batch_size": 2,
    # Padding would take part in the statistics of a batch; CamVid needs none.
    "model.pad_to_stride": False,
}


def tiny(name="recipe", split="train", hold_out="", **others):
    overrides = {**TINY, **others}
    return Run(name, "cpu", split, hold_out, 0, overrides, jpeg_quality=None)


@pytest.fixture(scope="module")
def drives(camvid):
    """Returns the small data set with its images named by three drives."""
    names = "A_0", "A_1", "A_2", "B_0", "B_1", "B_2", "C_0", "C_1"
    for split in ("train", "val", "test"):
        for folder in (camvid / split, camvid / f"{split}annot"):
            prefix = "" if split == "train" else "A_" if split == "val" else "D_"
            for index, path in enumerate(sorted(folder.iterdir())):
                name = names[index] if split == "train" else f"{prefix}{9 - index}"
                path.rename(folder / f"{name}.png")
    return camvid


@pytest.fixture(scope="module")
def scored(drives, tmp_path_factory):
    """Returns the folder of a finished run with a drive held out, and its rows."""
    folder = tmp_path_factory.mktemp("run")
    paths = folder / "work", folder / "files", folder / "camvid.json"
    rows = run_once(tiny(hold_out="B"), str(drives), *paths, Limits())
    return folder, rows


@pytest.mark.parametrize("recipe", ["gpu", "weighted", "cpu"])
@pytest.mark.parametrize("name", RUNS)
def test_every_run_is_a_valid_configuration(name, recipe):
    config = Run(name, recipe, "trainval", "", 3, {}, None).config()
    assert config.seed == 3 and config.data.train_split == "trainval"
    settings = dict(leaves(config))
    for key, value in RUNS[name].items():
        assert settings[key] == value
    assert config.eval_every == -(-config.total_steps // 4)


def test_settings_on_the_command_line_override_those_of_the_run():
    texts = [
        "model.num_codes=5",
        "data.scale_range=(0.5, 1.5)",
        "loss.class_balance=log",
    ]
    run = tiny("pooling")._replace(overrides=parse_overrides(texts))
    config = run.config(total_steps=90)
    assert config.model.num_codes == 5 and config.total_steps == 90
    assert config.data.scale_range == (0.5, 1.5) and config.loss.class_balance == "log"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.codes=3", "--set=model.codes: no such key"),
        ("model=3", "--set=model: no such key"),
        ("total_steps=long", "--set=total_steps='long': must be of type int"),
        ("total_steps", "--set=total_steps: must be key=value"),
        ("model.backbone=vgg", "backbone"),
        ("seed=5", "--set=seed: --seed sets it"),
        ("data.train_split='trainval'", "--set=data.train_split: --split sets it"),
    ],
)
def test_wrong_settings_are_named(text, message):
    with pytest.raises(UserError, match=message):
        tiny()._replace(overrides=parse_overrides([text])).config()


@pytest.mark.parametrize("recipe", ["gpu", "cpu"])
def test_runs_of_the_corners_predict_with_the_geometry_of_their_training(recipe):
    aligned, free = (
        Run(f"corners_{side}", recipe, "train", "", 0, {}, None).config()
        for side in ("aligned", "free")
    )
    for config in (aligned, free):
        definition, *shapes = abstract_model(config, 11)
        model = definition.merge_abstract(*shapes)
        assert model.padded_size((384, 512)) == (384, 512)
    assert aligned.model.align_corners and not free.model.align_corners
    free.model.align_corners = True
    assert aligned.model == free.model


def test_scored_in_training_is_named_in_the_curve(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "mean_iou": 0.5}\n')
    labels = []
    monkeypatch.setattr(curves, "plot", lambda *given: labels.append(given[2]))
    for run in (
        tiny(),
        tiny(split="trainval"),
        tiny(split="trainval", hold_out="A"),
    ):
        camvid_training.save_curve(tmp_path, tmp_path / "x", run)
    assert labels == ["val", "val (part of the training)", "A"]


@pytest.mark.parametrize(("split", "count"), [("train", 3), ("trainval", 6)])
def test_held_out_drive_is_scored_and_not_trained_on(drives, split, count):
    train, validation, scored = open_splits(
        tiny(split=split, hold_out="A"), str(drives)
    )
    assert {name[0] for name in train.names} == {"B", "C"}
    assert {name[0] for name in scored.names} == {"A"} and len(scored) == count
    assert validation is scored
    assert len(train) == 5


def test_without_it_val_is_watched_and_test_scored(drives):
    train, validation, scored = open_splits(tiny(split="trainval"), str(drives))
    assert len(train) == 11
    assert {name[0] for name in validation.names} == {"A"}
    assert {name[0] for name in scored.names} == {"D"}


def test_unknown_drive_is_named(drives):
    with pytest.raises(UserError, match="--hold_out=D: the drives are A, B, C"):
        open_splits(tiny(hold_out="D"), str(drives))


@pytest.mark.slow
def test_rows_have_every_convention(scored):
    folder, rows = scored
    assert json.loads((folder / "camvid.json").read_text()) == rows
    found = [(row["statistics"], row["scales"], row["flip"]) for row in rows]
    scales = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert found == [
        ("running", 1, False),
        ("batch", 1, False),
        ("running", scales, True),
    ]
    for row in rows:
        assert (row["config"], row["run"]) == ("camvid.py:cpu", "recipe")
        assert (row["train_split"], row["held_out"], row["seed"]) == ("train", "B", 0)
        assert (row["device"], row["dtype"]) == ("cpu", "float32")
        assert row["checkpoint"] == "last" and row["complete"]
        assert row["steps"] == row["total_steps"] == 6 and row["minutes"] > 0
        matrix = np.array(row["confusion_matrix"])
        union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
        iou = np.diag(matrix) / np.maximum(union, 1)
        np.testing.assert_allclose(row["per_class_iou"], iou, atol=1e-6)
        np.testing.assert_allclose(row["mean_iou"], iou[union > 0].mean(), atol=1e-6)
    # The held-out drive was scored after the last step of the training too.
    lines = (folder / "work" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])["mean_iou"]
    assert rows[0]["mean_iou"] == pytest.approx(last, abs=1e-6)


@pytest.mark.slow
def test_files_of_a_run(scored):
    folder, _ = scored
    names = {path.name for path in (folder / "files").iterdir()}
    assert names == {
        *("work_metrics.jsonl", "work_curve.png", "work_confusion.png"),
        *("work_examples.png", "work_weights.npz"),
    }
    run = load_workdir(folder / "work", "latest")
    with np.load(folder / "files" / "work_weights.npz") as arrays:
        stored = arrays["params/head.classifier.conv.kernel"]
        kernel = run.params["head"]["classifier"]["conv"]["kernel"]
        np.testing.assert_array_equal(stored, np.asarray(kernel, np.float16))
        assert all(
            arrays[name].dtype == np.float32
            for name in arrays
            if name.startswith("batch_stats/")
        )


@pytest.mark.slow
def test_weights_too_large_are_left_out(scored, monkeypatch, tmp_path, capsys):
    run = load_workdir(scored[0] / "work", "latest")
    monkeypatch.setattr(camvid_training, "_MAX_WEIGHTS", 1000)
    camvid_training.save_weights(run, tmp_path / "x")
    assert not list(tmp_path.iterdir()) and "no weights: " in capsys.readouterr().out


@pytest.mark.slow
def test_rerun_scores_again_and_replaces_the_rows(drives, scored, tmp_path):
    _, rows = scored
    folder = shutil.copytree(scored[0], tmp_path / "run")
    output = folder / "camvid.json"
    other = {**rows[0], "seed": 1}
    camvid_scores.put_row(output, other)
    paths = folder / "work", folder / "files", output
    again = run_once(tiny(hold_out="B"), str(drives), *paths, Limits())
    assert again == rows
    assert json.loads(output.read_text()) == [other, *rows]


@pytest.mark.slow
def test_workdir_of_another_run_is_refused(scored):
    check_identity(tiny(hold_out="B"), scored[0] / "work")
    with pytest.raises(UserError, match="a run with hold_out='B', not ''"):
        check_identity(tiny(), scored[0] / "work")
    with pytest.raises(UserError, match="a run with overrides="):
        run = tiny(hold_out="B", learning_rate=0.3)
        check_identity(run, scored[0] / "work")


@pytest.mark.slow
def test_statistics_are_those_of_the_test_batch(drives, scored, monkeypatch):
    run = load_workdir(scored[0] / "work", "latest")
    dataset = open_dataset("camvid", "test", str(drives))
    config = tiny().config()
    monkeypatch.setattr(camvid_scores, "_TEST_BATCH", 2)
    found = list(camvid_scores.predict_with_batch_statistics(config, run, dataset))
    assert [prediction.index for prediction in found] == [0, 1, 2]
    # The last batch is images 1 and 2. Dropout is off, everything else as in training.
    for batch, indices in (([0, 1], [0, 1]), ([1, 2], [2])):
        model = run.model
        model.train()
        for _, layer in nnx.iter_modules(model):
            if isinstance(layer, nnx.Dropout):
                layer.deterministic = True
        images = np.stack([dataset[index].image for index in batch])
        inputs = normalize(jnp.asarray(images), run.info.mean, run.info.std)
        labels = np.asarray(model(inputs).logits.argmax(-1))
        for index in indices:
            expected = labels[batch.index(index)]
            assert (found[index].labels == expected).mean() > 0.999
    running = camvid_scores.score(
        config, run, dataset, camvid_scores.CONVENTIONS["running"]
    )
    assert any((found[i].labels != running.labels[i]).any() for i in range(3))


@pytest.mark.parametrize(
    ("size", "allowed"), [(0, False), (64, True), (66, False)], ids=str
)
def test_batches_with_padding_are_refused_before_the_training(
    drives, tmp_path, monkeypatch, size, allowed
):
    monkeypatch.setattr(camvid_training, "train", lambda *_: 1 / 0)
    paths = tmp_path / "work", tmp_path / "files", tmp_path / "camvid.json"
    settings = {"model.pad_to_stride": True, "evaluation.base_size": size}
    run = tiny(**settings)
    if allowed:  # 64x48, multiples of the stride of 16
        with pytest.raises(ZeroDivisionError):
            run_once(run, str(drives), *paths, Limits())
        return
    # 48x36 as in `data.base_size`, and 66x50.
    shape = (
        "66x50 would be padded to 80x64" if size else "48x36 would be padded to 48x48"
    )
    with pytest.raises(UserError, match=f"^--conventions=batch: images of {shape}, .*"):
        run_once(run, str(drives), *paths, Limits())
    assert not any(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):
        run_once(run, str(drives), *paths, Limits(), ("running", "scales"))


@pytest.mark.slow
def test_batch_norms_alone_are_in_training_mode(scored):
    model = load_workdir(scored[0] / "work", "latest").model
    definition = camvid_scores.batch_statistics_def(model)
    run = load_workdir(scored[0] / "work", "latest")
    changed = definition.merge(run.params, run.batch_stats)
    norms = [m for _, m in nnx.iter_modules(changed) if isinstance(m, BatchNorm)]
    drops = [m for _, m in nnx.iter_modules(changed) if isinstance(m, nnx.Dropout)]
    assert norms and not any(norm.use_running_average for norm in norms)
    assert drops and all(drop.deterministic for drop in drops)


def test_steps_that_fit():
    config = tiny().config(total_steps=1000)
    options = dict(flag="--minutes=9")
    # 60 of the 100 seconds of the start are taken again, 3 % of the time of steps, and
    # 30 for the evaluations during the training.
    speed = Speed(start=100, step=0.5)
    assert speed.run(100) == pytest.approx(60 + 51.5)
    assert plan_steps(config, speed, 606, shorten=False, **options) == 1000
    assert plan_steps(config, speed, 348, shorten=True, **options) == 500
    with pytest.raises(UserError, match=r"1000 steps of 500.0 ms take 9.6 minutes"):
        plan_steps(config, speed, 348, shorten=False, **options)
    with pytest.raises(UserError, match="for 0 steps; give more time"):
        plan_steps(config, speed, 90, shorten=True, **options)
    # A schedule that ends in its warm-up is none.
    config.optimizer.warmup_steps = 499
    assert plan_steps(config, speed, 348, shorten=True, **options) == 500
    config.optimizer.warmup_steps = 500
    message = (
        "^--minutes=9: too short: .*for 500 steps, and the first 500 are warm-up; give "
        "more time$"
    )
    with pytest.raises(UserError, match=message):
        plan_steps(config, speed, 348, shorten=True, **options)


@pytest.mark.slow
def test_speed_is_measured_and_the_schedule_shortened(drives, tmp_path, monkeypatch):
    run, sets = tiny(total_steps=100_000), open_splits(tiny(), str(drives))[:2]
    speeds = []

    def measure(*arguments):
        speeds.append(time_budget.measure_speed(*arguments, seconds=0))
        return speeds[-1]

    monkeypatch.setattr(camvid_training, "measure_speed", measure)
    limits = Limits(10, 2, fit_steps=True, started=time.perf_counter())
    config = camvid_training.planned_config(run, tmp_path / "new", sets, limits)
    (speed,) = speeds
    assert 0 < speed.step < speed.start
    expected = (7.5 * 60 - 1.6 * speed.start) / (1.03 * speed.step)
    assert config.total_steps == pytest.approx(expected, rel=0.1)
    assert config.eval_every == -(-config.total_steps // 4)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_run_that_is_too_slow_is_scored_and_resumes(drives, tmp_path, monkeypatch):
    paths = tmp_path / "work", tmp_path / "files", tmp_path / "camvid.json"
    run = tiny(total_steps=12)
    monkeypatch.setattr(camvid_training, "measure_speed", lambda *_: Speed(0, 1e-6))
    # Too late from the start: the loop stops after the first steps.
    late = Limits(1e-9, 0, started=time.perf_counter() + 1)
    monkeypatch.setattr(camvid_training, "plan_steps", lambda *_, **__: 12)
    rows = run_once(run, str(drives), *paths, late)
    assert len(rows) == 3 and rows[0]["steps"] < 12
    assert not rows[0]["complete"] and rows[0]["total_steps"] == 12
    rows = run_once(run, str(drives), *paths, Limits())
    assert rows[0]["complete"] and rows[0]["steps"] == 12
    assert json.loads(paths[2].read_text()) == rows


def test_file_of_something_else_is_refused(drives, tmp_path):
    path = tmp_path / "camvid.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="camvid.json: not a list of rows"):
        run_once(tiny(), str(drives), tmp_path / "w", tmp_path / "f", path, Limits())
    assert path.read_text() == "{}" and not (tmp_path / "w").exists()


def test_packed_images_are_smaller_and_labels_the_same(drives, tmp_path):
    assert packed_quality(str(drives)) is None
    with pytest.raises(UserError, match="--jpeg_quality=96: must be 1 to 95"):
        pack(tmp_path / "new", str(drives), 96)
    size = pack(tmp_path / "new", str(drives), 60)
    assert packed_quality(str(tmp_path / "new")) == 60
    for split in ("train", "val", "test"):
        before = open_dataset("camvid", split, str(drives))
        after = open_dataset("camvid", split, str(tmp_path / "new"))
        assert before.names == after.names
        for one, other in zip(before, after):
            np.testing.assert_array_equal(one.labels, other.labels)
            difference = np.abs(one.image.astype(int) - other.image)
            assert 0 < difference.mean() < 20
        with Image.open(after.pairs[0][0]) as image:
            assert image.format == "JPEG"
    files = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert size == sum(path.stat().st_size for path in files)
    with pytest.raises(UserError, match="not empty"):
        pack(tmp_path / "new", str(drives), 60)


def test_interrupted_pack_leaves_nothing(drives, tmp_path, monkeypatch):
    def interrupted(split, *_):
        if split == "test":
            raise KeyboardInterrupt
        return open_dataset("camvid", split, str(drives))

    monkeypatch.setattr(
        camvid_images, "open_dataset", lambda name, *rest: interrupted(*rest)
    )
    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "new", str(drives), 60)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command_needs_no_tensorflow(drives, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('not installed')\n")
    env = {**environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def bench(*arguments):
        command = [sys.executable, "-m", "benchmarks.camvid", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
        )

    packed, output = tmp_path / "packed", tmp_path / "out" / "camvid.json"
    result = bench(f"--pack={packed}", f"--data_dir={drives}", "--jpeg_quality=80")
    assert result.returncode == 0, result.stderr
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    where = [f"--workdir={tmp_path / 'work'}", f"--output={output}"]
    arguments = [*settings, *where, "--recipe=cpu", f"--data_dir={packed}"]
    result = bench(*arguments, "--run=fcn", "--minutes=1", "--fit_steps")
    assert result.returncode == 2
    assert errors(result) == [
        "error: --minutes=1.0: must be above --evaluation_minutes=2.0"
    ]
    result = bench(*arguments, "--conventions=batch,all")
    assert result.returncode == 2
    assert errors(result) == [
        "error: --conventions=all: allowed are running, batch, scales"
    ]
    short = "--conventions=running,batch"
    result = bench(*arguments, "--run=fcn", "--minutes=9", short)
    assert result.returncode == 0, result.stderr
    rows = json.loads(output.read_text())
    assert [row["jpeg_quality"] for row in rows] == [80] * 2
    assert [row["statistics"] for row in rows] == ["running", "batch"]
    assert {row["run"] for row in rows} == {"fcn"}
    assert rows[0]["images"] == 3 and rows[0]["steps"] == 6
    assert (tmp_path / "work" / "work_confusion.png").exists()
    together = tmp_path / "together.json"
    camvid_scores.put_row(together, {**rows[0], "mean_iou": -1.0})
    result = bench(f"--add={output}", f"--output={together}")
    assert result.returncode == 0, result.stderr
    assert json.loads(together.read_text()) == rows
    result = bench(f"--add={tmp_path / 'missing.json'}", f"--output={together}")
    assert result.returncode == 2 and "--add=" in errors(result)[0]
