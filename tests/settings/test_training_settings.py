"""Each key of the optimizer, the loss and the run, against arithmetic by hand."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.config import default
from encnet_jax.errors import UserError
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.model_config import check_config
from encnet_jax.run.progress import Progress
from encnet_jax.run.workdir import load_workdir
from encnet_jax.train import trainer
from encnet_jax.train.settings import warn_of_learning_rate
from tests.settings.toy import ToyModel, flat, lines, toy_config, toy_dataset

sets = pytest.mark.sets


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def learning_rate(
    step,
    *,
    learning_rate=0.01,
    total_steps=100,
    schedule="poly",
    power=0.9,
    warmup_steps=0,
    min_learning_rate=0.0,
):
    if step < warmup_steps:
        return learning_rate * step / warmup_steps
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    if schedule == "cosine":
        return learning_rate * (1 + np.cos(np.pi * done)) / 2
    return (learning_rate - min_learning_rate) * (1 - done) ** power + min_learning_rate


def after_steps(
    params,
    steps,
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-4,
    head_lr_mult=10.0,
    max_grad_norm=np.inf,
    name="sgd",
    beta2=0.999,
    **schedule,
):
    """Returns the two vectors of logits after steps of the optimizer."""
    weights = np.stack([params["backbone.bias"], params["bias"]]).astype(float)
    velocity, squares = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(steps):
        gradient = np.stack([softmax(weights.sum(0)) - [0.75, 0.25]] * 2)
        gradient *= min(1, max_grad_norm / np.linalg.norm(gradient))
        if name == "adamw":  # without weight decay, for they are vectors
            velocity = momentum * velocity + (1 - momentum) * gradient
            squares = beta2 * squares + (1 - beta2) * gradient**2
            mean = velocity / (1 - momentum ** (step + 1))
            update = mean / np.sqrt(squares / (1 - beta2 ** (step + 1)))
        else:
            gradient = gradient + weight_decay * weights
            velocity = momentum * velocity + gradient
            update = gradient + momentum * velocity if nesterov else velocity
        rate = learning_rate(step, **schedule)
        weights = weights - rate * np.array([[1.0], [head_lr_mult]]) * update
    return weights


OPTIMIZER = [
    ("learning_rate", 0.5),
    ("total_steps", 5),
    ("optimizer.schedule", "cosine"),
    ("optimizer.power", 3.0),
    ("optimizer.warmup_steps", 2),
    ("optimizer.min_learning_rate", 0.005),
    ("optimizer.momentum", 0.3),
    ("optimizer.nesterov", True),
    ("optimizer.weight_decay", 0.1),
    ("optimizer.head_lr_mult", 3.0),
    ("optimizer.max_grad_norm", 0.01),
    ("optimizer.name", "adamw"),
]


@pytest.mark.parametrize(
    ("key", "value"), [pytest.param(*c, marks=sets(c[0]), id=c[0]) for c in OPTIMIZER]
)
def test_three_updates(key, value, train_steps):
    recorded = train_steps(3, **{"total_steps": 6, key: value})
    settings = {"total_steps": 6, key.rpartition(".")[2]: value}
    expected = after_steps(recorded.params[0], 3, **settings)
    found = recorded.params[3]
    np.testing.assert_allclose(found["backbone.bias"], expected[0], rtol=2e-5)
    np.testing.assert_allclose(found["bias"], expected[1], rtol=2e-5)


@pytest.mark.parametrize(
    ("name", "factor", "warns"),
    [("fcn", 10.0, False), ("encnet14", 1.0, False), ("encnet14", 10.0, True)],
)
def test_factor_on_all_parameters_is_warned_of(name, factor, warns, caplog):
    config = default()
    config.model.name, config.optimizer.head_lr_mult = name, factor
    warn_of_learning_rate(config)
    assert ("optimizer.head_lr_mult=10 multiplies" in caplog.text) == warns


@sets("optimizer.beta2")
def test_decay_of_the_second_moment(train_steps):
    recorded = train_steps(3, **{"optimizer.name": "adamw", "optimizer.beta2": 0.5})
    expected = after_steps(recorded.params[0], 3, name="adamw", beta2=0.5)
    np.testing.assert_allclose(recorded.params[3]["bias"], expected[1], rtol=2e-5)


@sets("optimizer.ema_decay")
def test_moving_averages(train_steps):
    recorded = train_steps(2, **{"optimizer.ema_decay": 0.05})
    first, second, third = (params["bias"] for params in recorded.params)
    expected = 0.05 * (0.05 * first + 0.95 * second) + 0.95 * third
    found = recorded.state.ema["params"]["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_moving_averages_are_what_is_scored(toys, tmp_path, monkeypatch):
    trained, scored = [], []
    make = trainer.make_validate_fn

    def make_recording(*args):
        validate = make(*args)

        def run(params, batch_stats):
            scored.append((flat(params), flat(batch_stats)))
            return validate(params, batch_stats)

        return run

    monkeypatch.setattr(trainer, "make_validate_fn", make_recording)
    save = trainer.Checkpoints.save

    def recording_save(self, state, step):
        trained.append(state)
        return save(self, state, step)

    monkeypatch.setattr(trainer.Checkpoints, "save", recording_save)
    config = toy_config(total_steps=2, **{"optimizer.ema_decay": 0.5})
    trainer.train(config, tmp_path, (toy_dataset(), toy_dataset()))
    (state,), ((params, batch_stats),) = trained, scored
    np.testing.assert_array_equal(params["bias"], state.ema["params"]["bias"])
    assert (params["bias"] != flat(state.params)["bias"]).all()
    np.testing.assert_array_equal(
        batch_stats["passes"], state.ema["batch_stats"]["passes"]
    )
    assert batch_stats["passes"] != flat(state.batch_stats)["passes"]


def test_names_of_splits_say_nothing_of_data_sets_that_are_given(
    toys, tmp_path, caplog
):
    config = toy_config(total_steps=1, **{"data.train_split": "trainval"})
    trainer.train(config, tmp_path, (toy_dataset(), toy_dataset()))
    assert "is trained on" not in caplog.text


@pytest.mark.parametrize("decays", [(0.0, 0.9), (0.9, 0.0)])
def test_moving_averages_begin_with_the_run(toys, tmp_path, decays):
    datasets = (toy_dataset(), toy_dataset())
    steps = dict(total_steps=1)
    trainer.train(
        toy_config(**steps, **{"optimizer.ema_decay": decays[0]}), tmp_path, datasets
    )
    config = toy_config(**steps, **{"optimizer.ema_decay": decays[1]})
    with pytest.raises(UserError, match=f"optimizer.ema_decay={decays[1]}: the run in"):
        trainer.train(config, tmp_path, datasets)


@sets("model.freeze_backbone")
def test_frozen_backbone(train_steps):
    before, after = train_steps(**{"model.freeze_backbone": True}).params
    np.testing.assert_array_equal(before["backbone.bias"], after["backbone.bias"])
    assert (before["bias"] != after["bias"]).all()


@sets("batch_size")
def test_batch_size(train_steps):
    recorded = train_steps(batch_size=6)
    assert recorded.batch_stats[0]["rows"] == 6
    assert recorded.batch()[0].shape == (6, 4, 4, 3)


@sets("grad_accum_steps")
def test_accumulated_gradient_is_the_mean_over_micro_batches(train_steps):
    labels = np.full((4, 4, 4), 255, np.uint8)
    labels[0] = labels[1, 0] = labels[2, :2] = 0  # 16, 4 and 8 pixels
    labels[3] = 1
    settings = {"optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0}
    recorded = train_steps(
        dataset=toy_dataset(labels),
        grad_accum_steps=2,
        learning_rate=0.5,
        **settings,
    )
    assert recorded.batch_stats[0]["rows"] == 2
    assert recorded.batch_stats[0]["passes"] == 2
    order = recorded.inputs[0]["index"]
    halves = [labels[order[start::2]] for start in (0, 1)]
    share = np.mean([(half == 0).sum() / (half != 255).sum() for half in halves])
    assert share != (labels == 0).sum() / (labels != 255).sum()
    before, after = recorded.params
    gradient = softmax(before["bias"] + before["backbone.bias"]) - [share, 1 - share]
    found = before["backbone.bias"] - after["backbone.bias"]
    np.testing.assert_allclose(found, 0.5 * gradient, rtol=1e-5)


@sets("mesh.data")
def test_devices_share_the_batch(train_steps):
    recorded = train_steps(**{"mesh.data": 2})
    assert len(recorded.state.step.sharding.device_set) == 2


@sets("seed")
def test_seed_of_initial_weights(train_steps):
    recorded = train_steps(seed=7)
    rngs = nnx.Rngs(7)  # the backbone is built first
    for name in ("backbone.bias", "bias"):
        expected = jax.random.uniform(rngs.params(), (2,))
        np.testing.assert_array_equal(recorded.params[0][name], expected)


@sets("seed")
def test_seed_of_the_order(train_steps):
    recorded = train_steps(2, toy_dataset(count=9), seed=7)
    order = np.random.default_rng((7, 0)).permutation(9)
    np.testing.assert_array_equal(recorded.inputs[0]["index"], order[:4])
    np.testing.assert_array_equal(recorded.inputs[1]["index"], order[4:8])


@sets("seed")
def test_seed_of_dropout(train_steps, monkeypatch):
    monkeypatch.setattr(ToyModel, "noisy", True)
    dropped = []
    for step in range(6):
        # The model is reseeded in each step; its layer splits the key of its stream.
        key = jax.random.fold_in(jax.random.key(7), step)
        mask = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=key))(jnp.ones(2))[0]
        dropped.append(float(mask))
    recorded = train_steps(6, seed=7, learning_rate=1e-9)
    logits = recorded.params[0]["backbone.bias"] + recorded.params[0]["bias"]
    for added, metrics in zip(dropped, recorded.metrics):
        expected = cross_entropy(logits + [added, 0])
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert len(set(dropped)) == 2


def cross_entropy(logits, weights=(1, 1)):
    """Returns the mean over a quarter of pixels of class 1, and the rest of class 0."""
    costs = -np.log(softmax(logits)) * weights * [0.75, 0.25]
    return costs.sum() / np.dot(weights, [0.75, 0.25])


def logits_of(recorded):
    return recorded.params[0]["backbone.bias"] + recorded.params[0]["bias"]


@sets("loss.se_weight")
def test_weight_of_the_se_loss(train_steps):
    recorded = train_steps(**{"loss.se_weight": 0.7})
    # Both classes are present; the logits are 0.5 and -1.
    se_loss = (np.log1p(np.exp(-0.5)) + np.log1p(np.exp(1.0))) / 2
    expected = cross_entropy(logits_of(recorded)) + 0.7 * se_loss
    np.testing.assert_allclose(recorded.loss, expected, rtol=1e-5)


@sets("loss.aux_weight")
def test_weight_of_the_auxiliary_loss(train_steps):
    recorded = train_steps(**{"loss.aux_weight": 0.7})
    expected = cross_entropy(logits_of(recorded)) + 0.7 * cross_entropy([0, 2])
    np.testing.assert_allclose(recorded.loss, expected, rtol=1e-5)


@sets("loss.class_weights")
def test_class_weights(train_steps):
    recorded = train_steps(**{"loss.class_weights": (1.0, 5.0)})
    expected = cross_entropy(logits_of(recorded), (1, 5))
    np.testing.assert_allclose(recorded.loss, expected, rtol=1e-5)


@sets("loss.class_balance")
def test_class_weights_by_the_shares_of_the_classes(train_steps):
    recorded = train_steps(**{"loss.class_balance": "log"})
    weights = 1 / np.log(1.02 + np.array([0.75, 0.25]))
    expected = cross_entropy(logits_of(recorded), weights)
    np.testing.assert_allclose(recorded.loss, expected, rtol=1e-5)


@sets("loss.label_smoothing")
def test_label_smoothing(train_steps):
    recorded = train_steps(**{"loss.label_smoothing": 0.2})
    logits = logits_of(recorded)
    even = -np.log(softmax(logits)).mean()
    expected = 0.8 * cross_entropy(logits) + 0.2 * even
    np.testing.assert_allclose(recorded.loss, expected, rtol=1e-5)


@sets("loss.hard_pixel_fraction")
def test_hard_pixels(train_steps):
    recorded = train_steps(**{"loss.hard_pixel_fraction": 0.25})
    costs = -np.log(softmax(logits_of(recorded)))
    # A quarter of the pixels is of class 1; pixels of equal cost count together.
    np.testing.assert_allclose(recorded.loss, costs.max(), rtol=1e-5)


@sets("loss.lovasz_weight")
def test_weight_of_lovasz_softmax(train_steps):
    recorded = train_steps(**{"loss.lovasz_weight": 0.7, "mesh.data": 4})
    # All pixels have the same probabilities p and 1 - p. Of class 0 the errors are
    # 1 - p at three quarters of the pixels and p at the others, of class 1 alike: two
    # levels for each, and the larger weighs the IoU lost with all its pixels.
    p = softmax(logits_of(recorded))

    def loss(share, probability):
        own, other = 1 - probability, probability
        if own > other:  # all of the class is missed first
            return own
        lost = 1 - share  # 1 - share / (share + (1 - share))
        return lost * other + (1 - lost) * own

    lovasz = (loss(0.75, p[0]) + loss(0.25, p[1])) / 2
    expected = cross_entropy(logits_of(recorded)) + 0.7 * lovasz
    np.testing.assert_allclose(recorded.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(recorded.metrics[0]["lovasz_loss"], lovasz, rtol=1e-5)


@sets("loss.normalize_by")
def test_pixels_that_the_loss_is_averaged_over(train_steps):
    dataset = toy_dataset()
    dataset.labels[:, 0] = 255  # a quarter of the pixels
    recorded = train_steps(dataset=dataset, **{"loss.normalize_by": "all"})
    expected = 0.75 * cross_entropy(logits_of(recorded))
    np.testing.assert_allclose(recorded.loss, expected, rtol=1e-5)


@sets("model.align_corners")
def test_corners_of_logits_in_the_loss(train_steps, monkeypatch):
    monkeypatch.setattr(ToyModel, "ramp", 2.0)
    dataset = toy_dataset(np.zeros((4, 4, 4), np.uint8))
    recorded = train_steps(dataset=dataset, **{"model.align_corners": False})
    zero, one = logits_of(recorded)
    # Two pixels to four with half-pixel centers.
    ramp = 2 * np.array([0, 0.25, 0.75, 1])
    expected = np.log1p(np.exp(one + ramp - zero)).mean()
    np.testing.assert_allclose(recorded.loss, expected, rtol=1e-5)


@sets("total_steps", "log_every", "eval_every", "checkpoint_every", "batch_size")
def test_what_happens_when(toys, tmp_path, monkeypatch):
    saved, scored, progress = [], [], []
    save, add_scores = Checkpoints.save, Checkpoints.add_scores

    def counting(*arguments):
        progress.append(arguments)
        return Progress(*arguments)

    def spied(self, state, step):
        saved.append(step)
        save(self, state, step)

    def scoring(self, step, *results):
        scored.append(step)
        add_scores(self, step, *results)

    monkeypatch.setattr(Checkpoints, "save", spied)
    monkeypatch.setattr(Checkpoints, "add_scores", scoring)
    monkeypatch.setattr(trainer, "Progress", counting)
    every = dict(log_every=2, eval_every=5, checkpoint_every=3)
    config = toy_config(total_steps=7, batch_size=3, **every)
    check_config(config)
    trainer.train(config, tmp_path, (toy_dataset(), toy_dataset()))
    found = lines(tmp_path)
    assert [row["step"] for row in found if "loss" in row] == [2, 4, 6, 7]
    evaluated = [row["step"] for row in found if "mean_iou" in row]
    assert evaluated == [5, 7]
    assert saved == [3, 5, 6, 7] and scored == [5, 7]
    assert progress == [(0, 7, 3)]  # of steps, and images a step for their rate


@sets("early_stopping")
def test_evaluations_without_a_better_score(toys, tmp_path):
    # One class at every pixel: the score is that of the first evaluation or less.
    labels = np.zeros((4, 4, 4), np.uint8)
    config = toy_config(total_steps=9, eval_every=2, early_stopping=2)
    trainer.train(config, tmp_path, (toy_dataset(labels), toy_dataset(labels)))
    evaluated = [row["step"] for row in lines(tmp_path) if "mean_iou" in row]
    assert evaluated == [2, 4, 6]


@sets("model.weights")
def test_weights_of_an_earlier_run(toys, train_steps, tmp_path):
    config = toy_config(total_steps=1, learning_rate=0.5)
    trainer.train(config, tmp_path / "earlier", (toy_dataset(), toy_dataset()))
    trained = load_workdir(tmp_path / "earlier").params
    recorded = train_steps(seed=3, **{"model.weights": str(tmp_path / "earlier")})
    for name, value in flat(trained).items():
        np.testing.assert_array_equal(recorded.params[0][name], value)


@sets("tracker")
def test_tracker(toys, tmp_path, monkeypatch):
    module, logged = types.ModuleType("trackio"), []
    log = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, set(values))), finish=lambda: None
    )
    module.init, module.Image = lambda **given: log, lambda panel: panel
    monkeypatch.setitem(sys.modules, "trackio", module)
    config = toy_config(total_steps=2, log_every=1, tracker="trackio")
    trainer.train(config, tmp_path, (toy_dataset(), toy_dataset()))
    expected = [
        (1, "train/loss"),
        (2, "train/loss"),
        (2, "evaluation/mean_iou"),
        (2, "predictions"),
    ]
    assert [step for step, _ in logged] == [step for step, _ in expected]
    assert all(name in names for (_, names), (_, name) in zip(logged, expected))


def test_objects_have_no_splits_that_a_run_could_be_of(toys, tmp_path):
    datasets = toy_dataset(), toy_dataset()
    trainer.train(toy_config(total_steps=1), tmp_path, datasets)
    config = toy_config(total_steps=2, **{"evaluation.split": "test"})
    assert trainer.train(config, tmp_path, datasets)
