"""The benchmarks run to their end, and time what they say."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import measurements, timing
from benchmarks.compiled import largest_batch
from encnet_jax.convert.load import load_torch_weights
from encnet_jax.data.dataset_info import SCENES
from encnet_jax.models import create_model
from tests.commands import ROOT, environment, errors, run
from tests.random_module import random_module
from tests.small_workdir import TINY, write_workdir


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Returns a function that runs a benchmark where TensorFlow cannot be imported."""
    without = tmp_path_factory.mktemp("without")
    (without / "tensorflow.py").write_text("raise ImportError('not installed')\n")
    env = {**environment(), "PYTHONPATH": f"{without}:{ROOT}"}

    def run(name, *arguments):
        return subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=1000,
        )

    return run


@pytest.fixture(scope="module")
def measured(bench, tmp_path_factory):
    """Returns the output and the path of the file of a small run."""
    path = tmp_path_factory.mktemp("results") / "folder" / "small.json"
    result = bench(
        "accelerator", "--small", "--torch=none", "--minutes=15", f"--output={path}"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, path


@pytest.mark.slow
def test_small_run_has_every_measurement(measured):
    printed, path = measured
    found = json.loads(path.read_text())
    assert found["left_out"] == found["failed"] == {}
    assert found["device"]["small"] is True
    assert found["device"]["jax"] == jax.__version__
    assert found["device"]["torch"] == "not asked for"
    assert found["device"]["products_per_second"] > 0
    layers = {**found["dilated_stages"], "encoding": found["encoding"]["jax"]}
    assert layers.keys() == {"lax", "space_to_batch", "encoding"}
    for times in layers.values():
        assert times["forward_ms"] > 0 and times["gradients_ms"] > 0
    rows = found["networks"]
    assert {row["work"] for row in rows.values()} == {"inference", "training"}
    for row in rows.values():
        assert row["images_per_second"] > 0 and row["share"] > 0
        assert row["peak_bytes"] > 2**20
        assert f"| tiny 32x48 | {row['work']} | 2 | jax | " in printed


@pytest.mark.slow
def test_resumed_run_measures_nothing_again(bench, measured):
    _, path = measured
    before = json.loads(path.read_text())
    result = bench("accelerator", "--small", "--resume", f"--output={path}")
    assert result.returncode == 0, result.stderr
    assert json.loads(path.read_text()) == before


def test_what_there_is_no_time_for_is_left_out_and_named(bench, tmp_path):
    path = tmp_path / "none.json"
    result = bench("accelerator", "--small", "--minutes=0", f"--output={path}")
    assert result.returncode == 0, result.stderr
    left_out = json.loads(path.read_text())["left_out"]
    networks = {"tiny-32x48 inference", "tiny-32x48 training"}
    assert left_out.keys() == networks | {"windows", "layers"}
    for part in left_out:
        assert f"{part}: left out, not done after 0 seconds" in result.stdout


def test_results_are_not_lost_nor_mixed_with_those_of_another_device(bench, tmp_path):
    path = tmp_path / "h100.json"
    device = {"device": "NVIDIA H100", "small": True}
    stored = {"done": {"layers": True}, "device": device, "encoding": {}}
    path.write_text(json.dumps(stored))
    for flags, message in (
        ([], f"{path}: has results; --resume keeps them, or name another --output"),
        (["--resume"], f"{path}: has results with device='NVIDIA H100', here it is "),
    ):
        result = bench("accelerator", "--small", *flags, f"--output={path}")
        assert result.returncode == 2
        assert errors(result)[0].startswith(f"error: {message}")
        found = json.loads(path.read_text())
        assert found["done"] == stored["done"] and found["device"] == device
    path.write_text("notes")
    result = bench("accelerator", "--small", "--resume", f"--output={path}")
    assert errors(result) == [f"error: {path}: not a file of results; name another"]
    assert path.read_text() == "notes"


def test_full_sizes_need_an_accelerator(bench, tmp_path):
    result = bench("accelerator", f"--output={tmp_path / 'cpu.json'}")
    assert result.returncode == 2
    assert errors(result) == [
        "error: no accelerator: JAX sees only the CPU; allowed is --small"
    ]


@pytest.mark.slow
def test_memory_falls_with_the_parts_of_a_batch(bench, tmp_path):
    path = tmp_path / "memory.json"
    # One after the other: the second run keeps the row of the first.
    for name in ("float32-keep-1", "float32-keep-4"):
        options = ("--small", "--batches=4", f"--only={name}", f"--output={path}")
        result = bench("memory", *options)
        assert result.returncode == 0, result.stderr
        assert f"| {name} | 4 | " in result.stdout
    rows = {k: v["4"] for k, v in json.loads(path.read_text())["bytes"].items()}
    whole, parts = rows["float32-keep-1"], rows["float32-keep-4"]
    assert parts["temporary"] < 0.5 * whole["temporary"]
    assert parts["arguments"] == whole["arguments"]
    # The state is donated: its room is counted once.
    for row in rows.values():
        assert row["peak"] < row["arguments"] + row["outputs"] + row["temporary"]


def test_largest_batch_is_worked_out_by_hand():
    # 2 GB and 0.5 GB an image: 16 images take 10 GB, 156 take 80.
    peaks = {8: 6 * 10**9, 16: 10 * 10**9}
    assert largest_batch(peaks, 80e9, unit=1) == 156
    assert largest_batch(peaks, 80e9, unit=8) == 152
    assert largest_batch(peaks, 2.4e9, unit=1) == largest_batch(peaks, 1e9, 1) == 0
    assert largest_batch({8: 6 * 10**9}, 80e9, unit=1) is None


_MISTAKES = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from benchmarks import {module}
from encnet_jax.errors import UserError
for options in json.loads(sys.argv[1]):
    with flagsaver.flagsaver():
        try:
            {module}.main(flags.FLAGS(["x", *options])[1:])
            print("said: nothing")
        except (UserError, flags.Error) as error:
            print("said:", *str(error).splitlines())
"""


@pytest.fixture
def mistakes():
    """Returns a function: what a benchmark says to several lines of flags."""

    def mistakes(module, lines):
        result = run("-c", _MISTAKES.format(module=module), json.dumps(lines))
        assert result.returncode == 0, result.stderr
        output = result.stdout.splitlines()
        said = [line[6:] for line in output if line.startswith("said: ")]
        assert len(said) == len(lines)
        return said

    return mistakes


def test_mistakes_in_the_flags_of_memory_are_named(mistakes, bench):
    cases = [
        (["--only=float16"], "--only=float16: allowed are float32-keep-1, "),
        (["--devices=2"], "--devices=2: only with a --target"),
        (["--batches=8,x"], "--batches=8,x: allowed are positive multiples of"),
        (["--batches=8,18"], "of --devices=1 times the 4 parts of a batch"),
        (["--batches=4,8,12"], "--batches=4,8,12: must be one or two numbers"),
        (["--devices=0"], "--devices=0: 0 is not a positive integer"),
        (["--output=missing/memory.json"], "no such folder"),
        (["--output=pyproject.toml"], "exists, with no such results"),
    ]
    for found, (_, message) in zip(mistakes("memory", [c[0] for c in cases]), cases):
        assert message in found
    result = bench("memory", *cases[0][0])
    assert result.returncode == 2 and cases[0][1] in errors(result)[0]


def test_course_of_a_run_has_the_errors_of_its_evaluations_alone(bench, tmp_path):
    lines = [{"step": step, "loss": 1 / step, "error": 0.9} for step in range(1, 5)]
    lines.append({"step": 4, "error": 0.25, "accuracy": 0.75})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    program = (
        "import json, pathlib, sys\n"
        "from benchmarks.curves import read\n"
        "print(json.dumps(read(pathlib.Path(sys.argv[1]))))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    losses, scores = json.loads(found.stdout)
    assert losses == [[1, 1.0], [2, 0.5], [3, 1 / 3], [4, 0.25]]
    assert scores == {"mean_iou": [], "error": [[4, 0.25]]}
    picture = tmp_path / "run.png"
    result = bench("plot_run", f"--output={picture}", tmp_path)
    assert result.returncode == 0, result.stderr
    assert picture.stat().st_size > 0


def test_mistakes_in_the_flags_of_scenes_are_named(mistakes, tmp_path):
    cases = [
        ("--only=resnet", "--only=resnet: allowed are fcn; pooling; encnet, no SE"),
        ("--seeds=0,x", "--seeds=x: must be integers of at least 0"),
        ("--steps=5", "--steps=5: the results have 600 steps of fcn, seed 0; give"),
    ]
    results = tmp_path / "ablation.json"
    results.write_text('{"fcn": {"0": {"mean_iou": 0.2, "steps": 600}}}')
    before = results.read_text()
    lines = [[f"--output={tmp_path}", flag] for flag, _ in cases]
    for found, (_, message) in zip(mistakes("scenes_ablation", lines), cases):
        assert found.startswith(message)
    assert results.read_text() == before


def test_bars_of_scenes_have_the_deviation_of_a_sample(tmp_path):
    program = (
        "import json, pathlib, sys\n"
        "from unittest import mock\n"
        "from matplotlib import pyplot\n"
        "from benchmarks.scenes_ablation import plot\n"
        "fcn = {n: {'mean_iou': n / 10, 'small': n / 10} for n in (1, 2, 6)}\n"
        "with mock.patch.object(pyplot.Axes, 'errorbar') as drawn:\n"
        "    plot({'fcn': fcn, 'pooling': {'0': fcn[1]}}, pathlib.Path(sys.argv[1]))\n"
        "print(json.dumps([call.args[1:3] for call in drawn.call_args_list]))\n"
    )
    result = run("-c", program, tmp_path / "plot.png")
    assert result.returncode == 0, result.stderr
    # The FCN is a bar of three panels: mean 30, squares 400, 100 and 900 over 3 - 1.
    # The single seed of pooling has no deviation.
    expected = [[30, 700**0.5]] * 3
    np.testing.assert_allclose(json.loads(result.stdout), expected)


@pytest.mark.slow
def test_run_on_scenes_is_recorded_and_nothing_else_touched(bench, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    flags = f"--output={tmp_path}", "--seeds=0", "--steps=2"
    result = bench("scenes_ablation", "--only=fcn", "--only=K 2", *flags)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "ablation.json").read_text())
    assert found["fcn"]["0"]["steps"] == 2 and 0 <= found["K 2"]["0"]["mean_iou"] < 0.2
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {
        *("run", "ablation.json", "ablation.md", "ablation.png")
    }


_START_OF_CODEWORDS = """
import json, pathlib, sys
from benchmarks import codeword_start
from configs.scenes import get_config
from encnet_jax.data.dataset_info import SCENES
from encnet_jax.data.datasets import SyntheticScenes
from encnet_jax.train import train

def config():
    config = get_config()
    config.total_steps, config.batch_size, config.log_every = 3, 4, 1
    return config

dataset = SyntheticScenes(SCENES, "train")
dataset.size = 12
codeword_start.get_config = config
codeword_start.SyntheticScenes = lambda *_: dataset
start = {"scale_init": "scaled"}
figures = codeword_start.first_steps(start, codes=4, steps=3)
config = config()
config.data.cache_on_device = True
config.model.update({**start, "num_codes": 4, "dtype": "float32"})
train(config, pathlib.Path(sys.argv[1]), (dataset, dataset))
print(json.dumps(figures))
"""


@pytest.mark.slow
def test_codewords_start_as_in_a_training(tmp_path):
    result = run("-c", _START_OF_CODEWORDS, tmp_path / "work")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    lines = (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    # By the same batches, mirrored alike, and the same dropout.
    assert len(losses) == 3
    np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
    # Behind batch norm and ReLU the mean square is a half; the codewords are near 0.
    assert 0.4 < found["features"][0] < 0.6
    np.testing.assert_allclose(found["features"][0], found["squares"][0], rtol=0.05)
    names = ("gradient_least", "gradient_median", "gradient_largest", "reached")
    for least, median, largest, reached in zip(*(found[name] for name in names)):
        assert 0 < least < median < largest
        assert (reached == 1) == (least >= largest / 10)


def test_sides_take_turns_and_the_median_counts(monkeypatch):
    now, log = 0.0, []

    def candidate(name, durations):
        durations = iter(durations)

        def call():
            nonlocal now
            now += next(durations)
            log.append(name)

        return timing.Candidate(call, lambda result: None)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    # Two calls to warm up, the second of which says how many make a turn. The first of
    # a turn (70) does not count.
    candidates = {
        "slow": candidate("slow", [9, 4, 70, 1, 70, 8, 70, 3]),
        "quick": candidate("quick", [9, 2, 70, 1, 3, 70, 5, 5, 70, 1, 1]),
    }
    assert timing.medians(candidates, rounds=3, seconds=4) == {"slow": 3, "quick": 2}
    assert log[4:] == (["slow"] * 2 + ["quick"] * 3) * 3


def test_driver_is_not_known_without_nvidia_smi(monkeypatch):
    client = SimpleNamespace(platform_version="PJRT C API\n  cuda 13000")
    device = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100", client=client)

    def missing(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(measurements.subprocess, "run", missing)
    facts = measurements.device_facts()
    assert facts["device"] == "NVIDIA H100"
    assert facts["runtime"] == "PJRT C API cuda 13000"
    assert facts["driver"] == "not known"


@pytest.fixture(scope="module")
def networks():
    """Returns the plain network in torch, and ours with its weights."""
    pytest.importorskip("torch")
    from benchmarks.torch_encnet import random_weights
    from benchmarks.torch_training import TrainedEncNet

    theirs = TrainedEncNet("tiny", 5)
    ours = random_module(create_model, "encnet", num_classes=5, backbone="tiny")
    load_torch_weights(ours, random_weights(theirs), "pytorch_encoding")
    return ours, theirs


def test_network_in_torch_is_the_same(networks):
    import torch

    ours, theirs = networks
    image = np.random.default_rng(0).standard_normal((1, 33, 49, 3), np.float32)
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        logits, presence, _ = theirs(torch.from_numpy(image).permute(0, 3, 1, 2))
    graphdef, state = nnx.split(ours)
    output = jax.jit(lambda s, x: nnx.merge(graphdef, s)(x))(state, image)
    for actual, expected in (
        (output.logits, logits.permute(0, 2, 3, 1)),
        (output.se_logits, presence),
    ):
        expected = expected.numpy()
        np.testing.assert_allclose(actual, expected, atol=1e-4 * abs(expected).max())


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_networks_have_as_many_weights_as_those_in_torch(backbone):
    import torch

    from benchmarks.torch_training import TrainedEncNet

    with torch.device("meta"):
        theirs = sum(p.numel() for p in TrainedEncNet(backbone).parameters())
    ours = nnx.eval_shape(
        lambda: create_model("encnet", num_classes=150, backbone=backbone)
    )
    params = jax.tree.leaves(nnx.state(ours, nnx.Param))
    assert theirs == sum(leaf.size for leaf in params)


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
@pytest.mark.parametrize("work", ["training", "inference"])
def test_torch_side_runs(work):
    from benchmarks.torch_training import Torch

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 150, (2, 32, 32), np.int32)
    candidate = Torch("cpu", compiled=False).candidate(work, "tiny", images, labels)
    first, second = candidate.call(), candidate.call()
    if work == "inference":
        assert first.shape == (2, 32, 32)
    else:
        assert first.item() > 0 and second.item() != first.item()


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
def test_encoding_is_compared_with_its_literal_forms(bench, tmp_path):
    sizes = ("--batch=1", "--pixels=40", "--codes=3", "--channels=8")
    timing = ("--rounds=1", "--seconds=0.001", f"--output={tmp_path / 'out.json'}")
    result = bench("encoding", *sizes, *timing)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out.json").read_text())["done"]
    assert found.keys() == {"40, 32", "3600, 3"}
    for forms in found.values():
        assert forms.keys() == {
            "encnet_jax",
            "naive_reference",
            "naive_reference torch",
        }
        for row in forms.values():
            assert row["forward"] > 0 and row["gradients"] > 0 and row["error"] < 1e-5


@pytest.mark.slow
def test_int8_is_compared_with_float32(bench, tmp_path):
    pytest.importorskip("openvino")
    workdir, path = tmp_path / "run", tmp_path / "int8.json"
    workdir.mkdir()
    evaluation = {"split": "validation"}
    write_workdir(workdir, **TINY, info=SCENES, evaluation=evaluation)
    arguments = [f"--workdir={workdir}", f"--output={path}", "--images=2", "--rounds=1"]
    arguments += ["--calibration_images=2", "--method_images=1", "--seconds=0.1"]
    result = bench("int8", *arguments)
    assert result.returncode == 0, result.stderr
    assert "| run | OpenVINO int8 | " in result.stdout
    found = json.loads(path.read_text())
    rows = found["mean_iou"]
    assert len(rows) == 5 and len(found["methods"]) == 3
    for candidate in ("ONNX Runtime", "OpenVINO"):
        assert rows[f"run, {candidate}"]["agreement"] > 0.999
        assert 0.5 < rows[f"run, {candidate} int8"]["agreement"] < 1
        assert found["seconds"]["run"][f"{candidate} int8"] > 0
    resumed = bench("int8", *arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(path.read_text()) == found
