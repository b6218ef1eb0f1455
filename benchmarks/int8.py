"""int8 on CPU: mean IoU and speed of exported graphs, float32 and int8, beside ours.

    python -m benchmarks.int8 --workdir=runs/NAME [--workdir=...] [--output=FILE]

From uint8 images at their own size to labels, one image per call, with all threads that
the process may use (limit them with `taskset`). The graph is that of `encnet export
--format=onnx --size=...`; its int8 form is calibrated on images of the training split.
Mean IoU is over a split; the times of all candidates are taken in turns. Calibration
methods are compared on the split that the training evaluates, with fewer images, as two
of the three keep all activations in memory. Needs the extras `bench` and `export`; for
speeds, idle cores. --output=FILE stores results and resumes from them.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import onnxruntime
import openvino
from absl import flags

from benchmarks.record import BenchmarkRecord
from benchmarks.timing import Candidate, medians
from encnet_jax import cli
from encnet_jax.config import load_config
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from encnet_jax.export.formats import write_onnx
from encnet_jax.export.input_size import crop_resizer
from encnet_jax.export.quantize import quantize
from encnet_jax.export.run import load_trained
from encnet_jax.inference.predict_fn import make_predict_fn
from encnet_jax.metrics import confusion_matrix_np, segmentation_metrics
from encnet_jax.run.workdir import load_workdir

_WORKDIRS = flags.DEFINE_multi_string(
    "workdir", None, "Folder of a run; may be repeated.", required=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "By default that of the training.")
_SPLIT = flags.DEFINE_string("split", "test", "Where mean IoU is measured.")
_IMAGES = flags.DEFINE_integer("images", 0, "Images of a split; 0: all.", 0)
_CALIBRATION = flags.DEFINE_integer("calibration_images", 64, "Images.", 1)
_METHOD_IMAGES = flags.DEFINE_integer(
    "method_images", 16, "Calibration images where methods are compared; 0: none.", 0
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each candidate; 0: no speeds.", 0)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Duration of a turn.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
THREADS = len(os.sched_getaffinity(0))
OURS = "encnet_jax"
METHODS = ("MinMax", "Percentile", "Entropy")

LabelFn = Callable[[np.ndarray], np.ndarray]  # (1, h, w, 3) -> (1, h, w)


class Network(NamedTuple):
    """A trained network as graphs for one size of image."""

    workdir: Path
    dataset: Dataset
    float32: Path
    int8: Path
    size: tuple[int, int]

    def candidates(self) -> dict[str, LabelFn]:
        run = load_workdir(self.workdir, dtype="float32")
        info = run.info
        return {
            OURS: make_predict_fn(run.model, mean=info.mean, std=info.std),
            "ONNX Runtime": onnx_runtime(self.float32),
            "OpenVINO": open_vino(self.float32),
            "ONNX Runtime int8": onnx_runtime(self.int8),
            "OpenVINO int8": open_vino(self.int8),
        }


def onnx_runtime(path: Path) -> LabelFn:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = THREADS
    settings.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        path, settings, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["labels"], {"images": images})[0]


def open_vino(path: Path) -> LabelFn:
    graph = openvino.Core().read_model(path)
    # Without the outputs that nobody asks for.
    labels = openvino.Model([graph.output("labels")], graph.get_parameters())
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS}
    compiled = openvino.compile_model(labels, "CPU", options)
    return lambda images: compiled(images)[0]


def open_split(workdir: Path, split: str) -> Dataset:
    config = load_config(workdir / "config.json")
    data_dir = _DATA_DIR.value or config.data.data_dir
    return open_dataset(config.data.name, split, data_dir, in_memory=True)


def some_images(dataset: Dataset, count: int) -> list[np.ndarray]:
    """Returns `count` images, evenly spaced; fewer if there are no more."""
    count = min(count, len(dataset))
    return [dataset[i * len(dataset) // count].image for i in range(count)]


def export(workdir: Path, split: str, folder: Path) -> Network:
    """Writes the float32 and int8 graphs for images of the size of a split's first."""
    dataset = open_split(workdir, split)
    height, width, _ = dataset[0].image.shape
    float32, int8 = folder / "float32.onnx", folder / "int8.onnx"
    shape = jax.ShapeDtypeStruct((1, height, width, 3), np.uint8)
    write_onnx(load_trained(workdir).predict, shape, float32)
    network = Network(workdir, dataset, float32, int8, (height, width))
    quantize(float32, int8, calibration_images(network, _CALIBRATION.value))
    return network


def calibration_images(network: Network, count: int) -> list[np.ndarray]:
    config = load_config(network.workdir / "config.json")
    dataset = open_split(network.workdir, config.data.train_split or "train")
    return [crop_resizer(network.size)(i) for i in some_images(dataset, count)]


def mean_iou(
    label: LabelFn, dataset: Dataset, reference: Sequence[np.ndarray] | None = None
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Returns the scores of labels, and the labels.

    Args:
        label: What is scored.
        dataset: The split, of images of one size.
        reference: Labels with which those found are compared.
    """
    classes = dataset.info.num_classes
    matrix = np.zeros((classes, classes), np.int64)
    found = []
    for index in range(min(len(dataset), _IMAGES.value or len(dataset))):
        example = dataset[index]
        labels = np.asarray(label(example.image[None]))[0]
        matrix += confusion_matrix_np(example.labels, labels, classes)
        found.append(labels.astype(np.uint8))
    row = {"mean_iou": float(segmentation_metrics(matrix)["mean_iou"])}
    if reference is not None:
        same = [np.mean(a == b) for a, b in zip(found, reference, strict=True)]
        row["agreement"] = float(np.mean(same))
    return {**row, "images": len(found)}, found


def measure(record: BenchmarkRecord, network: Network) -> None:
    """Measures what the file lacks of a network."""
    name = network.workdir.name
    candidates = network.candidates()
    wanted = [c for c in candidates if not record.has("mean_iou", f"{name}, {c}")]
    reference = None
    if wanted:
        ours, reference = mean_iou(candidates[OURS], network.dataset)
    for candidate in wanted:
        if candidate == OURS:
            row = {**ours, "agreement": 1.0}
        else:
            row, _ = mean_iou(candidates[candidate], network.dataset, reference)
        record.put("mean_iou", f"{name}, {candidate}", row)
        print(name, candidate, row, flush=True)
    if _ROUNDS.value and not record.has("seconds", name):
        image = network.dataset[0].image[None]
        turns = {
            key: Candidate(lambda label=label: label(image), jax.block_until_ready)
            for key, label in candidates.items()
        }
        times = medians(turns, rounds=_ROUNDS.value, seconds=_SECONDS.value)
        height, width = network.size
        facts = {"height": height, "width": width, "threads": THREADS}
        # Others at work on the same cores show here.
        facts["load"] = os.getloadavg()[0]
        record.put("seconds", name, {**times, **facts})


def compare_methods(record: BenchmarkRecord, network: Network) -> None:
    """Scores the calibration methods on the split that the training evaluates."""
    name, count = network.workdir.name, _METHOD_IMAGES.value
    rows = {method: f"{name}, {method}, {count} images" for method in METHODS}
    missing = [m for m in METHODS if count and not record.has("methods", rows[m])]
    if not missing:
        return
    config = load_config(network.workdir / "config.json")
    dataset = open_split(network.workdir, config.evaluation.split)
    images = calibration_images(network, count)
    _, reference = mean_iou(onnx_runtime(network.float32), dataset)
    for method in missing:
        path = network.int8.with_name(f"{method}.onnx")
        quantize(network.float32, path, images, method)
        row, _ = mean_iou(onnx_runtime(path), dataset, reference)
        row["split"] = config.evaluation.split
        record.put("methods", rows[method], row)
        print(rows[method], row, flush=True)


def table(data: dict[str, dict[str, Any]]) -> str:
    """Formats mean IoU in percent and milliseconds per image as Markdown."""
    lines = [
        "| network | computed by | mean IoU | labels as ours | ms per image | speed |",
        "|---|---|---|---|---|---|",
    ]
    for key, row in data.get("mean_iou", {}).items():
        name, candidate = key.rsplit(", ", 1)
        times = data.get("seconds", {}).get(name)
        cells = [f"{100 * row['mean_iou']:.1f}", f"{100 * row['agreement']:.1f} %"]
        if times:
            seconds = times[candidate]
            cells += [f"{1e3 * seconds:.1f}", f"{times[OURS] / seconds:.2f}×"]
        else:
            cells += ["", ""]
        lines.append(f"| {name} | {candidate} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _check_names(workdirs: Sequence[str]) -> None:
    """Raises `UserError` for two folders of one name, which the results go by."""
    names = [Path(workdir).name for workdir in workdirs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--workdir: two folders are named {name}; rename one")


def main(arguments: list[str]) -> None:
    """Measures what the file lacks and prints everything."""
    cli.reject_positional(arguments)
    with tempfile.TemporaryDirectory() as name:
        path = Path(_OUTPUT.value or Path(name) / "int8.json")
        record = BenchmarkRecord(path)
        record.start(resume=True)
        record.check_settings(
            {flag.name: flag.value for flag in (_SPLIT, _IMAGES, _CALIBRATION)}
        )
        _check_names(_WORKDIRS.value)
        for number, run in enumerate(_WORKDIRS.value):
            workdir = cli.run_folder(run)
            trained = load_trained(workdir)
            run_step = [str(workdir.resolve()), trained.training["step"]]
            record.check_settings({f"workdir, {workdir.name}": run_step})
            if trained.info.task != "segmentation":
                raise UserError(f"--workdir={run}: classifies; a segmenter is needed")
            folder = Path(name) / str(number)
            folder.mkdir()
            network = export(workdir, _SPLIT.value, folder)
            measure(record, network)
            compare_methods(record, network)
        print(table(record.data))


if __name__ == "__main__":
    cli.run(main)
