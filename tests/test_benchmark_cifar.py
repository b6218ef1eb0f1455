"""Tests of the benchmarks of the CIFAR classifiers, from start to end."""

import importlib.util
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import cifar_images
from benchmarks.cifar_images import encode_again, load_split, pack
from benchmarks.record import BenchmarkRecord
from encnet_jax.config import load_config
from encnet_jax.data.array_dataset import ArrayDataset, load_arrays
from encnet_jax.data.dataset_info import CIFAR10
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.run.state import split_model
from tests.commands import errors, run
from tests.random_module import random_module


def bench(name, *arguments):
    return run("-m", f"benchmarks.{name}", *arguments)


@pytest.mark.parametrize("name", ["resnet14", "se_resnet14", "encnet14"])
def test_network_in_torch_is_the_same(name):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_cifar import network

    model = random_module(create_model, name, num_classes=10, width=16, num_codes=3)
    model_def, params, batch_stats = split_model(model)
    images = np.random.default_rng(0).standard_normal((3, 8, 12, 3), np.float32)
    ours = jax.jit(lambda x, *arrays: model_def.merge(*arrays)(x).logits)
    theirs = network(name, 16, 3, jax.tree.map(np.asarray, params))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    actual = ours(images, params, batch_stats)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * abs(expected).max())


def test_candidates_are_compared_and_timed(tmp_path):
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
    fake_cifar = pytest.importorskip("tests.fake_cifar")
    return fake_cifar.prepare(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def images(cifar):
    """Returns the same data set as an .npz file."""
    path, arrays = cifar / "cifar.npz", {}
    for split in ("train", "test"):
        loaded = load_arrays(open_dataset("cifar10", split, str(cifar)))
        arrays |= {f"{split}_{name}": array for name, array in loaded.items()}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def packed(cifar):
    """Returns the same data set as the benchmark packs it."""
    path = cifar / "new folder" / "packed.npz"
    assert pack(path, str(cifar)) == path.stat().st_size
    return path


def test_packed_images_are_the_same(cifar, images, packed):
    for split in ("train", "test"):
        expected = load_split(split, str(cifar), None)
        for file in (images, packed):
            found = load_split(split, None, str(file))
            np.testing.assert_array_equal(found.images, expected.images)
            np.testing.assert_array_equal(found.labels, expected.labels)


def test_packing_into_a_file_as_folder_is_an_error_before_it_reads(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--pack=.*file"):
        pack(tmp_path / "file" / "packed.npz", str(tmp_path / "missing"))


def test_jpeg_files_share_their_tables(tmp_path, monkeypatch):
    colors = np.random.default_rng(0).integers(0, 256, (5, 3), np.uint8)
    images = np.broadcast_to(colors[:, None, None], (5, 32, 32, 3))
    files = []
    for image in images:
        files.append(io.BytesIO())
        Image.fromarray(image).save(files[-1], "JPEG", quality=75)

    class Files:
        def __len__(self):
            return len(files)

        def encoded(self, index):
            return files[index].getvalue(), np.uint8(index)

    monkeypatch.setattr(cifar_images, "open_dataset", lambda *_: Files())
    size = pack(tmp_path / "packed.npz", None)
    assert size < 0.9 * 2 * sum(len(file.getvalue()) for file in files)
    found = load_split("test", None, str(tmp_path / "packed.npz"))
    for index, file in enumerate(files):
        with Image.open(file) as image:
            np.testing.assert_array_equal(found.images[index], np.asarray(image))
    assert found.labels.tolist() == [0, 1, 2, 3, 4]


def test_images_are_encoded_again(images):
    dataset = load_split("test", None, str(images))
    found = encode_again(dataset, 50)
    for image, expected in zip(dataset.images, found.images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=50, subsampling=2)
        with Image.open(file) as decoded:
            np.testing.assert_array_equal(np.asarray(decoded), expected)
    np.testing.assert_array_equal(found.labels, dataset.labels)
    coarser = encode_again(dataset, 5)
    errors = [
        np.abs(other.images.astype(int) - dataset.images).mean()
        for other in (found, coarser)
    ]
    assert 0 < errors[0] < errors[1]


@pytest.mark.slow
def test_changed_runs_stand_beside_the_others(packed, tmp_path):
    arguments = "--models=encnet", "--seeds=3", f"--images={packed}"
    changes = "--jpeg_quality=50", "--dtype=float32", "--scale_init=scaled"
    first = runs(tmp_path, *arguments)
    assert first.returncode == 0, first.stderr
    second = runs(tmp_path, *arguments, *changes, "--minutes=9")
    assert second.returncode == 0, second.stderr
    found = json.loads((tmp_path / "cifar.json").read_text())
    changed = found["encnet scaled q50 float32 9 min"]["3"]
    assert found["encnet"]["3"]["curve"] != changed["curve"]
    assert changed["steps"] == 7  # all of them fit
    config = load_config(tmp_path / "encnet-scaled-q50-float32-9-min-3" / "config.json")
    assert config.model.scale_init == "scaled" and config.model.dtype == "float32"
    short = runs(tmp_path, *arguments, "--minutes=0.01")
    assert short.returncode == 2
    assert "error: --minutes=0.01: too short: 7 steps of " in errors(short)[-1]


@pytest.mark.parametrize("flag", ["dtype=float32", "scale_init=scaled", "minutes=9"])
def test_flag_that_torch_ignores_is_rejected(tmp_path, flag):
    result = runs(tmp_path, "--models=torch_encnet", f"--{flag}")
    assert result.returncode == 2
    name = flag.partition("=")[0]
    assert errors(result)[0].startswith(f"error: --{name}: not for the PyTorch")
    assert not list(tmp_path.iterdir())


def runs(results, *arguments):
    return bench(
        "cifar_runs",
        *("--models=resnet,encnet-drop", "--codes=2", "--steps=7", "--batch=20"),
        *(f"--output={results}", *arguments),
    )


@pytest.mark.slow
def test_runs_are_evaluated_and_not_repeated(cifar, images, tmp_path):
    results = tmp_path / "results"
    first = runs(results, "--seeds=3", f"--data_dir={cifar}")
    assert first.returncode == 0, first.stderr
    path = results / "cifar.json"
    found = json.loads(path.read_text())
    resnet, encnet = found["resnet"]["3"], found["encnet-drop"]["3"]
    assert resnet["parameters"] < encnet["parameters"]
    for row in (resnet, encnet):
        # Every sixth of the steps, rounded up, and the last step.
        assert [step for step, _ in row["curve"]] == [2, 4, 6, 7]
        assert row["error"] == row["curve"][-1][1]
        assert row["seconds_a_step"] > 0
    assert f"| {resnet['parameters']:,} | " in (results / "cifar.md").read_text()
    with Image.open(results / "cifar.png") as image:
        assert image.width > 600
    arguments = "--seeds=3,4", "--models=resnet", f"--images={images}"
    second = runs(results, *arguments)
    assert second.returncode == 0, second.stderr
    again = json.loads(path.read_text())
    assert again["resnet"]["3"] == resnet and again["encnet-drop"]["3"] == encnet
    assert "| 3, 4 |" in second.stdout
    assert "resnet 4 " in second.stdout and "resnet 3 " not in second.stdout


def test_runs_of_another_schedule_are_rejected(tmp_path):
    record = BenchmarkRecord(tmp_path / "cifar.json")
    record.start(resume=True)
    record.put("settings", "steps", 7)
    before = record.path.read_text()
    result = runs(tmp_path, "--steps=8")
    assert result.returncode == 2
    expected = f"--steps=8: the results in {record.path} have 7; give another --output"
    assert errors(result) == [f"error: {expected}"]
    assert record.data == json.loads(before)


@pytest.mark.slow
def test_seeds_of_a_network_have_as_many_steps_and_end_in_time(images, tmp_path):
    flags = "--models=resnet", f"--images={images}", "--minutes=10"
    (tmp_path / "cifar.json").write_text(
        json.dumps({"done": {}, "resnet 10 min": {"0": run_of(7)}})
    )
    result = runs(tmp_path, *flags, "--seeds=1")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "cifar.json").read_text())["resnet 10 min"]
    assert found["1"]["steps"] == 7  # although there was time for more
    assert "| resnet 10 min | " in result.stdout and " | 7 | " in result.stdout
    # Too late from the start, the run stops after its first steps and is not recorded.
    (tmp_path / "cifar.json").write_text(
        json.dumps({"done": {}, "resnet 0.001 min": {"0": run_of(100_000)}})
    )
    result = runs(tmp_path, *flags[:2], "--minutes=0.001", "--seeds=1")
    assert result.returncode == 1
    assert "--minutes are over; rerun the command to resume" in result.stdout
    assert not json.loads((tmp_path / "cifar.json").read_text())[
        "resnet 0.001 min"
    ].get("1")


def run_of(steps):
    """Returns what the results have of a run."""
    return dict(
        error=0.5, steps=steps, curve=[[steps, 0.5]], seconds_a_step=1, parameters=9
    )


def test_seeds_are_integers(tmp_path):
    result = runs(tmp_path, "--seeds=-1")
    assert result.returncode == 2
    assert errors(result) == ["error: --seeds=-1: must be integers of at least 0"]


@pytest.mark.slow
def test_torch_learns_and_its_runs_are_reported(images, tmp_path):
    pytest.importorskip("torch")
    result = runs(tmp_path, "--models=torch_encnet", "--steps=20", f"--images={images}")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "cifar.json").read_text())["torch_encnet"]
    for row in found.values():
        assert [step for step, _ in row["curve"]] == [4, 8, 12, 16, 20]
        assert row["error"] == row["curve"][-1][1] < 0.6  # 0.9 by chance
    assert f"| torch_encnet | {row['parameters']:,} | " in result.stdout


def test_variant_that_torch_lacks_is_rejected(tmp_path):
    result = runs(tmp_path, "--models=torch_encnet-drop")
    assert result.returncode == 2
    assert "--models=torch_encnet-drop: the PyTorch" in errors(result)[0]


def test_missing_torch_is_named(tmp_path):
    if importlib.util.find_spec("torch"):
        pytest.skip("torch is installed")
    result = runs(tmp_path, "--models=torch_encnet")
    assert result.returncode == 2
    assert errors(result)[0].startswith("error: --models=torch_encnet: needs torch")
    assert not list(tmp_path.iterdir())


def test_file_without_images_is_named(tmp_path):
    np.savez(tmp_path / "empty.npz", images=np.zeros(3))
    result = runs(tmp_path / "results", f"--images={tmp_path / 'empty.npz'}")
    assert result.returncode == 2
    assert "empty.npz: cannot read train_images and train_labels" in errors(result)[0]


def test_crops_in_torch_are_those_of_the_padded_image():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_cifar_runs import Images

    image = np.arange(1, 4 * 4 * 3 + 1, dtype=np.uint8).reshape(1, 4, 4, 3)
    data = Images(ArrayDataset(CIFAR10, image, np.zeros(1)), torch.device("cpu"))
    torch.manual_seed(0)
    crops = data.cropped(torch.zeros(300, dtype=torch.long), pad=1).numpy()
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    allowed = {
        padded[i : i + 4, j : j + 4][:, ::mirror].tobytes()
        for i in range(3)
        for j in range(3)
        for mirror in (1, -1)
    }
    assert {crop.tobytes() for crop in crops} == allowed
