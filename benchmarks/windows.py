"""Evaluation in windows on an accelerator, beside plain PyTorch on the same one."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import compiled as programs
from benchmarks.record import BenchmarkRecord
from benchmarks.timing import Candidate, medians
from encnet_jax.data.dataset_info import ADE20K
from encnet_jax.data.datasets import Example
from encnet_jax.evaluate.accumulator import ImageMetrics, MetricAccumulator
from encnet_jax.evaluate.evaluator import (
    Examples,
    ImagePrediction,
    PredictBatchesFn,
    predict_dataset,
    predict_windows,
)
from encnet_jax.inference.folding import InferenceModel
from encnet_jax.inference.sliding_window import make_score_fn
from encnet_jax.inference.tta import PyTorchEncodingProtocol
from encnet_jax.run.sharding import mesh_of, replicated
from encnet_jax.run.state import PureDict, split_model

BASE, CROP = 520, 480
_SIZES = ((512, 683), (683, 512), (480, 640), (375, 500))  # common in ADE20K


class Images:
    """Upsampled noise with blockwise labels."""

    info = ADE20K

    def __init__(self, count: int):
        rng = np.random.default_rng(0)
        self.examples = []
        for index in range(count):
            h, w = _SIZES[index % len(_SIZES)]
            low_res = rng.integers(0, 256, (h // 16 + 1, w // 16 + 1, 3), np.uint8)
            image = low_res.repeat(16, 0).repeat(16, 1)[:h, :w]
            blocks = rng.integers(0, 150, (h // 64 + 1, w // 64 + 1))
            labels = blocks.repeat(64, 0).repeat(64, 1)[:h, :w].astype(np.uint8)
            self.examples.append(Example(np.ascontiguousarray(image), labels, ""))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def encoding_protocol(scales: Sequence[float]) -> PyTorchEncodingProtocol:
    """Returns PyTorch-Encoding's protocol on ADE20K, mirrored."""
    return PyTorchEncodingProtocol(
        base_size=BASE,
        crop_size=CROP,
        scales=scales,
        flip=True,
        stride=0,
        align_corners=True,
        mean=ADE20K.mean,
        std=ADE20K.std,
    )


def evaluate(
    predict_batches: PredictBatchesFn, arrays: Any, dataset: Images, batch: int
) -> dict[str, Any]:
    """Returns the metrics of a data set by encnet_jax."""
    accumulator = MetricAccumulator(len(dataset), 150)
    for prediction in predict_dataset(
        predict_batches, *arrays, dataset, batch_size=batch
    ):
        accumulator.add(ImageMetrics.of(prediction, 150))
    return accumulator.over_hosts().results("skip")


def measure(
    record: BenchmarkRecord,
    torch_side: Any,
    *,
    backbone: str,
    images: int,
    scales: Sequence[float],
    batch: int,
    rounds: int,
) -> None:
    """Measures PyTorch-Encoding's protocol on both sides, from images to metrics.

    Weights are random: `benchmarks.evaluation` compares what both sides find. They are
    on the device before anything is timed, ours with the batch norms folded in, which
    happens once per evaluation. Ours is measured alone first, as `measurements` does.
    PyTorch runs eagerly.

    Args:
        record: Where to.
        torch_side: A `Torch`, or None to measure ours alone.
        backbone: See `create_model`.
        images: Images, of four sizes frequent in ADE20K.
        scales: See `PyTorchEncodingProtocol`.
        batch: Windows and mirror images that pass our network at once.
        rounds: See `medians`.
    """
    dataset = Images(images)

    def put(name: str, seconds: float, **more: str) -> None:
        row = dict(candidate=name, images_per_second=images / seconds, images=images)
        record.put("windows", f"{backbone} {name}", {**row, **more})

    # Results are NumPy: a call returns when all of it is done.
    ours = Candidate(_ours(backbone, scales, batch, dataset), _done)
    put("jax", medians({"jax": ours}, rounds=rounds, seconds=0)["jax"])
    if torch_side is None:
        return
    evaluate_in_torch = torch_side.windows(backbone, scales)
    theirs = Candidate(lambda: evaluate_in_torch(dataset), _done)
    both = medians({"jax": ours, "torch": theirs}, rounds=rounds, seconds=0)
    put("jax", both["jax"])
    put("torch", both["torch"], torch="eager")
    record.put("ratios", f"windows {backbone}", both["torch"] / both["jax"])


def _ours(backbone: str, scales: Sequence[float], batch: int, dataset: Images) -> Any:
    """Returns the evaluation of a network of random weights."""
    settings = dict(backbone=backbone, aux_head=False)
    model = programs.encnet(jnp.bfloat16, settings)
    _, *shapes = split_model(model)
    folded = InferenceModel(model)
    mesh = mesh_of(jax.local_devices()[:1])
    arrays = jax.device_put(
        folded.arrays(*programs.random_arrays(tuple(shapes))), replicated(mesh)
    )
    protocol = encoding_protocol(scales)
    classes = ADE20K.num_classes
    scores_of = make_score_fn(folded.model_def, classes, protocol, mesh)

    def predict(
        params: PureDict, batch_stats: PureDict, examples: Examples, batch_size: int
    ) -> Iterator[ImagePrediction]:
        return predict_windows(scores_of, params, batch_stats, examples, batch_size)

    return lambda: evaluate(predict, arrays, dataset, batch)


def _done(result: Any) -> Any:
    return result
