"""The benchmarks of the CIFAR classifiers run to their end."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from encnet_jax.models import create_model
from encnet_jax.train_state import split_model
from tests.commands import errors, run
from tests.drawn import drawn


def bench(name, *arguments):
    return run("-m", f"benchmarks.{name}", *arguments)


@pytest.mark.parametrize("name", ["resnet14", "se_resnet14", "encnet14"])
def test_network_in_torch_is_the_same(name):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_cifar import network

    model = drawn(create_model, name, num_classes=10, width=16, num_codes=3)
    definition, params, stats = split_model(model)
    images = np.random.default_rng(0).standard_normal((3, 8, 12, 3), np.float32)
    ours = jax.jit(lambda *arrays: definition.merge(*arrays)(images).logits)
    theirs = network(name, 16, 3, jax.tree.map(np.asarray, params))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    actual = ours(params, stats)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * abs(expected).max())


def test_sides_are_compared_and_timed(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "cifar.json"
    result = bench(
        "cifar",
        *("--models=resnet14", "--width=16", "--batch=2"),
        *("--rounds=1", "--seconds=0", "--nocompile", f"--output={path}"),
    )
    assert result.returncode == 0, result.stderr
    assert "largest difference of logits" in result.stdout
    found = json.loads(path.read_text())
    assert found["settings"]["batch"] == 2
    rates = found["images_per_second"]["resnet14"]
    assert rates.keys() == {"encnet_jax", "augmented", "torch"}
    ratio = rates["encnet_jax"] / rates["torch"]
    cells = " | ".join(f"{rate:.1f}" for rate in rates.values())
    assert f"| resnet14 | {cells} | {ratio:.2f} |" in result.stdout


def test_unknown_model_is_named():
    pytest.importorskip("torch")
    result = bench("cifar", "--models=resnet18")
    assert result.returncode == 2
    allowed = "allowed are resnet14, se_resnet14, encnet14"
    assert errors(result) == [f"error: --models=resnet18: {allowed}"]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    made_up = pytest.importorskip("tests.made_up_cifar")
    return made_up.prepare(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "results"


def runs(cifar, results, *arguments):
    return bench(
        "cifar_runs",
        *("--models=resnet,encnet-drop", "--codes=2", "--steps=7", "--batch=20"),
        *(f"--data_dir={cifar}", f"--output={results}", *arguments),
    )


def test_runs_are_scored_and_not_made_again(cifar, results):
    first = runs(cifar, results, "--seeds=3")
    assert first.returncode == 0, first.stderr
    path = results / "cifar.json"
    found = json.loads(path.read_text())
    resnet, encnet = found["resnet"]["3"], found["encnet-drop"]["3"]
    assert resnet["parameters"] < encnet["parameters"]
    for row in (resnet, encnet):
        # A sixth of the steps, rounded up, and the last one.
        assert [step for step, _ in row["curve"]] == [2, 4, 6, 7]
        assert row["error"] == row["curve"][-1][1]
        assert row["seconds_a_step"] > 0
    assert f"| {resnet['parameters']:,} | " in (results / "cifar.md").read_text()
    with Image.open(results / "cifar.png") as picture:
        assert picture.width > 600
    second = runs(cifar, results, "--seeds=3,4", "--models=resnet")
    assert second.returncode == 0, second.stderr
    again = json.loads(path.read_text())
    assert again["resnet"]["3"] == resnet and again["encnet-drop"]["3"] == encnet
    assert "| 3, 4 |" in second.stdout
    assert "resnet 4 " in second.stdout and "resnet 3 " not in second.stdout


def test_runs_of_another_schedule_are_refused(cifar, results):
    result = runs(cifar, results, "--steps=8")
    assert result.returncode == 2
    assert "--steps=8: the runs in " in errors(result)[0]
    assert "have 7; give another --output" in errors(result)[0]
