"""Images of five channels and 16 bits through every command."""

import json

import numpy as np
import pytest
from PIL import Image

from encnet_jax import Segmenter, fit
from encnet_jax.config import default
from encnet_jax.data.bands import scale_bands
from encnet_jax.errors import UserError
from encnet_jax.evaluate.run import evaluate_workdir
from encnet_jax.export.formats import READERS
from encnet_jax.export.run import export_workdir
from encnet_jax.fit_arrays import small_config
from encnet_jax.predict.tiff_image import open_tiff
from encnet_jax.train import train
from tests.commands import SMALL, start, start_two

tifffile = pytest.importorskip("tifffile")
RANGE = [[0, 4095], [0, 4095], [0, 4095], [-100, 900], [0, 10000]]


def write_folder(root, channels=5):
    """Writes two splits; the class of a pixel is only in the last channel."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(4):
            labels = np.kron(rng.integers(0, 2, (4, 4)), np.ones((8, 8)))
            image = rng.integers(0, 900, (32, 32, channels))
            image[..., -1] = 1000 + 8000 * labels
            name = f"{split}/{index}"
            tifffile.imwrite(
                root / "images" / f"{name}.tif",
                np.moveaxis(image, -1, 0).astype(np.uint16),
                photometric="minisblack",
                planarconfig="separate",
            )
            Image.fromarray(labels.astype(np.uint8)).save(
                root / "labels" / f"{name}.png"
            )
    content = {"classes": ["low", "high"], "display_channels": [4, 2, 1]}
    content["value_range"] = RANGE
    (root / "classes.json").write_text(json.dumps(content))


def recipe(root):
    config = default()
    config.total_steps = config.eval_every = 60
    config.batch_size = 4
    config.learning_rate = 0.1
    config.optimizer.head_lr_mult = 1.0
    config.data.name = "folder"
    config.data.data_dir = str(root)
    config.data.channels = 5
    config.data.base_size = config.data.crop_size = 32
    config.data.scale_range = (1.0, 1.0)
    config.data.color_jitter = 0.1
    config.model.name = "fcn"
    config.model.backbone = "tiny"
    config.model.width = config.model.head_channels = 8
    config.model.aux_head = config.model.align_corners = False
    config.mesh.data = 1
    return config


@pytest.mark.slow
def test_five_channels_of_16_bits_end_to_end(tmp_path):
    pytest.importorskip("tensorflow")
    pytest.importorskip("jax2onnx")
    root, workdir = tmp_path / "data", tmp_path / "run"
    write_folder(root)
    config = recipe(root)

    scores = train(config, workdir)
    assert scores["mean_iou"] > 0.7
    again = train(config, workdir)  # the stored normalization, and nothing left to do
    assert again["mean_iou"] == scores["mean_iou"]
    evaluate_workdir(config, workdir, "val")
    stored = json.loads((workdir / "evaluation" / "val.json").read_text())
    assert stored["mean_iou"] == pytest.approx(scores["mean_iou"])

    path = root / "images" / "val" / "0.tif"
    segmenter = Segmenter.from_workdir(workdir)
    labels = segmenter(path).labels
    array = np.moveaxis(tifffile.imread(path), 0, -1)
    np.testing.assert_array_equal(segmenter(array).labels, labels)
    assert segmenter(array).overlay().size[0] >= 32
    with pytest.raises(UserError, match="4 channels; 5 are expected"):
        segmenter(array[..., :4])
    segmenter.save_pretrained(tmp_path / "folder")
    again = Segmenter.from_pretrained(tmp_path / "folder")
    np.testing.assert_array_equal(again(path).labels, labels)
    with open_tiff(path, segmenter.info) as image:
        expected = scale_bands(array, segmenter.info.value_range, "")
        np.testing.assert_array_equal(image[0:32, 3:20], expected[:, 3:20])

    for kind in ("stablehlo", "onnx", "pretrained"):
        export_workdir(workdir, tmp_path / kind, kind)
    for kind in ("stablehlo", "onnx"):
        run = READERS[kind](tmp_path / kind / f"model.{kind}")
        found = run(array[None].astype(np.float32))["labels"]
        np.testing.assert_array_equal(found[0], labels)
        holes, lowest = (array[None].astype(np.float32) for _ in range(2))
        holes[:, :9], lowest[:, :9] = np.nan, [low for low, _ in RANGE]
        np.testing.assert_array_equal(run(holes)["labels"], run(lowest)["labels"])


@pytest.mark.slow
def test_two_processes_train_and_score_bands_as_one(tmp_path):
    pytest.importorskip("tensorflow")
    write_folder(tmp_path / "data")
    given = ["--config=configs/folder.py", *SMALL, "--config.model.weights="]
    given += [f"--config.data.data_dir={tmp_path / 'data'}", "--config.batch_size=4"]
    given += ["--config.data.channels=5", "--config.learning_rate=0.001"]
    found = []
    for name in ("one", "two"):
        for script in ("train.py", "evaluate.py"):
            command = [script, f"--workdir={tmp_path / name}", *given]
            one = name == "one"
            hosts = [start(*command)] if one else start_two(*command, devices=2)
            for host in hosts:
                _, stderr = host.communicate(timeout=400)
                assert host.returncode == 0, stderr
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
        scores = json.loads((tmp_path / name / "evaluation" / "val.json").read_text())
        stored = (tmp_path / name / "classes.json").read_text()
        found.append((losses, scores["mean_iou"], stored))
    (losses, score, stored), (same, again, other) = found
    assert len(losses) == 6 and stored == other
    np.testing.assert_allclose(losses, same, rtol=1e-4)
    assert score == pytest.approx(again, abs=0.01)


@pytest.mark.slow
def test_fit_of_two_channels(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (4, 33, 33))
    images = np.stack([labels * 0.5, 0.2 - labels], -1).astype(np.float32)
    config = small_config(images, labels)
    config.total_steps = config.eval_every = 2
    config.optimizer.warmup_steps = 0
    config.batch_size = 4
    config.data.value_range = ((0, 1), (-1, 1))
    config.mesh.data = 1
    segmenter = fit(images, labels, config, workdir=tmp_path)
    assert segmenter(images[0]).labels.shape == (33, 33)
    assert segmenter.info.value_range == ((0, 1), (-1, 1))
    config.data.update(channels=4, value_range=(0, 1))
    with pytest.raises(UserError, match=r"float32 \(4, 33, 33, 2\); must be numbers"):
        fit(images, labels, config, workdir=tmp_path / "other")
