"""Uses an installed encnet_jax as a user does, from an empty folder.

`.ci/smoke` runs it where the wheel is installed without extras, and where a clone is
installed editable. It imports nothing from here, and needs no network.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import encnet_jax

ENCNET = Path(sys.executable).with_name("encnet")
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
VERBS = ("train", "evaluate", "predict", "export", "data", "convert")
SMALL = (
    "--config.total_steps=2",
    "--config.batch_size=2",
    "--config.eval_every=2",
    "--config.checkpoint_every=2",
    "--config.optimizer.warmup_steps=0",
    "--config.model.backbone=tiny",
    "--config.model.stem=plain",
    "--config.model.width=4",
    "--config.model.head_channels=8",
    "--config.model.num_codes=4",
    "--config.data.base_size=48",
    "--config.data.crop_size=32",
    "--config.evaluation.batch_size=2",
)


def encnet(*arguments: str | Path, code: int = 0) -> str:
    """Runs a command; returns what it prints, of an error the line."""
    result = subprocess.run([ENCNET, *arguments], capture_output=True, text=True)
    print("encnet", *arguments[:2], flush=True)
    assert result.returncode == code, result.stdout + result.stderr
    if not code:
        return result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: "), line
    return line


def make_camvid(root: Path) -> Path:
    """Writes four images and labels of 48x36 pixels a split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for index in range(4):
            labels = rng.integers(0, 12, (6, 8)).repeat(6, 0).repeat(6, 1)
            labels = labels.astype(np.uint8)
            image = np.stack([labels * 20, 255 - labels * 20, labels * 7], -1)
            Image.fromarray(image).save(root / split / f"{index}.png")
            Image.fromarray(labels).save(root / f"{split}annot" / f"{index}.png")
    return root


def check_start() -> None:
    """Importing the package and `encnet --help` load nothing large."""
    program = "import sys, encnet_jax; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    modules = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert "encnet_jax" in modules
    assert not {"jax", "numpy", "tensorflow", "ml_collections"} & {*modules}
    text = encnet("--help")
    assert all(f"\n  {verb} " in text for verb in VERBS), text


def check_python() -> None:
    """`fit` trains on arrays, and its predictor predicts."""
    labels = np.random.default_rng(0).integers(0, 3, (4, 32, 32))
    images = np.stack([labels * 80] * 3, -1).astype(np.uint8)
    from encnet_jax.config import default

    config = default()
    config.total_steps = config.eval_every = config.batch_size = 2
    config.data.base_size = config.data.crop_size = 32
    config.model.backbone, config.model.stem, config.model.width = "tiny", "plain", 4
    config.model.head_channels = 8
    config.model.align_corners = False
    segmenter = encnet_jax.fit(images, labels, config)
    assert isinstance(segmenter, encnet_jax.Segmenter)
    assert segmenter(images[0]).labels.shape == (32, 32)


def check_recipes(camvid: Path) -> None:
    """Recipes are found by name, files by path; without TensorFlow where it can be."""
    data_dir = f"--config.data.data_dir={camvid}"
    assert "4 images" in encnet("data", "camvid", data_dir, "--split=val")
    Path("mine.py").write_text("from encnet_jax.configs.camvid import get_config\n")
    assert "4 images" in encnet("data", "mine.py:cpu", data_dir, "--split=val")
    assert Path("runs/mine-cpu/data/val.png").is_file()

    assert "runs/camvid" in encnet("train", "--config=camvid", data_dir, *SMALL)
    encnet("evaluate", "--config=camvid", data_dir)
    assert Path("runs/camvid/evaluation/val.json").is_file()
    off = "--config.data.cache_on_device=False"
    from_files = ("train", "--config=camvid:cpu", data_dir, *SMALL, off)
    if HAS_TENSORFLOW:
        assert "runs/camvid-cpu" in encnet(*from_files)
    else:
        assert "pip install 'encnet-jax[train]'" in encnet(*from_files, code=2)
        assert not Path("runs/camvid-cpu").exists()
        error = encnet("data", "ade20k", f"--config.data.data_dir={camvid}", code=2)
        assert "pip install 'encnet-jax[train]'" in error
    error = encnet("train", "--config=camvd", code=2)
    assert "camvd" in error and "ade20k, camvid, cifar10" in error


def check_run(image: Path) -> None:
    """A trained model predicts, also from a model folder, and is exported."""
    encnet("predict", "--workdir=runs/camvid", "--output=predictions", image)
    with Image.open(f"predictions/{image.stem}.png") as prediction:
        assert prediction.size == (48, 36)
    segmenter = encnet_jax.Segmenter.from_workdir("runs/camvid")
    segmenter.save_pretrained("model")
    again = encnet_jax.Segmenter.from_pretrained("model")(image).labels
    assert (again == segmenter(image).labels).all()
    encnet("predict", "--workdir=model", "--output=again", image)
    encnet("export", "--workdir=runs/camvid", "--output=exported")
    assert Path("exported/model.stablehlo").is_file()


def main() -> None:
    """Runs the checks in order."""
    assert not any(Path().iterdir()), "start it in an empty folder"
    os.environ["JAX_PLATFORMS"] = "cpu"
    print(f"{encnet_jax.__file__}, TensorFlow: {HAS_TENSORFLOW}", flush=True)
    check_start()
    check_python()
    camvid = make_camvid(Path("camvid").absolute())
    check_recipes(camvid)
    check_run(camvid / "test/0.png")
    print("all checks passed")


if __name__ == "__main__":
    main()
