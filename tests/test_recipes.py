"""Every recipe takes a training step, on fake copies of the published files."""

import json

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from configs import (  # noqa: E402
    ade20k,
    cityscapes,
    coco_stuff,
    folder,
    pascal_context,
    voc2012,
)
from encnet_jax.config_checks import validate  # noqa: E402
from encnet_jax.data import builders  # noqa: E402
from encnet_jax.data.builders.segmentation import find_pairs  # noqa: E402
from encnet_jax.data.registry import open_dataset  # noqa: E402
from encnet_jax.train import train  # noqa: E402
from tests.data.builders import (  # noqa: E402
    test_ade20k,
    test_cityscapes,
    test_coco_stuff,
    test_pascal_context,
    test_voc2012,
)
from tests.data.builders.archives import jpeg, png, unpack  # noqa: E402


def folder_files():
    files = {"classes.json": json.dumps(["cat", "dog", "mat"]).encode()}
    for split, count in (("train", 3), ("val", 1)):
        for index in range(count):
            files[f"images/{split}/{index}.jpg"] = jpeg(6, 8, 40 * index)
            files[f"labels/{split}/{index}.png"] = png(np.arange(48).reshape(6, 8) % 3)
    return files


RECIPES = {
    "ade20k": (ade20k.get_config, test_ade20k.files),
    "ade20k-paper": (lambda: ade20k.get_config("paper-r50"), test_ade20k.files),
    "cityscapes": (
        cityscapes.get_config,
        lambda: test_cityscapes.image_files() | test_cityscapes.label_files(),
    ),
    "coco_stuff": (coco_stuff.get_config, test_coco_stuff.unpacked_files),
    "folder": (folder.get_config, folder_files),
    "pascal_context": (
        pascal_context.get_config,
        lambda: test_pascal_context.image_files() | test_pascal_context.label_files(),
    ),
    "voc2012-coco": (
        lambda: voc2012.get_config("coco-r50"),
        test_coco_stuff.unpacked_files,
    ),
    "voc2012-aug": (
        lambda: voc2012.get_config("aug-r50"),
        lambda: test_voc2012.voc_files() | test_voc2012.sbd_files(),
    ),
}


def shrink(config):
    """Shrinks a recipe to a network whose steps are fast, with its data and losses."""
    config.total_steps = config.batch_size = 2
    config.eval_every = config.log_every = config.checkpoint_every = 2
    config.evaluation.batch_size = 1
    config.mesh.data = 1
    config.model.update(
        dict(backbone="tiny", stem="plain", width=4, head_channels=8, num_codes=2)
    )
    config.model.weights = ""
    config.data.base_size, config.data.crop_size = 48, 32
    if config.evaluation.crop_size:
        config.evaluation.crop_size = 32
    return config


def train_two_steps(config, workdir):
    validate(config)
    scores = train(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert np.isfinite(json.loads(lines[0])["loss"])
    return scores


@pytest.fixture(autouse=True)
def _any_count(monkeypatch):
    for builder in (builders.ade20k, builders.cityscapes, builders.coco_stuff):
        monkeypatch.setattr(
            builder,
            "find_pairs",
            lambda images, labels, count, **ends: find_pairs(
                images, labels, None, **ends
            ),
        )


# Each takes about ten seconds: the full check has all.
_QUICK = {"ade20k", "folder", "voc2012-aug"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.slow])
        for name in RECIPES
    ],
)
def test_recipe_takes_a_step_on_its_published_files(name, tmp_path):
    get_config, files = RECIPES[name]
    config = shrink(get_config())
    data_dir = manual = tmp_path / "manual"
    unpack(manual, files())
    if name != "folder":
        data_dir = tmp_path / "data"
        open_dataset(config.data.name, "train", str(data_dir), manual_dir=str(manual))
    config.data.data_dir = str(data_dir)
    scores = train_two_steps(config, tmp_path / "run")
    assert 0 <= scores["mean_iou"] <= 1
    if name == "voc2012-aug":
        last = shrink(voc2012.get_config("finetune-r50"))
        open_dataset("voc2012", "train", str(data_dir), manual_dir=str(manual))
        last.data.data_dir = str(data_dir)
        last.model.weights = str(tmp_path / "run")
        train_two_steps(last, tmp_path / "last")
