"""The limit on the pixels of an image, through the assembly of train and evaluate."""

import contextlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from encnet_jax.commands import data
from encnet_jax.config import default, save_config
from encnet_jax.data.dataset_info import CAMVID, save_info
from encnet_jax.errors import UserError
from encnet_jax.evaluate.run import evaluate_workdir
from encnet_jax.train import trainer


class Opened(Exception):
    """Raised in place of a training once the data sets are open."""


def train(config, workdir):
    trainer.train(config, workdir)


def evaluate(config, workdir):
    workdir.mkdir(exist_ok=True)
    save_info(CAMVID, workdir / "classes.json")
    save_config(config, workdir / "config.json")
    try:
        evaluate_workdir(config, workdir, "val")
    except UserError as error:
        if "no checkpoint" in str(error):  # looked for after the images
            raise Opened from error
        raise


def check(config, workdir):
    """Runs `encnet data`."""
    values = dict(config="", split=["val"], output=workdir, manual_dir=None, limit=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.flags, "FLAGS", SimpleNamespace(**values))
        patch.setattr(data.cli, "config_and_workdir", lambda _: (config, workdir))
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            code = data.main([])
    if code:
        raise UserError(errors.getvalue())
    raise Opened


@pytest.mark.sets("data.max_image_pixels")
@pytest.mark.parametrize("command", [train, evaluate, check])
def test_setting_allows_images_over_the_limit_of_pillow(tmp_path, monkeypatch, command):
    for name in ("train", "trainannot", "val", "valannot"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / name / "a.png")
    config = default()
    config.data.name, config.data.data_dir = "camvid", str(tmp_path)
    config.total_steps, config.batch_size = 1, 8

    def stop(*arguments):
        raise Opened

    monkeypatch.setattr(trainer, "Trainer", stop)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"a.png: .*35 pixels.*data.max_image_pixels"):
        command(config, tmp_path / "none")
    config.data.max_image_pixels = 10**6  # the contact sheet is larger than the images
    with pytest.raises(Opened):
        command(config, tmp_path / "none")
