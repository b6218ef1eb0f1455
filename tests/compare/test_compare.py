"""encnet compare: what it refuses, and the page it writes."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from encnet_jax.commands import compare
from encnet_jax.commands.compare import check_output
from encnet_jax.compare.bootstrap import paired_differences
from encnet_jax.compare.evaluations import load_evaluations
from encnet_jax.compare.page import (
    class_rows,
    most_different,
    run_row,
    save_comparison,
    score_rows,
)
from encnet_jax.config import default, load_config, save_config
from encnet_jax.data.dataset_info import DatasetInfo, save_info, voc_colormap
from encnet_jax.errors import UserError
from encnet_jax.evaluate.accumulator import ImageMetrics
from encnet_jax.evaluate.image_log import image_log_path, write_image_log
from encnet_jax.evaluate.scores import save_scores
from encnet_jax.metrics import confusion_matrix_np, segmentation_metrics
from encnet_jax.report.thumbnails import labels_to_text
from tests.commands import run
from tests.parsed_flags import run_command
from tests.report.pages import check_page
from tests.small_workdir import TINY, write_workdir

NAMES = ("road", "<i>car</i>", "sky")
INFO = DatasetInfo("folder", NAMES, voc_colormap(3), {})


@pytest.fixture
def folder(tmp_path):
    """A data set of five images in a folder."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for part in ("images", "labels"):
        (root / part / "val").mkdir(parents=True)
    classes = [{"name": name, "label": k} for k, name in enumerate(NAMES)]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    for index in range(5):
        labels = rng.integers(0, 3, (12, 16), np.uint8)
        image = Image.fromarray(np.stack([labels * 99] * 3, -1))
        image.save(root / f"images/val/{index}.png")
        Image.fromarray(labels).save(root / f"labels/val/{index}.png")
    return root


def write_run(workdir, folder, wrong, info=INFO, split="val", stem="val", **changes):
    """Writes an evaluation in which a share of the pixels are wrong."""
    config = default()
    config.data.update(name=info.name, data_dir=str(folder))
    (workdir / "evaluation").mkdir(parents=True, exist_ok=True)
    save_config(config, workdir / "config.json")
    save_info(info, workdir / "classes.json")
    rng = np.random.default_rng(2)
    metrics = []
    for index in range(5):
        path = folder / f"labels/val/{index}.png"
        labels = np.asarray(Image.open(path))
        noise = rng.random(labels.shape) < wrong * (index + 1) / 5
        predictions = np.where(noise, 0, labels).astype(np.uint8)
        matrix = confusion_matrix_np(labels, predictions, 3)
        thumbnail = labels_to_text(predictions)
        name = f"{index}"
        item = ImageMetrics(index, matrix, name=name, thumbnail=thumbnail)
        metrics.append(item)
    matrix = sum(item.matrix for item in metrics)
    scores = segmentation_metrics(matrix) | {"confusion_matrix": matrix}
    path = workdir / "evaluation" / f"{stem}.json"
    more = dict(split=split, step=3, data=info.name, class_names=info.class_names)
    save_scores(scores, path, **(more | changes))
    write_image_log(image_log_path(path), (item.to_json() for item in metrics))
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    lines.append({"step": 2, "mean_iou": 0.5})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
    return workdir


@pytest.fixture
def runs(tmp_path, folder):
    shares = {"good": 0.1, "bad": 0.9, "fair": 0.4}
    return [write_run(tmp_path / name, folder, w) for name, w in shares.items()]


def test_page_of_three_runs(runs, tmp_path):
    evaluations = load_evaluations(runs, "val")
    path = tmp_path / "page.html"
    save_comparison(path, evaluations)
    html = path.read_text()
    page = check_page(html)
    assert "<i>car" not in html and "<i>car</i>" in page.text
    # Image, label, and three predictions of each of the five images.
    assert page.count("img") == 5 * 5
    assert "bad minus good" in page.text and "fair minus good" in page.text
    assert "Validation mean IoU" in page.text and "Training loss" in page.text
    mean = [100 * run.scores["mean_iou"] for run in evaluations]
    assert f"{mean[0]:.2f}" in page.text and f"{mean[1]:.2f}" in page.text
    assert f"mean IoU −{mean[0] - mean[1]:.2f} points" in page.text
    assert not list(tmp_path.glob(".encnet-*"))


def test_small_differences_are_not_rounded_away(folder, tmp_path):
    runs = [write_run(tmp_path / name, folder, 0.1) for name in "ab"]
    first, second = load_evaluations(runs, "val")
    save_comparison(tmp_path / "page.html", [first, second])
    page = check_page((tmp_path / "page.html").read_text())
    assert "mean IoU +0.00 points, 95 % interval +0.00 to +0.00" in page.text
    assert "−0.00" not in page.text
    # 1 of 3,000 pixels is wrong in the second run.
    correct = first.log.correct * 0 + 1000
    log = first.log._replace(correct=correct, labeled=correct, predicted=correct)
    fewer, predicted = correct.copy(), correct.copy()
    fewer[:, 2], predicted[:, 2], predicted[:, 1] = 999, 999, 1001
    other = log._replace(correct=fewer, predicted=predicted)
    runs = first._replace(log=log), second._replace(log=other)
    save_comparison(tmp_path / "page.html", runs)
    page = check_page((tmp_path / "page.html").read_text())
    assert "sky−0.10−0.10 to −0.10" in "".join(page.text.split("\n"))


def test_images_are_ordered_by_their_difference(runs):
    good, bad = load_evaluations(runs[:2], "val")
    difference = np.abs(good.image_scores - bad.image_scores)
    found = most_different([good, bad])
    assert found == np.argsort(-difference, kind="stable").tolist()
    assert most_different([good, good._replace(name="again")]) == []


def test_best_score_is_marked_unless_all_are_equal(runs):
    evaluations = load_evaluations(runs, "val")
    (row,) = [row for row in score_rows(evaluations) if row["name"] == "Mean IoU"]
    assert [best for _, best in row["values"]] == [True, False, False]
    (row, *_) = score_rows([evaluations[0]] * 2)
    assert [best for _, best in row["values"]] == [False, False]


@pytest.mark.parametrize("damage", ["gone", "fewer", "renamed", "relabeled"])
def test_without_the_data_set_predictions_remain(runs, folder, tmp_path, damage):
    evaluations = load_evaluations(runs, "val")
    if damage == "gone":
        folder.rename(tmp_path / "elsewhere")
    elif damage == "relabeled":  # as with another folder of images of these names
        Image.new("L", (16, 12), 1).save(folder / "labels/val/4.png")
    for part in ("images", "labels"):
        path = folder / part / "val/4.png"
        if damage == "renamed":
            path.rename(path.with_name("5.png"))
        elif damage == "fewer":
            path.unlink()
    path = tmp_path / "page.html"
    save_comparison(path, evaluations)
    page = check_page(path.read_text())
    assert page.count("img") == 5 * 3
    assert "Images and labels of the data set are missing here" in page.text


def test_data_set_that_moved_is_read_where_it_is(runs, folder, tmp_path, monkeypatch):
    folder.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "pages" / "page.html"
    given = dict(split="val", output=path)
    run_command(monkeypatch, compare, *runs, data_dir="~/elsewhere", **given)
    assert check_page(path.read_text()).count("img") == 5 * 5
    path.unlink()
    with pytest.raises(UserError, match=f"^--data_dir={folder}: no such folder"):
        run_command(monkeypatch, compare, *runs, data_dir=folder, **given)
    assert not path.exists()


def test_images_may_be_as_large_as_in_the_evaluation(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # those here have 192
    config = load_config(runs[0] / "config.json")
    config.data.max_image_pixels = 1000
    save_config(config, runs[0] / "config.json")
    save_comparison(tmp_path / "page.html", load_evaluations(runs, "val"))
    assert Image.MAX_IMAGE_PIXELS == 500  # Pillow refuses what exceeds the double


def test_runs_of_equal_names_are_told_apart(runs, folder, tmp_path):
    other = write_run(tmp_path / "x" / "good", folder, 0.5)
    names = [run.name for run in load_evaluations([runs[0], other], "val")]
    assert names == [str(runs[0]), str(other)]


def test_split_must_be_a_name(runs, monkeypatch):
    expected = "--split=../val: must be a name, such as test-ms"
    with pytest.raises(UserError, match=expected):
        run_command(monkeypatch, compare, *runs[:2], split="../val")


def test_evaluation_that_all_share_is_the_default(
    runs, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_run(runs[0], folder, 0.2, split="test", stem="test")
    run_command(monkeypatch, compare, *runs[:2])
    assert capsys.readouterr().out.strip() == "compare-val.html"
    check_page((tmp_path / "compare-val.html").read_text())


def test_without_one_that_all_share_the_evaluations_are_listed(
    runs, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for workdir in runs[:2]:
        write_run(workdir, folder, 0.2, split="test", stem="test-ms")
    message = (
        "^--split: the runs share the evaluations test-ms, val; choose one: --split"
    )
    with pytest.raises(UserError, match=message):
        run_command(monkeypatch, compare, *runs[:2])
    (runs[1] / "evaluation" / "val.json").unlink()
    message = (
        "^--split: the runs share no evaluation: good has test-ms, val; bad has "
        "test-ms; fair has val; evaluate each on one split: encnet evaluate --config"
    )
    with pytest.raises(UserError, match=message):
        run_command(monkeypatch, compare, "good", "bad", "fair")
    with pytest.raises(UserError, match="1 runs: compare needs at least two"):
        run_command(monkeypatch, compare, "good")
    with pytest.raises(UserError, match="nowhere/classes.json: "):
        run_command(monkeypatch, compare, "good", "nowhere")
    with pytest.raises(UserError, match="--split=: must be a name"):
        run_command(monkeypatch, compare, "good", "bad", split="")


def test_what_cannot_be_compared_is_one_line(runs, folder, tmp_path):
    good, bad, _ = runs

    def refusal(other, split="val"):
        with pytest.raises(UserError) as caught:
            load_evaluations([good, other], split)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(UserError, match="1 runs: compare needs at least two"):
        load_evaluations([good], "val")
    assert "is given twice" in refusal(good)
    (loop := tmp_path / "loop").symlink_to("loop")
    assert "loop/classes.json: cannot be read: Too many" in refusal(loop)
    text = (
        "choose another --split of this run (val), or evaluate it: encnet evaluate "
        f"--config=NAME --workdir={good} --split=test"
    )
    assert refusal(bad, "test").endswith(text)
    assert refusal(bad, "test-ms").endswith(f"{text} --scales=...")
    (unscored := tmp_path / "unscored").mkdir()
    for name in ("config.json", "classes.json"):
        (unscored / name).write_text((good / name).read_text())
    assert "another --split of this run (it has none), or" in refusal(unscored)
    assert "cannot be read" in refusal(tmp_path / "nowhere")
    info = dataclasses.replace(INFO, class_names=("road", "car", "sea"))
    other = write_run(tmp_path / "classes", folder, 0.1, info)
    assert "have different classes" in refusal(other)
    other = write_run(tmp_path / "data2", folder, 0.1, data="camvid")
    assert "different data sets, folder and camvid" in refusal(other)
    other = write_run(tmp_path / "split", folder, 0.1, split="train")
    assert "different splits, val and train" in refusal(other)
    settings = {"absent_classes": "zero"}
    other = write_run(tmp_path / "absent", folder, 0.1, evaluation=settings)
    assert "different evaluation.absent_classes, skip and zero" in refusal(other)
    path = image_log_path(bad / "evaluation" / "val.json")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    assert "is of another evaluation than val.json" in refusal(bad)
    path.unlink()
    assert "val-images.jsonl: cannot be read" in refusal(bad)
    path.write_text("")
    assert "val-images.jsonl: has no images" in refusal(bad)
    scores = bad / "evaluation/val.json"
    stored = json.loads(scores.read_text())
    damaged = [{}, {**stored, "confusion_matrix": [[10**30]]}]
    damaged += [{**stored, "confusion_matrix": [[1]]}, {**stored, "calibration": "?"}]
    for content in damaged:
        scores.write_text(json.dumps(content))
        assert "not an evaluation" in refusal(bad)


def test_damaged_thumbnail_is_one_line(runs, tmp_path):
    path = image_log_path(runs[1] / "evaluation" / "val.json")
    line = json.loads(path.read_text().splitlines()[4])
    path.write_text(path.read_text().replace(line["thumbnail"], "iVBORw0K"))
    with pytest.raises(UserError, match="bad: the stored prediction of '4' is damaged"):
        save_comparison(tmp_path / "page.html", load_evaluations(runs, "val"))
    assert not (tmp_path / "page.html").exists()


def test_scores_of_the_table_are_those_of_the_files(runs):
    good, bad = load_evaluations(runs[:2], "val")
    for row in class_rows(good, paired_differences(good.log, bad.log, INFO.task)):
        index = NAMES.index(row["name"])
        expected = [run.scores["per_class_iou"][index] for run in (good, bad)]
        np.testing.assert_allclose(row["values"], expected)
        assert max(map(abs, row["bar"])) <= 1


def test_other_images_and_labels_are_one_line(runs, folder, tmp_path):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, (12, 16), np.uint8)
    Image.fromarray(labels).save(folder / "labels/val/3.png")
    other = write_run(tmp_path / "other", folder, 0.1)
    with pytest.raises(UserError, match="the labels of '3' were different"):
        load_evaluations([runs[0], other], "val")
    path = image_log_path(other / "evaluation" / "val.json")
    path.write_text(path.read_text().replace('"name": "2"', '"name": "two"'))
    with pytest.raises(UserError, match="image 2 is '2' and 'two'"):
        load_evaluations([runs[0], other], "val")


def test_files_of_the_user_are_not_replaced(runs, tmp_path):
    path = tmp_path / "thesis.html"
    path.write_text("<html>mine</html>")
    with pytest.raises(UserError, match="exists and is no page of encnet_jax"):
        check_output(path)
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(UserError, match="cannot be replaced: File name too long"):
        check_output(tmp_path / f"{'a' * 300}.html")
    save_comparison(tmp_path / "page.html", load_evaluations(runs, "val"))
    check_output(tmp_path / "page.html")
    check_output(tmp_path / "new.html")


def test_command_writes_the_page_and_says_where(runs, tmp_path):
    output = tmp_path / "pages" / "page.html"
    verb = ["-m", "encnet_jax", "compare", "--split=val", f"--output={output}"]
    result = run(*verb, *runs[:2])
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(output)
    check_page(output.read_text())


@pytest.mark.parametrize(
    ("task", "settings", "model"),
    [
        ("classification", dict(name="resnet14", width=2), "resnet14"),
        ("segmentation", TINY, "encnet, tiny"),
    ],
)
def test_model_of_a_run_has_a_backbone_if_it_segments(tmp_path, task, settings, model):
    write_workdir(tmp_path, task, **settings)
    row = run_row(SimpleNamespace(name="a", workdir=tmp_path, scores={}))
    assert row["model"] == model
