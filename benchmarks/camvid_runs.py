"""The runs of `benchmarks/camvid.py`: their settings and their data."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.camvid import get_config
from encnet_jax.config import leaves
from encnet_jax.data.datasets import Dataset, FileDataset
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from encnet_jax.files import make_folder, whole_file
from encnet_jax.run.model_config import check_config

# Name -> what differs from the recipe.
RUNS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "fcn": {"model.name": "fcn"},
    "pooling": {"model.num_codes": 0},
    # The module as in the released code, and as in the paper, with its rotation.
    "released": {
        "model.code_reduction": "mean",
        "model.gate": "residual",
        "model.se_stages": (4,),
        "data.rotation": 0.0,
    },
    "paper": {
        "model.code_reduction": "sum",
        "model.gate": "plain",
        "model.se_stages": (3, 4),
        "data.rotation": 10.0,
    },
    "scale_original": {"model.scale_init": "original"},
    # Without padding, which would undo in prediction what `align_corners` does to the
    # crops of the training; sizes of the recipe are multiples of the stride.
    "corners_aligned": {"model.align_corners": True, "model.pad_to_stride": False},
    "corners_free": {"model.align_corners": False, "model.pad_to_stride": False},
    # Without the decoder; and with stride 4 relative to the images, by enlarging them.
    "stride8": {"model.decoder_stride": 8},
    "stride4_images": {
        "model.decoder_stride": 8,
        "data.base_size": 960,
        "data.crop_size": 480,
        "evaluation.base_size": 960,
    },
    # Choices of the recipe, to compare on a held-out drive.
    "equal_weights": {"loss.class_balance": ""},
    "augmented": {
        "data.scale_range": (0.5, 2.0),
        "data.color_jitter": 0.5,
        "data.rotation": 10.0,
    },
    "no_averages": {"optimizer.ema_decay": 0.0},
}
SPLITS = ("train", "trainval")
_EVALUATIONS = 4  # during the training, for the curve
_IDENTITY = "benchmark.json"
# Settings that `--set` does not take, as something else says them.
_FLAGS = {
    "seed": "--seed sets it",
    "data.train_split": "--split sets it",
    "data.data_dir": "--data_dir sets it",
    "data.name": "the data set is camvid",
    "data.cache_on_device": "images are always cached on the device here",
    "evaluation.split": "scored are val, during the training, and test or --hold_out",
}


class Run(NamedTuple):
    """What identifies a run.

    Attributes:
        name: A key of `RUNS`.
        recipe: Variant of `configs/camvid.py`.
        split: What it is trained on, of `SPLITS`.
        hold_out: A drive that is left out of it and scored in place of test; or "".
        seed: Seed of weights, order and augmentation.
        overrides: Other settings, key -> value.
        jpeg_quality: Of the images, if they were encoded again.
    """

    name: str
    recipe: str
    split: str
    hold_out: str
    seed: int
    overrides: dict[str, Any]
    jpeg_quality: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the recipe, but for what the other fields say."""
        return {**RUNS[self.name], **self.overrides}

    @property
    def watched(self) -> str:
        """What is scored during the training, in words."""
        if self.hold_out:
            return self.hold_out
        return "val (part of the training)" if self.split == "trainval" else "val"

    @property
    def title(self) -> str:
        """A short name for files; `overrides` are not in it."""
        parts = [self.name, self.split, self.hold_out, str(self.seed)]
        if self.recipe != "gpu":
            parts.insert(0, self.recipe)
        return "-".join(part for part in parts if part)

    def config(self, total_steps: int | None = None) -> ConfigDict:
        """Returns the validated configuration.

        Args:
            total_steps: Length of the schedule; by default that of the settings.

        Raises:
            UserError: A key or value that is not allowed.
        """
        config = get_config(self.recipe)
        config.data.train_split = self.split
        config.seed = self.seed
        config.data.cache_on_device = True  # needs no TensorFlow
        for key, value in self.settings.items():
            override(config, key, value)
        config.total_steps = total_steps or config.total_steps
        for key in ("eval_every", "checkpoint_every"):
            if key not in self.settings:
                config[key] = -(-config.total_steps // _EVALUATIONS)
        check_config(config)
        return config


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a key such as `model.name`; raises `UserError` for a wrong key or type."""
    if key not in dict(leaves(config)):
        raise UserError(f"--set={key}: no such key of the configuration")
    if key in _FLAGS:
        raise UserError(f"--set={key}: {_FLAGS[key]}")
    *groups, name = key.split(".")
    group = config[groups[0]] if groups else config
    try:
        group[name] = value
    except TypeError as error:
        kind = type(group[name]).__name__
        raise UserError(f"--set={key}={value!r}: must be of type {kind}") from error


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """Returns `key=value` texts as a dict; values are Python literals or plain text."""
    overrides = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set={text}: must be key=value")
        try:
            overrides[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[key] = value
    return overrides


def open_splits(run: Run, data_dir: str | None) -> tuple[Dataset, Dataset, Dataset]:
    """Opens what a run is trained on, scored on during the training, and at its end.

    With a drive held out, both scores are of the images of that drive in the training
    split, and the training split is without them. Otherwise they are of val and test.

    Raises:
        UserError: An invalid file, or no such drive.
    """
    train = open_dataset("camvid", run.split, data_dir)
    if not run.hold_out:
        val, test = (
            open_dataset("camvid", split, data_dir) for split in ("val", "test")
        )
        return train, val, test
    assert isinstance(train, FileDataset)  # as all local data sets
    parts: dict[str, list[Any]] = {}
    for pair in train.pairs:
        parts.setdefault(drive_of(pair[0]), []).append(pair)
    if run.hold_out not in parts or len(parts) < 2:
        raise UserError(f"--hold_out={run.hold_out}: the drives are {', '.join(parts)}")
    held = parts.pop(run.hold_out)
    rest = FileDataset(train.info, [pair for part in parts.values() for pair in part])
    scored = FileDataset(train.info, held)
    return rest, scored, scored


def drive_of(image: Path) -> str:
    """Returns the drive of an image: what its name has before the first underscore."""
    return image.stem.partition("_")[0]


def check_identity(run: Run, workdir: Path) -> None:
    """Raises `UserError` if a workdir has another run.

    The training itself compares what the arrays depend on, and no more.
    """
    path = workdir / _IDENTITY
    if not path.exists():
        return
    stored = json.loads(path.read_text())
    for key, value in _identity(run).items():
        if stored.get(key) != value:
            raise UserError(
                f"{workdir}: a run with {key}={stored.get(key)!r}, not {value!r}; give "
                "another --workdir"
            )


def save_identity(run: Run, workdir: Path) -> None:
    """Notes a run in its workdir."""
    make_folder(workdir, "--workdir")
    with whole_file(workdir / _IDENTITY) as file:
        file.write((json.dumps(_identity(run), indent=2) + "\n").encode())


def _identity(run: Run) -> dict[str, Any]:
    identity: dict[str, Any] = json.loads(json.dumps(run._asdict()))
    return identity
