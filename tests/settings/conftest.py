"""Fixtures that train the toy network."""

import jax
import pytest

from encnet_jax.models.registry import BACKBONES, MODELS
from encnet_jax.run.model_config import check_config
from encnet_jax.train import trainer
from tests.settings.toy import (
    Finished,
    Recorded,
    ToyBackbone,
    ToyModel,
    flat,
    toy_config,
    toy_dataset,
)


@pytest.fixture
def toys(monkeypatch):
    """Registers the toy network."""
    monkeypatch.setitem(MODELS, "toy", ToyModel)
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


@pytest.fixture
def train_steps(toys, monkeypatch, tmp_path):
    """Returns a function that runs `train` for a few steps, and records them."""

    def run(steps=1, dataset=None, **changes):
        recorded = Recorded()
        make = trainer.make_train_step

        def make_recording(model_def, tx, info, **options):
            step_fn = make(model_def, tx, info, **options)

            def step(state, resident, batch):
                if not recorded.params:
                    recorded.params.append(flat(state.params))
                    recorded.resident = jax.device_get(resident)
                    recorded.augmentation = options["augmentation"]
                recorded.inputs.append(jax.device_get(batch))
                if not steps:
                    raise Finished
                state, metrics = step_fn(state, resident, batch)
                recorded.state = state
                recorded.params.append(flat(state.params))
                recorded.batch_stats.append(flat(state.batch_stats))
                recorded.metrics.append(jax.device_get(metrics))
                if len(recorded.metrics) == steps:
                    raise Finished
                return state, metrics

            return step

        config = toy_config(**changes)
        check_config(config)
        datasets = (dataset or toy_dataset(),) * 2
        if dataset == "files":  # those that the configuration names
            datasets = None
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "make_train_step", make_recording)
            with pytest.raises(Finished):
                trainer.train(config, tmp_path / "run", datasets)
        return recorded

    return run
