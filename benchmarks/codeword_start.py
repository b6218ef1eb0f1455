"""How the codewords start, by the initial values of scales and head, on `scenes`.

    python -m benchmarks.codeword_start --output=DIR [--codes=32] [--steps=100]

Trains the first steps of `configs/scenes.py` with both starts of the scales
(`model.scale_init`) and both of the head (`model.head_init`).
At every step it records, for the batch of the step:

- the entropy of the mean assignment, relative to log K: 1 if the codewords share the
  pixels equally, 0 if one takes them all
- the norm of the gradient of each codeword: the share of codewords whose norm is at
  least a tenth of the largest one
- |x - d|^2 / c, the mean over pixels and codewords, which the scales multiply

Writes DIR/codeword_start.json and codeword_start.png.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx

from configs.scenes import get_config
from encnet_jax import cli
from encnet_jax.data.dataset_info import SCENES
from encnet_jax.data.datasets import SyntheticScenes
from encnet_jax.errors import require_package
from encnet_jax.losses import segmentation_loss
from encnet_jax.models import create_model
from encnet_jax.ops.normalize import normalize
from encnet_jax.optimizer import create_optimizer
from encnet_jax.run.model_config import model_settings
from encnet_jax.run.state import pure_batch_stats, split_model
from encnet_jax.train.settings import (
    create_schedule,
    loss_settings,
    optimizer_settings,
)

_OUTPUT = flags.DEFINE_string("output", None, "Folder for results.", required=True)
_CODES = flags.DEFINE_integer("codes", 32, "Codewords K.")
_STEPS = flags.DEFINE_integer("steps", 100, "Training steps.")
STARTS = {
    "original": {"scale_init": "original"},
    "scaled": {"scale_init": "scaled"},
    "original, head as mmseg": {"scale_init": "original", "head_init": "mmseg"},
    "scaled, head as mmseg": {"scale_init": "scaled", "head_init": "mmseg"},
}


Figures = dict[str, list[float]]  # one value a step


def first_steps(start: dict[str, Any], codes: int, steps: int) -> Figures:
    """Returns the figures of each step; see above."""
    config = get_config()
    config.model.update({**start, "num_codes": codes, "dtype": "float32"})
    model = create_model(num_classes=20, rngs=nnx.Rngs(0), **model_settings(config))
    model_def, params, batch_stats = split_model(model)
    tx = create_optimizer(create_schedule(config), **optimizer_settings(config))
    opt_state = tx.init(params)
    dataset = SyntheticScenes(SCENES, "train")

    def loss_fn(params: Any, batch_stats: Any, images: Any, labels: Any) -> Any:
        model: Any = model_def.merge(params, batch_stats)
        stages = model.backbone(normalize(images, SCENES.mean, SCENES.std))
        output = model.apply_head(stages)
        loss, _ = segmentation_loss(
            output, labels, num_classes=20, **loss_settings(config)
        )
        context = model.head.context
        stats = pure_batch_stats(model)
        features = context.reduce(model.head.reduce(stages[3]))
        assignment = context.encoding.assignment(features).mean((0, 1))
        flat = features.reshape(-1, 1, features.shape[-1])
        squares = jnp.square(flat - context.encoding.codewords[...]).mean()
        return loss, (stats, assignment, squares)

    @jax.jit
    def step(params: Any, batch_stats: Any, opt_state: Any, images: Any, labels: Any):
        grads, (batch_stats, assignment, squares) = jax.grad(loss_fn, has_aux=True)(
            params, batch_stats, images, labels
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        norms = jnp.linalg.norm(
            grads["head"]["context"]["encoding"]["codewords"], axis=-1
        )
        entropy = -(assignment * jnp.log(assignment + 1e-30)).sum() / jnp.log(codes)
        reached = (norms >= norms.max() / 10).mean()
        params = optax.apply_updates(params, updates)
        return params, batch_stats, opt_state, (entropy, reached, squares)

    figures: Figures = {"entropy": [], "reached": [], "squares": []}
    order = np.random.default_rng(0).permutation(len(dataset))
    for number in range(steps):
        first = number * config.batch_size % len(dataset)
        rows = [dataset[int(i)] for i in order[first : first + config.batch_size]]
        images = np.stack([row.image for row in rows])
        labels = np.stack([row.labels for row in rows])
        *state, found = step(params, batch_stats, opt_state, images, labels)
        params, batch_stats, opt_state = state
        for key, value in zip(figures, jax.device_get(found)):
            figures[key].append(float(value))
    return figures


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
            {k: [round(v[0], 3), round(v[-1], 3)] for k, v in results[name].items()},
        )
        (output / "codeword_start.json").write_text(
            json.dumps(results, indent=1) + "\n"
        )
    plot(results, output / "codeword_start.png")


if __name__ == "__main__":
    cli.run(main)
