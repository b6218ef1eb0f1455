"""What the page of an evaluation takes: its size, and its share of the time.

    python -m benchmarks.report_cost [--images=2000] [--backbone=resnet18]

Evaluates a network of random weights on drawn scenes in a temporary folder. The network
predicts the first images, whose processor time each is measured once it is compiled;
for the others these predictions are taken again. What is there only for the page and
the counts of each image is measured for all: thumbnails, the images that are predicted
again with their compilation, SPLIT-images.jsonl, SPLIT.html. Processor times of one run
can be compared on a machine with other work.
"""

import dataclasses
import functools
import tempfile
import time
from pathlib import Path

from absl import app, flags
from flax import nnx

from encnet_jax.config import default, save_config
from encnet_jax.data.dataset_info import SCENES, save_info
from encnet_jax.data.datasets import Example, SyntheticScenes
from encnet_jax.evaluate import accumulator, run
from encnet_jax.models import create_model
from encnet_jax.optimizer import create_optimizer
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.model_config import model_settings
from encnet_jax.run.state import create_train_state, split_model

_PARTS = ("predict_examples", "write_image_log", "save_segmentation_page")
_IMAGES = flags.DEFINE_integer("images", 2000, "Images to evaluate.")
_BACKBONE = flags.DEFINE_string("backbone", "resnet18", "Of the network.")
_SIZE = flags.DEFINE_integer("size", 480, "Long side in the network.")
_PREDICTED = 48  # images that the network predicts
_WARM_UP = 16  # of these, before the clock starts


class ManyScenes(SyntheticScenes):
    """The scenes of the test split, as often as there are images."""

    def __init__(self, count: int):
        super().__init__(SCENES, "test")
        self._read = functools.lru_cache(None)(super().__getitem__)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        return self._read(index % _PREDICTED)


def replay(predict_dataset, clock: list[float]):
    """Returns `predict_dataset` with the first predictions repeated for the others."""

    def predict(*arguments, **settings):
        known = []
        predicted = predict_dataset(
            *arguments, **settings, skip=range(_PREDICTED, _IMAGES.value)
        )
        for prediction in predicted:
            known.append(prediction)
            if len(known) == _WARM_UP:
                start = time.process_time()
        clock.append((time.process_time() - start) / (len(known) - _WARM_UP))
        known.sort(key=lambda prediction: prediction.index)
        for index in range(_IMAGES.value):
            same = known[index % _PREDICTED]
            yield dataclasses.replace(same, index=index)

    def without_skip(*arguments, skip, **settings):
        return predict(*arguments, **settings)

    return without_skip


def timed(module, name: str, times: dict[str, float]) -> None:
    """Adds the processor time of a function to `times`."""
    function = getattr(module, name)

    @functools.wraps(function)
    def wrapper(*arguments, **settings):
        start = time.process_time()
        try:
            return function(*arguments, **settings)
        finally:
            times[name] = times.get(name, 0) + time.process_time() - start

    setattr(module, name, wrapper)


def write_workdir(workdir: Path):
    """Writes a checkpoint of random weights; returns the configuration."""
    config = default()
    config.total_steps = 1
    config.data.name = "scenes"
    config.data.update(base_size=_SIZE.value, crop_size=_SIZE.value)
    config.data.cache_on_device = True
    config.model.update(backbone=_BACKBONE.value, stem="plain", num_codes=32)
    settings = model_settings(config)
    model = create_model(num_classes=SCENES.num_classes, rngs=nnx.Rngs(0), **settings)
    _, params, batch_stats = split_model(model)
    state = create_train_state(params, batch_stats, create_optimizer(lambda step: 0.0))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, 1)
    checkpoints.close()
    save_config(config, workdir / "config.json")
    save_info(SCENES, workdir / "classes.json")
    return config


def main(_: list[str]) -> None:
    clock: list[float] = []
    times: dict[str, float] = {}
    for name in _PARTS:
        timed(run, name, times)
    timed(accumulator, "labels_to_text", times)  # in the main thread
    run.predict_dataset = replay(run.predict_dataset, clock)
    run.open_dataset = lambda *arguments, **settings: ManyScenes(_IMAGES.value)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        config = write_workdir(workdir)
        run.evaluate_workdir(config, workdir, "test")
        size = (workdir / "evaluation" / "test.html").stat().st_size
    for name, seconds in times.items():
        print(f"{name:24}{seconds:8.1f} s")
    print(f"{'page and counts':24}{sum(times.values()):8.1f} s")
    total = clock[0] * _IMAGES.value
    print(f"{'prediction':24}{total:8.1f} s, {clock[0]:.3f} s per image")
    print(f"share of the page: {sum(times.values()) / total:.1%}")
    print(f"test.html: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    app.run(main)
