"""The commands as a user runs them: in sequence, killed, and misused."""

import json
import os
import re
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from encnet_jax import Segmenter
from encnet_jax.train import train
from tests.commands import (
    ROOT,
    SMALL,
    command,
    environment,
    errors,
    run,
    trained_arrays,
)
from tests.interrupted import small_run_config


def train_arguments(camvid, workdir, *more):
    return [
        "train.py",
        "--config=camvid:cpu",
        f"--config.data.data_dir={camvid}",
        f"--workdir={workdir}",
        *SMALL,
        *more,
    ]


@pytest.fixture(scope="module")
def workdir(camvid, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = run(*train_arguments(camvid, folder))
    assert result.returncode == 0, result.stderr
    return folder


def read_metrics(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_train_writes_metrics_checkpoints_and_images(workdir):
    lines = read_metrics(workdir)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    wanted = {"loss", "pixel_loss", "se_loss", "aux_loss", "learning_rate"}
    assert wanted | {"images_per_second"} <= lines[0].keys()
    # Poly from 0.002 over six steps.
    assert lines[3]["learning_rate"] == pytest.approx(0.002 * (1 - 3 / 6) ** 0.9)
    assert lines[-1].keys() == {"step", "pixel_accuracy", "mean_iou"}
    assert sorted(os.listdir(workdir / "checkpoints")) == ["4", "6"]
    assert list((workdir / "tensorboard").glob("events.*"))
    with Image.open(workdir / "predictions.png") as panel:
        assert panel.width > 3 * 300  # image, label, prediction
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["width"] == 4


def test_train_again_takes_no_step_and_reports(workdir, camvid):
    before, names = trained_arrays(workdir), ("config.json", "metrics.jsonl")
    kept = {name: (workdir / name).read_bytes() for name in names}
    others = "--config.learning_rate=0.5", "--config.model.weights=/no/such.npz"
    result = run(*train_arguments(camvid, workdir), *others)
    assert result.returncode == 0 and "all 6 steps are done" in result.stderr
    assert "model.weights=/no/such.npz is not read: the run in" in result.stderr
    assert {name: (workdir / name).read_bytes() for name in kept} == kept
    score = r"mean IoU 0\.\d{4} over (\d+) of 11 classes"
    logged = re.search(rf"step 6: {score}, pixel accuracy 0\.", result.stderr)
    printed = re.search(f"^{score}; everything is in", result.stdout, re.M)
    assert logged and printed and 0 < int(logged[1]) == int(printed[1]) <= 11
    for old, new in zip(before, trained_arrays(workdir)):
        np.testing.assert_array_equal(old, new)


def test_evaluate_scores_the_split_and_agrees_with_prediction(workdir, camvid):
    result = run(
        "evaluate.py",
        "--config=configs/camvid.py:cpu",
        f"--config.data.data_dir={camvid}",
        f"--workdir={workdir}",
        "--split=test",
    )
    assert result.returncode == 0, result.stderr
    scores = json.loads((workdir / "evaluation" / "test.json").read_text())
    assert scores["images"] == 3 and len(scores["per_class_iou"]) == 11
    assert scores["split"] == scores["evaluation"]["split"] == "test"
    assert "Bicyclist" in result.stdout
    scored = sum(iou is not None for iou in scores["per_class_iou"])
    assert scores["classes_scored"] == scored > 0
    assert f"over {scored} of 11 classes\n" in result.stdout
    # The same by hand: predict each image and count.
    segmenter = Segmenter.from_workdir(workdir)
    right = labeled = 0
    for path in sorted((camvid / "test").iterdir()):
        truth = np.asarray(Image.open(camvid / "testannot" / path.name))
        labels = segmenter(path).labels
        right += int(((labels == truth) & (truth < 11)).sum())
        labeled += int((truth < 11).sum())
    assert scores["pixel_accuracy"] == pytest.approx(right / labeled)


def test_evaluate_repeats_the_score_of_the_training(workdir, camvid):
    """The flags of the training, such as its sizes, are not repeated."""
    result = run(
        "evaluate.py",
        "--config=configs/camvid.py:cpu",
        f"--config.data.data_dir={camvid}",
        f"--workdir={workdir}",
    )
    assert result.returncode == 0, result.stderr
    scores = json.loads((workdir / "evaluation" / "val.json").read_text())
    (trained,) = [line for line in read_metrics(workdir) if "mean_iou" in line]
    assert scores["mean_iou"] == pytest.approx(trained["mean_iou"], abs=1e-12)
    assert scores["pixel_accuracy"] == trained["pixel_accuracy"]
    assert scores["differs_from_training"] == {}
    assert "data.base_size=48, not 512" in result.stderr


@pytest.mark.slow
def test_model_folder_is_predicted_and_scored_like_its_run(workdir, camvid, tmp_path):
    folder = tmp_path / "model"
    result = run(
        "export.py", f"--workdir={workdir}", f"--output={folder}", "--format=pretrained"
    )
    assert result.returncode == 0, result.stderr
    assert f"11 classes, step 6 of whole -> {folder}\n" in result.stdout
    files = ["README.md", "config.json", "model.safetensors"]
    assert sorted(os.listdir(folder)) == files
    result = run(
        "evaluate.py",
        "--config=configs/camvid.py:cpu",
        f"--config.data.data_dir={camvid}",
        f"--workdir={folder}",
    )
    assert result.returncode == 0, result.stderr
    scores = json.loads((folder / "evaluation" / "val.json").read_text())
    (trained,) = [line for line in read_metrics(workdir) if "mean_iou" in line]
    assert scores["mean_iou"] == pytest.approx(trained["mean_iou"], abs=1e-12)
    assert scores["step"] == 6 and scores["differs_from_training"] == {}
    image, output = next((camvid / "test").iterdir()), tmp_path / "out"
    result = run("predict.py", f"--workdir={folder}", f"--output={output}", image)
    assert result.returncode == 0, result.stderr
    labels = np.asarray(Image.open(output / image.name))
    expected = Segmenter.from_workdir(workdir)(image).labels
    np.testing.assert_array_equal(labels, expected)
    result = run(*train_arguments(camvid, folder))
    assert result.returncode == 2 and len(errors(result)) == 1
    assert "model folder" in errors(result)[0]


def test_evaluate_refuses_scales_it_cannot_use(workdir, camvid):
    result = run(
        "evaluate.py",
        "--config=configs/camvid.py:cpu",
        f"--config.data.data_dir={camvid}",
        f"--workdir={workdir}",
        "--scales=0.5,big",
    )
    assert result.returncode == 2
    assert errors(result) == ["error: --scales=0.5,big: must be numbers"]


def test_predict_writes_results_and_names_what_it_cannot_read(workdir, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(1)
    photo = Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8))
    photo.save(images / "photo.jpg")
    photo.convert("L").save(images / "gray.png")
    (images / "broken.jpg").write_bytes((images / "photo.jpg").read_bytes()[:300])
    output = tmp_path / "out"
    result = run("predict.py", f"--workdir={workdir}", f"--output={output}", images)
    assert result.returncode == 2
    assert len(errors(result)) == 1 and "broken.jpg" in errors(result)[0]
    names = {"photo.png", "photo-overlay.png", "gray.png", "gray-overlay.png"}
    assert {p.name for p in output.iterdir()} == names
    with Image.open(output / "photo.png") as labels:
        assert labels.mode == "P" and labels.size == (50, 40)
        assert np.asarray(labels).max() < 11


def test_killed_run_resumes_to_the_same_parameters(workdir, camvid, tmp_path):
    moment = 5  # the checkpoint of step 2 is complete: that of step 4 waited for it
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command(*train_arguments(camvid, folder)),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= moment:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "ended before"
    assert len(metrics.read_text().splitlines()) >= moment
    result = run(*train_arguments(camvid, folder))
    assert result.returncode == 0, result.stderr
    assert re.search(r"resuming at step [24] of", result.stderr)
    for whole, resumed in zip(trained_arrays(workdir), trained_arrays(folder)):
        np.testing.assert_array_equal(whole, resumed)
    steps = [line["step"] for line in read_metrics(folder)]
    assert steps == [1, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.model.widht=4", "is it --config.model.width?"),
        ("--config.batch_size=0", "batch_size=0: must be at least 1"),
        ("--config.total_steps=many", "total_steps"),
        ("--config.data.data_dir=/no/such/folder", "/no/such/folder/train"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(camvid, tmp_path, argument, message):
    folder = tmp_path / "run"
    result = run(*train_arguments(camvid, folder, argument))
    assert result.returncode == 2
    assert len(errors(result)) == 1 and message in errors(result)[0]
    assert "Traceback" not in result.stderr
    assert not folder.exists()


def test_other_model_in_the_workdir_is_refused(workdir, camvid):
    result = run(*train_arguments(camvid, workdir, "--config.model.width=8"))
    assert result.returncode == 2
    assert "model.width=8" in errors(result)[0] and "4" in errors(result)[0]


def test_loss_that_is_not_finite_stops_and_names_the_step(camvid, tmp_path):
    config = small_run_config(str(camvid))
    config.learning_rate = 1e30
    with pytest.raises(FloatingPointError, match="at step .*learning_rate"):
        train(config, tmp_path / "run")
    program = (
        "from encnet_jax import cli\n"
        "def main(_): raise FloatingPointError('at step 3')\n"
        "cli.run(main)\n"
    )
    result = run("-c", program)
    assert result.returncode == 1 and errors(result) == ["error: at step 3"]
    assert "Traceback" not in result.stderr


def test_command_runs_in_the_process_it_was_started_in():
    program = (
        "import os, sys\n"
        "print(os.getpid(), flush=True)\n"
        "from encnet_jax import cli\n"
        "cli.run(lambda arguments: print(os.getpid(), *arguments))\n"
    )
    result = subprocess.run(
        [*command("-c", program), "one argument"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert second == f"{first} one argument"
