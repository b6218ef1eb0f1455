"""Eight real training steps of each original: the whole of the training at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.inference.folding import eval_model_def
from encnet_jax.losses import segmentation_loss
from encnet_jax.models import create_model
from encnet_jax.optimizer import create_optimizer, poly_schedule
from encnet_jax.run.state import ModelDef, create_train_state, split_model
from encnet_jax.train import step

from .cases import Case, load_case, nchw, nhwc
from .modules import (
    MMSEG,
    PYTORCH_ENCODING,
    Rules,
    empty,
    fill,
    flat,
    our_name,
    to_theirs,
)
from .spies import named_results, spy_on

_STEPS = 8
_PARTS = {"main": "pixel_loss", "se": "se_loss", "aux": "aux_loss"}


class Recipe(NamedTuple):
    """How one original trains."""

    rules: Rules
    model: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, float]
    schedule: optax.Schedule


_RECIPES = {
    "training_run": Recipe(
        PYTORCH_ENCODING,
        dict(align_corners=True, unbiased_running_var=False),
        dict(se_weight=0.2, aux_weight=0.2, normalize_by="valid"),
        dict(weight_decay=1e-4, head_lr_mult=10.0),
        poly_schedule(2.5e-4, _STEPS),
    ),
    "training_run_mmseg": Recipe(
        MMSEG,
        dict(stem_width=32, align_corners=False, unbiased_running_var=True),
        dict(se_weight=0.2, aux_weight=0.4, normalize_by="all"),
        dict(weight_decay=5e-4, head_lr_mult=1.0),
        # The last step already has the minimum.
        poly_schedule(8e-4, _STEPS - 1, min_learning_rate=1e-4),
    ),
}


class _SpiedModel:
    """A model model_def whose models tell what passes between their parts."""

    def __init__(self, model_def: ModelDef):
        self._definition = model_def
        self.log: dict[str, Any] = {}

    def merge(self, params, batch_stats):
        model = self._definition.merge(params, batch_stats)
        self.log = spy_on(model)
        return model


class Run(NamedTuple):
    """What came out of a run, by the original's names and in its layout.

    Attributes:
        final: Parameters and statistics after it.
        first_gradient: Of the loss, in step 0.
        first_outputs: Of the model in training mode, in step 0.
        losses: Name to one value a step.
        norms: `grad_norms`, `state_norms` and `change_norms`.
    """

    final: dict[str, np.ndarray]
    first_gradient: dict[str, np.ndarray]
    first_outputs: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]


@pytest.mark.parametrize(
    "name",
    ["training_run", pytest.param("training_run_mmseg", marks=pytest.mark.slow)],
)
def test_training_run_matches(name, check, monkeypatch):
    # One test, not many on a fixture: parallel workers would each train.
    case, recipe = load_case(name), _RECIPES[name]
    model = empty(create_model, "encnet", num_classes=7, dropout=0.0, **recipe.model)
    fill(model, case.weights(), recipe.rules)
    evaluated = _evaluator(model, jnp.asarray(nhwc(case.input("eval_image"))))
    _, *initial = split_model(model)
    _check_outputs(check, case, "eval_initial", evaluated(*initial))
    run, *final = _train(monkeypatch, case, recipe, model)
    _check_rates(check, case, recipe)
    _check_first_step(check, case, run)
    _check_losses(check, case, run)
    _check_norms(check, case, run)
    for entry in case.arrays:
        if entry.startswith("final."):
            check(case, entry, run.final[entry.removeprefix("final.")])
    _check_outputs(check, case, "eval_final", evaluated(*final))


def _evaluator(model, images):
    """Returns a function of parameters and statistics to all results in eval mode."""
    model_def = eval_model_def(model)

    @jax.jit
    def evaluate(params, batch_stats):
        model = model_def.merge(params, batch_stats)
        log = spy_on(model)
        return named_results(model(images), log)

    return evaluate


def _recorder() -> optax.GradientTransformation:
    """Keeps the gradient of the last step in the state of the optimizer."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (updates, updates),
    )


def _step_fn(monkeypatch, recipe: Recipe, model_def: ModelDef, tx):
    spied = _SpiedModel(model_def)
    wanted = ("main_low", "aux_low", "se_logits")

    def loss(output, labels, **settings):
        total, parts = segmentation_loss(output, labels, **settings)
        found = named_results(output, spied.log)
        return total, parts | {key: found[key] for key in wanted}

    monkeypatch.setattr(step, "segmentation_loss", loss)
    # The images come normalized; these statistics leave them as they are.
    unchanged = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    info = DatasetInfo("", tuple("abcdefg"), (), {}, **unchanged)
    align = {"align_corners": recipe.model["align_corners"]}
    return step.make_train_step(spied, tx, info, loss_settings=align | recipe.loss)


def _train(monkeypatch, case: Case, recipe: Recipe, model) -> tuple[Run, Any, Any]:
    """Returns what happened, and the parameters and statistics at the end."""
    model_def, params, batch_stats = split_model(model)
    tx = optax.chain(_recorder(), create_optimizer(recipe.schedule, **recipe.optimizer))
    step_fn = _step_fn(monkeypatch, recipe, model_def, tx)
    names = _Names(case, recipe.rules)
    start = names.entries(params, batch_stats)
    state = create_train_state(params, batch_stats, tx)
    seed = {"seed": np.uint32(0)}  # of dropout, which is off
    metrics, gradients, norms = [], [], []
    labels = case.arrays["target"].astype(np.int32)
    labels = np.where(labels == -1, 255, labels)
    for i in range(_STEPS):
        images = nhwc(case.input(f"step{i}.image"))
        state, found = step_fn(state, seed, {"images": images, "labels": labels[i]})
        metrics.append(jax.device_get(found))
        gradient = names.entries(state.opt_state[0])
        entries = names.entries(state.params, state.batch_stats)
        change = {k: v - start[k] for k, v in entries.items()}
        norms.append((_norms(gradient), _norms(entries), _norms(change)))
        gradients = gradients or [gradient]
    grad_norms, state_norms, change_norms = map(np.array, zip(*norms))
    run = Run(
        entries,
        gradients[0],
        metrics[0],
        {k: np.array([m[k] for m in metrics]) for k in ("loss", *_PARTS.values())},
        {
            "grad_norms": grad_norms,
            "state_norms": np.vstack([_norms(start), state_norms]),
            "change_norms": change_norms,
        },
    )
    return run, state.params, state.batch_stats


class _Names:
    """The original's names and layout for our parameters and statistics."""

    def __init__(self, case: Case, rules: Rules):
        names = [k for k in case.facts["state_dict"] if "num_batches" not in k]
        self._ours = {name: our_name(name, rules) for name in names}

    def entries(self, *trees) -> dict[str, np.ndarray]:
        ours = {}
        for tree in trees:
            ours |= flat(tree)
        return {
            theirs: to_theirs(name, ours[name])
            for theirs, name in self._ours.items()
            if name in ours
        }


def _norms(entries: dict[str, np.ndarray]) -> list[float]:
    """Returns the norm of each entry; float32 sums of squares would lose digits."""
    return [np.sqrt(np.square(v, dtype=np.float64).sum()) for v in entries.values()]


def _check_outputs(check, case: Case, prefix: str, found: dict[str, jax.Array]) -> None:
    # After eight steps float32 runs of the original differ by 1e-3 of the logits among
    # themselves, and so do their tolerances.
    for entry in case.arrays:
        name = entry.removeprefix(f"{prefix}_")
        if name != entry:
            value = found[name]
            check(case, entry, nchw(value) if value.ndim == 4 else value)


def _check_rates(check, case: Case, recipe: Recipe) -> None:
    rates = np.array([recipe.schedule(i) for i in range(_STEPS)])
    if case.arrays["lr"].ndim == 2:  # backbone, head, aux_head head
        factor = recipe.optimizer["head_lr_mult"]
        rates = rates[:, None] * [1, factor, factor]
    check(case, "lr", rates)


def _check_first_step(check, case: Case, run: Run) -> None:
    # No history yet: the tolerances are those of one pass.
    for name in ("main_low", "aux_low"):
        check(case, f"step0_{name}", nchw(run.first_outputs[name]))
    check(case, "step0_se_logits", run.first_outputs["se_logits"])
    for entry in case.arrays:
        if entry.startswith("step0_grad."):
            check(case, entry, run.first_gradient[entry.removeprefix("step0_grad.")])


def _check_losses(check, case: Case, run: Run) -> None:
    # Where the input of a ReLU is zero to within rounding its gradient goes one way or
    # the other, and later steps inherit it: 20 times the largest deviation among four
    # float32 runs of the original over all steps, as one step may be close by chance.
    # Before the first update there is nothing to inherit.
    names = {"loss": "loss"} | {f"loss_{k}_term": v for k, v in _PARTS.items()}
    for theirs, ours in names.items():
        expected = case.arrays[theirs]
        allowed = np.full(_STEPS, 20 * case.arrays[f"float32_diff.{theirs}"])
        allowed[0] = 1e-5 * expected[0]
        check(case, theirs, run.losses[ours], allowed=allowed)
    total = np.sqrt(np.square(run.norms["grad_norms"]).sum(1))
    allowed = 20 * case.arrays["float32_diff.grad_norm"]
    check(case, "grad_norm", total, allowed=allowed)


def _check_norms(check, case: Case, run: Run) -> None:
    # 20 times the largest deviation of the column, but at least so much of the number:
    # a column may be close by chance in all four runs. Running statistics have seen
    # only forward passes, so that their norms and changes are sharp; parameters hardly
    # move, so that their norms are sharper still, and their changes are the gradients'.
    floors = {
        "grad_norms": (0, 0),
        "state_norms": (2e-7, 2e-5),
        "change_norms": (1e-3, 2e-5),
    }
    of_statistic = np.array(["running_" in n for n in run.final])
    for name, (of_parameters, of_statistics) in floors.items():
        expected = case.arrays[name]
        floor = of_parameters
        if expected.shape[1] == len(of_statistic):
            floor = np.where(of_statistic, of_statistics, of_parameters)
        allowed = np.maximum(20 * case.arrays[f"float32_diff.{name}"], floor * expected)
        check(case, name, run.norms[name], allowed=allowed)
