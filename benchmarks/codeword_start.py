"""How the codewords start, by the initial values of scales and head, on `scenes`.

    python -m benchmarks.codeword_start --output=DIR [--codes=32] [--steps=100]

Trains the first steps of `configs/scenes.py` with both starts of the scales
(`model.scale_init`) and both of the head (`model.head_init`), by the batches and the
step of a training with `data.cache_on_device`.
At every step it records, for the batch of the step:

- the entropy of the mean assignment, relative to log K: 1 if the codewords share the
  pixels equally, 0 if one takes them all
- the norm of the gradient of each codeword: the least, the median and the largest, and
  the share of codewords whose norm is at least a tenth of the largest one
- |x|^2 / c of the features that are encoded, the mean over pixels
- |x - d|^2 / c, the mean over pixels and codewords, which the scales multiply
- the loss

Writes DIR/codeword_start.json and codeword_start.png.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from jaxtyping import Array, Float

from configs.scenes import get_config
from encnet_jax import cli
from encnet_jax.data import scenes
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import SCENES
from encnet_jax.data.datasets import SyntheticScenes
from encnet_jax.errors import require_package
from encnet_jax.models import create_model
from encnet_jax.ops.normalize import normalize
from encnet_jax.optimizer import create_optimizer
from encnet_jax.run.model_config import model_settings
from encnet_jax.run.state import ModelDef, PureDict, create_train_state, split_model
from encnet_jax.train import input_pipeline, settings
from encnet_jax.train.step import Batch, augment, make_train_step

_OUTPUT = flags.DEFINE_string("output", None, "Folder for results.", required=True)
_CODES = flags.DEFINE_integer("codes", 32, "Codewords K.")
_STEPS = flags.DEFINE_integer("steps", 100, "Training steps.")
STARTS = {
    "original": {"scale_init": "original"},
    "scaled": {"scale_init": "scaled"},
    "original, head as mmseg": {"scale_init": "original", "head_init": "mmseg"},
    "scaled, head as mmseg": {"scale_init": "scaled", "head_init": "mmseg"},
}

# All starts use the same scenes, so each is drawn once.
scenes.draw = functools.cache(scenes.draw)

Figures = dict[str, list[float]]  # one value a step


def first_steps(start: dict[str, Any], codes: int, steps: int) -> Figures:
    """Returns the figures of each step; see above."""
    config = get_config()
    config.data.cache_on_device = True  # needs no TensorFlow
    config.model.update({**start, "num_codes": codes, "dtype": "float32"})
    dataset = SyntheticScenes(SCENES, "train")
    model = create_model(
        num_classes=SCENES.num_classes,
        rngs=nnx.Rngs(config.seed),
        **model_settings(config),
    )
    model_def, params, batch_stats = split_model(model)
    options = settings.optimizer_settings(config)
    tx = with_norms(create_optimizer(settings.create_schedule(config), **options))
    state = create_train_state(params, batch_stats, tx)
    augmentation = input_pipeline.create_augmentation(config)
    probe = make_probe(model_def, augmentation)
    step = make_train_step(
        model_def,
        tx,
        SCENES,
        augmentation=augmentation,
        loss_settings=settings.loss_settings(config),
    )
    resident = jax.device_put(input_pipeline.resident_arrays(config, dataset))
    batches = input_pipeline.create_batches(config, dataset, 0)
    figures: Figures = {}
    for _, batch in zip(range(steps), batches):
        found = probe(state.params, state.batch_stats, resident, batch)
        state, metrics = step(state, resident, batch)
        norms = np.asarray(state.opt_state[0])
        found |= {
            "reached": (norms >= norms.max() / 10).mean(),
            "gradient_least": norms.min(),
            "gradient_median": np.median(norms),
            "gradient_largest": norms.max(),
            "loss": metrics["loss"],
        }
        for key, value in found.items():
            figures.setdefault(key, []).append(float(value))
    return figures


def with_norms(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer that also keeps the norm of each codeword's gradient.

    Its state is a pair of these, (codewords,), and the state of `tx`.
    """

    def norms(tree: Any) -> Float[Array, " k"]:
        codewords = tree["head"]["context"]["encoding"]["codewords"]
        return jnp.linalg.norm(codewords, axis=-1)

    def init(params: Any) -> Any:
        return jnp.zeros_like(norms(params)), tx.init(params)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        updates, inner = tx.update(grads, state[1], params)
        return updates, (norms(grads), inner)

    return optax.GradientTransformation(init, update)


def make_probe(
    model_def: ModelDef, augmentation: Augmentation
) -> Callable[[PureDict, PureDict, Batch, Batch], dict[str, Any]]:
    """Returns a jitted function: (params, batch_stats, resident, batch) -> figures.

    They are those of the features that a training step encodes; behind them is the only
    dropout.
    """

    @jax.jit
    def probe(
        params: PureDict, batch_stats: PureDict, resident: Batch, batch: Batch
    ) -> dict[str, Any]:
        images, _ = augment(resident, batch, augmentation)
        model: Any = model_def.merge(params, batch_stats)
        context = model.head.context
        stages = model.backbone(normalize(images, SCENES.mean, SCENES.std))
        features = context.reduce(model.head.reduce(stages[3]))
        assignment = context.encoding.assignment(features).mean((0, 1))
        entropy = -(assignment * jnp.log(assignment + 1e-30)).sum()
        flat = features.reshape(-1, 1, features.shape[-1])
        codewords = context.encoding.codewords[...]
        return {
            "entropy": entropy / jnp.log(len(codewords)),
            "features": jnp.square(features).mean(),
            "squares": jnp.square(flat - codewords).mean(),
        }

    return probe


def plot(results: dict[str, Figures], path: Path) -> None:
    """Plots entropy and the share of codewords that are reached."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    titles = {
        "entropy": "entropy of the mean assignment, of log K",
        "reached": "codewords with a tenth of the largest gradient",
    }
    for axis, (key, title) in zip(axes, titles.items()):
        for start, figures in results.items():
            axis.plot(figures[key], label=start)
        axis.set(xlabel="step", title=title, ylim=(0, 1.02))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments: list[str]) -> None:
    """Runs all starts and writes figures and plot."""
    cli.reject_positional(arguments)
    require_package("matplotlib", "train", "the plot")
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, start in STARTS.items():
        results[name] = first_steps(start, _CODES.value, _STEPS.value)
        print(
            name,
            {k: f"{v[0]:.3g} to {v[-1]:.3g}" for k, v in results[name].items()},
        )
        (output / "codeword_start.json").write_text(
            json.dumps(results, indent=1) + "\n"
        )
    plot(results, output / "codeword_start.png")


if __name__ == "__main__":
    cli.run(main)
