"""evaluate.py on a small run: killed, resumed, misused, writing submissions."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encnet_jax import Segmenter, optimizer
from encnet_jax import config as configuration
from encnet_jax.compare.evaluations import load_evaluations
from encnet_jax.config import load_config, save_config
from encnet_jax.data.bands import declare_bands, with_bands
from encnet_jax.data.dataset_info import CAMVID, save_info
from encnet_jax.data.registry import dataset_info
from encnet_jax.errors import UserError
from encnet_jax.evaluate.accumulator import MetricAccumulator
from encnet_jax.evaluate.figures import select_examples
from encnet_jax.evaluate.progress_log import EvalProgressLog
from encnet_jax.evaluate.run import as_declared, compare_value_ranges, evaluate_workdir
from encnet_jax.evaluate.settings import evaluation_config
from encnet_jax.evaluate.submission import UnlabeledDataset
from encnet_jax.export.run import export_workdir
from encnet_jax.inference.tta import MmsegProtocol
from encnet_jax.models import create_model
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.model_config import model_settings
from encnet_jax.run.state import create_train_state, split_model
from tests.commands import errors, run, start_two
from tests.random_module import random_module

SIZES = [(36, 48), (30, 40), (36, 48), (41, 37), (36, 50), (36, 48), (33, 48)]
WINDOWS = ["--scales=0.5,1", "--flip", "--config.evaluation.object_sizes"]


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """Labeled images of several sizes in the layout of CamVid."""
    root, rng = tmp_path_factory.mktemp("camvid"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (root / split).mkdir()
        (root / f"{split}annot").mkdir()
        for index, (h, w) in enumerate(SIZES if split == "test" else SIZES[:2]):
            labels = rng.integers(0, 12, (9, 9)).repeat(6, 0).repeat(6, 1)[:h, :w]
            image = np.stack([labels * 20, 255 - labels * 20, labels * 7], -1)
            name = f"{index:04}.png"
            Image.fromarray(image.astype(np.uint8)).save(root / split / name)
            Image.fromarray(labels.astype(np.uint8)).save(root / f"{split}annot" / name)
    return root


def write_run(workdir, seed=0):
    """Writes a workdir as training does: a small random EncNet at step 7."""
    config = configuration.default()
    config.data.name = "camvid"
    config.data.base_size, config.data.crop_size = 48, 32
    config.total_steps = 7
    config.mesh.data = 1
    config.evaluation.split = "test"
    config.evaluation.batch_size = 2
    config.model.update(
        backbone="tiny", stem="plain", width=4, head_channels=8, num_codes=4
    )
    settings = model_settings(config)
    name = settings.pop("name")
    model = random_module(create_model, name, num_classes=11, seed=seed, **settings)
    _, params, batch_stats = split_model(model)
    state = create_train_state(
        params, batch_stats, optimizer.create_optimizer(lambda step: 0.0)
    )
    workdir.mkdir(parents=True)
    save_config(config, workdir / "config.json")
    save_info(CAMVID, workdir / "classes.json")
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, 7)
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def config(trained, camvid):
    config = load_config(trained / "config.json")
    config.unlock()
    config.data.data_dir = str(camvid)
    config.evaluation.mode = "slide"
    return config


def arguments(trained, camvid, *more):
    return [
        "evaluate.py",
        "--config=configs/camvid.py:cpu",
        f"--config.data.data_dir={camvid}",
        f"--workdir={trained}",
        "--split=test",
        "--config.data.base_size=48",
        "--config.data.crop_size=32",
        "--config.evaluation.base_size=0",
        "--config.evaluation.batch_size=2",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(trained, camvid):
    """The scores of an uninterrupted evaluation."""
    result = run(*arguments(trained, camvid, *WINDOWS))
    assert result.returncode == 0, result.stderr
    return result, trained / "evaluation" / "test-ms.json"


def test_scores_are_printed_written_and_plotted(whole):
    result, path = whole
    scores = json.loads(path.read_text())
    assert scores["images"] == 7 and scores["step"] == 7
    assert scores["dtype"] == "float32"
    assert 0 <= scores["mean_iou"] <= 1 and len(scores["per_class_iou"]) == 11
    expected = (scores["pixel_accuracy"] + scores["mean_iou"]) / 2
    assert scores["ade_score"] == pytest.approx(expected)
    assert 0 < scores["presence_average_precision"] <= 1
    assert scores["by_object_size"].keys() == {"small", "medium", "large"}
    assert scores["evaluation"]["scales"] == [0.5, 1.0]
    for word in ("Bicyclist", "ADE score", "small objects", "presence"):
        assert word in result.stdout
    for kind in ("classes", "confusion", "examples"):
        with Image.open(path.with_name(f"test-ms-{kind}.png")) as figure:
            assert figure.width > 300
    assert not list(path.parent.glob("*.partial*"))


# Runs a script that ends itself once three images are logged.
KILLED = """
import os, runpy, signal, sys
from encnet_jax.evaluate.progress_log import EvalProgressLog

add = EvalProgressLog.add

def add_and_end(log, metrics):
    add(log, metrics)
    if len(log.lines()) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

EvalProgressLog.add = add_and_end
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_evaluation_resumes_and_scores_the_same(whole, trained, camvid):
    _, path = whole
    expected = path.read_text()
    path.unlink()
    killed = run("-c", KILLED, *arguments(trained, camvid, *WINDOWS))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    progress_log = path.with_name("test-ms.partial-0.jsonl")
    done = progress_log.read_text().count("\n") - 1
    assert done == 3
    with progress_log.open("a") as file:
        file.write('{"index": 6, "matrix": [[')  # cut off by the kill
    result = run(*arguments(trained, camvid, *WINDOWS))
    assert result.returncode == 0, result.stderr
    assert f"resuming: {done} of 7 images are done" in result.stderr
    assert path.read_text() == expected
    assert not progress_log.exists()


def test_two_hosts_share_an_evaluation_and_one_prints_and_writes_it(
    whole, trained, camvid
):
    alone, path = whole
    expected = json.loads(path.read_text())
    path.unlink()
    for figure in path.parent.glob("test-ms-*.png"):
        figure.unlink()
    processes = start_two(
        *arguments(trained, camvid, *WINDOWS), devices=2, stdout=subprocess.PIPE
    )
    texts = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        texts.append(stdout)
    assert texts[0].splitlines()[-2:] == alone.stdout.splitlines()[-2:]
    assert "mean IoU" in texts[0] and "mean IoU" not in texts[1]
    found = json.loads(path.read_text())
    assert found["images"] == 7
    labeled = np.sum(expected["confusion_matrix"])
    moved = np.abs(np.subtract(found["confusion_matrix"], expected["confusion_matrix"]))
    # Other batches of windows round differently: few pixels change their class.
    assert moved.sum() <= 2e-3 * labeled == 2e-3 * np.sum(found["confusion_matrix"])
    assert found["presence_average_precision"] == pytest.approx(
        expected["presence_average_precision"], abs=1e-3
    )
    names = sorted(p.name for p in path.parent.glob("test-ms*"))
    kinds = ("classes", "confusion", "examples")
    figures = [f"test-ms-{kind}.png" for kind in kinds]
    others = [path.name, "test-ms.html", "test-ms-images.jsonl"]
    assert names == sorted([*figures, *others])


def test_folder_of_an_older_run_that_is_not_here_is_named(trained, config, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(trained / "classes.json", tmp_path)
    config.data.data_dir = "camvid-of-another-folder"
    save_config(config, tmp_path / "config.json")
    config = evaluation_config(config, str(tmp_path), ())
    with pytest.raises(UserError, match="data.data_dir='camvid-of-another.*has it: no"):
        evaluate_workdir(config, str(tmp_path), "test")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a read-only folder")
def test_run_that_cannot_be_written_to_says_what_can_be_evaluated(config):
    with pytest.raises(UserError) as caught:
        evaluate_workdir(config, Path("/proc/run"), "test")
    message = str(caught.value)
    assert message.startswith("--workdir=/proc/run/evaluation: cannot be written to: ")
    assert message.endswith(
        "; scores are written to the folder of the run; copy it, or save a model "
        "folder and evaluate that: encnet export --format=pretrained "
        "--workdir=/proc/run --output=DIR"
    )


def test_progress_log_of_other_weights_is_ignored(
    trained, config, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "encnet_jax")
    monkeypatch.setattr(EvalProgressLog, "remove", lambda self: None)
    evaluate_workdir(config, trained, "test")
    name = Path("evaluation") / "test.partial-0.jsonl"
    left = (trained / name).read_text()
    # Not "auto": a GPU may have begun what a CPU resumes.
    assert load_config(trained / "config.json").model.dtype == "auto"
    assert json.loads(left.splitlines()[0])["dtype"] == "float32"
    evaluate_workdir(config, trained, "test")
    assert caplog.messages.count("resuming: 7 of 7 images are done") == 1
    other = write_run(tmp_path / "other", seed=1)
    (other / "evaluation").mkdir()
    (other / name).write_text(left)
    evaluate_workdir(config, other, "test")
    assert caplog.messages.count("resuming: 7 of 7 images are done") == 1
    first, second = (run / "evaluation" / "test.json" for run in (trained, other))
    assert first.read_text() != second.read_text()
    (trained / name).unlink()


@pytest.mark.parametrize("scales", [[], [1.0]])
def test_model_folder_of_a_run_in_windows_is_scored_and_named_as_the_run(
    trained, config, camvid, tmp_path, scales
):
    """Folders of earlier versions have a scale of 1 where their run has none."""
    workdir, folder = tmp_path / "run", tmp_path / "model"
    shutil.copytree(trained / "checkpoints", workdir / "checkpoints")
    shutil.copy(trained / "classes.json", workdir)
    config.evaluation.stride = 20
    save_config(config, workdir / "config.json")
    evaluate_workdir(config, workdir, "val")
    export_workdir(workdir, folder, "pretrained")
    stored = json.loads((folder / "config.json").read_text())
    assert stored["prediction"]["scales"] == []
    stored["prediction"]["scales"] = scales
    (folder / "config.json").write_text(json.dumps(stored))
    given = configuration.default()
    given.data.update(name="camvid", data_dir=str(camvid))
    given.evaluation.batch_size = 2
    evaluate_workdir(evaluation_config(given, folder, ()), folder, "val")
    first, second = load_evaluations([workdir, folder], "val")
    assert first.scores["confusion_matrix"] == second.scores["confusion_matrix"]
    assert second.scores["differs_from_training"] == {}


@pytest.mark.parametrize(("mode", "crop_size"), [("whole", 0), ("slide", 24)])
def test_modes_of_mmsegmentation_are_scored(
    trained, config, monkeypatch, mode, crop_size
):
    views, sizes = MmsegProtocol.views, set()

    def spied(protocol, image):
        sizes.add(protocol.crop_size)
        return views(protocol, image)

    monkeypatch.setattr(MmsegProtocol, "views", spied)
    config.evaluation.update(protocol="mmseg", crop_size=24, mode=mode)
    assert "2 images, step 7" in evaluate_workdir(config, trained, "val")
    assert sizes == {crop_size}


def test_submission_has_published_ids_at_the_size_of_the_image(
    trained, config, camvid, tmp_path
):
    folder = tmp_path / "images" / "city"
    folder.mkdir(parents=True)
    Image.open(camvid / "test" / "0003.png").save(folder / "a_000.png")
    Image.open(camvid / "test" / "0000.png").save(folder / "b_000.jpg")
    text = evaluate_workdir(
        config, trained, "test", submission=True, images=tmp_path / "images"
    )
    assert "2 images" in text and "mean IoU" not in text
    output = trained / "submission" / "images"
    assert sorted(p.name for p in output.iterdir()) == ["a_000.png", "b_000.png"]
    with Image.open(output / "a_000.png") as image:
        assert image.mode == "L" and image.size == (37, 41)
        assert np.asarray(image).max() < 11
    # For a split: the same files, and scores.
    text = evaluate_workdir(config, trained, "test", submission=True)
    assert "mean IoU" in text
    written = np.asarray(Image.open(trained / "submission" / "test" / "0003.png"))
    np.testing.assert_array_equal(written, np.asarray(Image.open(output / "a_000.png")))


@pytest.mark.parametrize("place", ["images", "images/city", ".", "..", "link"])
def test_predictions_never_lie_among_their_images(
    trained, config, camvid, tmp_path, place
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("submission"))
    output = workdir / "submission" / "images"
    (output / "city").mkdir(parents=True)
    (workdir / "submission" / "link").symlink_to(output)
    image = output / "city" / "0000.png"
    shutil.copy(camvid / "test" / "0000.png", image)
    shutil.copy(image, output)
    before = {path: path.read_bytes() for path in output.rglob("*.png")}
    images = workdir / "submission" / place
    with pytest.raises(UserError, match=f"^--images={images}: predictions are written"):
        evaluate_workdir(config, workdir, "test", submission=True, images=images)
    assert {path: path.read_bytes() for path in output.rglob("*.png")} == before


def test_images_that_are_done_are_not_read_again(
    trained, config, camvid, tmp_path, monkeypatch
):
    run, images = tmp_path / "run", tmp_path / "images"
    images.mkdir()
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("submission"))
    for index in range(3):
        shutil.copy(camvid / "test" / f"{index:04}.png", images)
    monkeypatch.setattr(EvalProgressLog, "remove", lambda self: None)
    arguments = config, run, "test"
    evaluate_workdir(*arguments, submission=True, images=images)
    (run / "submission" / "images" / "0001.png").unlink()
    read, reads = UnlabeledDataset.__getitem__, []

    def noted(dataset, index):
        reads.append(index)
        return read(dataset, index)

    monkeypatch.setattr(UnlabeledDataset, "__getitem__", noted)
    evaluate_workdir(*arguments, submission=True, images=images)
    assert reads == [1]
    (images / "0000.png").rename(images / "other.png")
    with pytest.raises(UserError, match="images/0000.png: is of other images; move or"):
        evaluate_workdir(*arguments, submission=True, images=images)
    assert reads == [1]


def test_labels_corrected_after_a_kill_are_scored_anew(
    trained, config, camvid, monkeypatch
):
    """Two of seven images are done when the labels of one of them change."""
    add, done = EvalProgressLog.add, []

    def killed(log, metrics):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(metrics.index)
        add(log, metrics)

    with monkeypatch.context() as patched:
        patched.setattr(EvalProgressLog, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_workdir(config, trained, "test")
    path = camvid / "testannot" / f"{done[0]:04}.png"
    content, time_ns = path.read_bytes(), path.stat().st_mtime_ns
    try:
        corrected = np.zeros_like(np.asarray(Image.open(path)))
        Image.fromarray(corrected).save(path)
        os.utime(path, ns=(time_ns, time_ns + 10**9))
        evaluate_workdir(config, trained, "test")
        scores = json.loads((trained / "evaluation" / "test.json").read_text())
        evaluate_workdir(config, trained, "test")
        again = json.loads((trained / "evaluation" / "test.json").read_text())
    finally:
        path.write_bytes(content)
    assert scores == again
    # The corrected labels are all of class 0.
    assert sum(scores["confusion_matrix"][0]) >= corrected.size


def test_lines_are_written_through_before_host_0_reads_them(
    trained, config, monkeypatch
):
    order = []

    def record(kind, name):
        method = getattr(kind, name)

        def recorded(self):
            order.append(name)
            return method(self)

        monkeypatch.setattr(kind, name, recorded)

    record(EvalProgressLog, "sync")
    record(MetricAccumulator, "over_hosts")  # waits for all hosts
    record(EvalProgressLog, "lines")
    evaluate_workdir(config, trained, "test")
    assert order[-3:] == ["sync", "over_hosts", "lines"]


def slow(**settings):
    return pytest.param(settings, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "settings",
    [
        dict(mode="whole"),
        slow(mode="whole", base_size=40),
        slow(mode="whole", base_size=40, align_corners=True),
        slow(mode="slide"),
        slow(mode="slide", scales=(0.5, 1.0), flip=True),
        slow(protocol="mmseg", mode="whole", base_size=40),
        dict(protocol="mmseg", mode="slide", crop_size=24),
    ],
)
def test_segmenter_labels_as_the_evaluation_does(
    trained, config, camvid, tmp_path, settings
):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(trained / "classes.json", tmp_path)
    config.data.base_size, config.data.crop_size = 44, 32  # the images are larger
    config.evaluation.mode = "whole"
    config.evaluation.update(settings)
    save_config(config, tmp_path / "config.json")
    evaluate_workdir(config, tmp_path, "test", submission=True)
    (folder,) = (tmp_path / "submission").iterdir()
    segmenter = Segmenter.from_workdir(tmp_path)
    wrong = total = 0
    for path in sorted((camvid / "test").iterdir()):
        labels = segmenter(path).labels
        written = np.asarray(Image.open(folder / path.name))
        wrong, total = wrong + (labels != written).sum(), total + labels.size
    assert wrong <= 1e-3 * total  # other batches round differently
    result = segmenter(path)
    np.testing.assert_allclose(result.probabilities.sum(-1), 1, rtol=1e-5)
    differ = result.probabilities.argmax(-1) != result.labels
    assert differ.mean() <= 1e-3  # where two classes tie


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images=photos", "--submission"], "--split=test: not with --images"),
        (["--step=3"], "step 3: not in"),
    ],
)
def test_invalid_flags_are_reported_before_anything_starts(
    trained, camvid, more, message
):
    before = sorted(trained.rglob("*"))
    result = run(*arguments(trained, camvid, *more))
    assert result.returncode == 2 and len(errors(result)) == 1, result.stderr
    assert message in errors(result)[0]
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({}, {"split": "dev"}, "split 'dev' of camvid: allowed are train, val, test"),
        ({}, {"images": "/no/such"}, "--images=/no/such: needs --submission"),
        (
            {},
            {"images": "/no/such", "submission": True},
            "--images=/no/such: no such folder",
        ),
        (
            {"data.name": "folder"},
            {},
            "has other 12: class 0 is 'Sky' there and 'a'",
        ),
    ],
)
def test_what_does_not_fit_is_reported_before_anything_starts(
    trained, camvid, config, tmp_path, settings, more, message
):
    for kind, source in (("images", "test"), ("labels", "testannot")):
        shutil.copytree(camvid / source, tmp_path / kind / "test")
    (tmp_path / "classes.json").write_text(json.dumps([*"abcdefghijkl"]))
    if settings:
        config.data.data_dir = str(tmp_path)
    before = sorted(trained.rglob("*"))
    config.update_from_flattened_dict(settings)
    with pytest.raises(UserError, match=message):
        evaluate_workdir(config, trained, **{"split": "test", **more})
    assert sorted(trained.rglob("*")) == before


def test_best_median_and_worst_images_are_chosen_once():
    scores = np.array([0.1, 0.9, 0.5, 0.4, 0.8, 0.2, 0.6])
    words = select_examples(scores)
    assert words == {1: "best", 4: "best", 2: "median", 6: "median"} | {
        5: "worst",
        0: "worst",
    }
    assert select_examples(np.array([0.3])) == {0: "best"}
    # Images without labels are none of them.
    scores = np.array([np.nan, 0.5, np.nan, 0.9, 0.7])
    assert select_examples(scores) == {3: "best", 4: "best", 1: "worst"}
    assert select_examples(scores[:1]) == {}


def test_value_range_other_than_in_training_is_a_warning(caplog):
    scaled = dataclasses.replace(CAMVID, value_range=(0, 4095))
    compare_value_ranges(CAMVID, CAMVID)
    compare_value_ranges(scaled, scaled)
    assert not caplog.messages
    compare_value_ranges(scaled, CAMVID)
    message = "value_range: (0, 4095) in training, None in the data set"
    assert caplog.messages == [message]


def test_value_range_that_a_data_set_of_bands_declares_is_compared(tmp_path):
    classes = {"classes": ["oak", "reed"], "value_range": [0, 1000]}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    (tmp_path / "images" / "val").mkdir(parents=True)
    settings = configuration.default()
    settings.data.update(name="folder", data_dir=str(tmp_path), channels=2)
    save_config(settings, tmp_path / "config.json")
    declared = dataset_info("folder", str(tmp_path))
    trained = declare_bands(declared, 2, (0, 4095))
    found = as_declared(settings, tmp_path, trained, with_bands(declared, trained))
    assert found.value_range == ((0, 1000), (0, 1000))
    assert as_declared(settings, tmp_path, CAMVID, CAMVID) is CAMVID
    # With a setting of the run in its place there is nothing to compare.
    settings.data.value_range = (0, 4095)
    save_config(settings, tmp_path / "config.json")
    assert as_declared(settings, tmp_path, trained, trained) is trained
    # But of another data set, which declares something.
    settings.data.data_dir = str(tmp_path / "other")
    save_config(settings, tmp_path / "config.json")
    settings.data.data_dir = str(tmp_path)
    found = as_declared(settings, tmp_path, trained, with_bands(declared, trained))
    assert found.value_range == ((0, 1000), (0, 1000))


@pytest.mark.parametrize("key, value", [("channels", 4), ("value_range", (0, 255))])
def test_how_images_are_read_is_not_set_by_flags(tmp_path, key, value):
    stored = configuration.default()
    stored.data.update(channels=2, value_range=((0, 1), (0, 4095)))
    save_config(stored, tmp_path / "config.json")
    given = stored.copy_and_resolve_references()
    given.data.value_range = ([0, 1], [0, 4095])
    keys = ["data.channels", "data.value_range"]
    assert evaluation_config(given, tmp_path, keys).data.channels == 2
    given.data[key] = value
    evaluation_config(given, tmp_path, ())  # of the file that --config names
    with pytest.raises(
        UserError, match=f"^data.{key}=.*: images are read as in the tr"
    ):
        evaluation_config(given, tmp_path, keys)
