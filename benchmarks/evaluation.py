"""Multi-scale evaluation against plain PyTorch: python -m benchmarks.evaluation.

EncNet-50 with 150 classes and windows of 480 pixels under PyTorch-Encoding's protocol.
Both candidates have the same weights and images; outputs are compared first, then runs
are interleaved. Also prints the share of time spent outside the network: resizing,
accumulation, arg max and the confusion matrix. Needs the extra `bench`.
"""

import functools
import math
import os
import time

import jax
import numpy as np
import torch
from absl import flags
from flax import nnx
from torch.nn import functional as F

from benchmarks.torch_encnet import EncNet, random_weights
from encnet_jax import cli
from encnet_jax.convert.load import load_torch_weights
from encnet_jax.data.dataset_info import ADE20K
from encnet_jax.data.datasets import Example
from encnet_jax.evaluate.accumulator import ImageMetrics, MetricAccumulator
from encnet_jax.evaluate.evaluator import make_window_fn, predict_dataset
from encnet_jax.inference.folding import InferenceModel
from encnet_jax.inference.score_map import ScoreMapPool, ScoreMapSharding
from encnet_jax.inference.sliding_window import (
    add_hflip,
    merge_hflip,
    run_sliding_window,
)
from encnet_jax.inference.tta import PyTorchEncodingProtocol
from encnet_jax.metrics import confusion_matrix_np, segmentation_metrics
from encnet_jax.models import create_model
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.state import split_model

_IMAGES = flags.DEFINE_integer("images", 2, "Images, each of another size.")
_SCALES = flags.DEFINE_list("scales", "0.5,0.75,1,1.25,1.5,1.75", "Scales.")
_BATCH = flags.DEFINE_integer("batch", 4, "Windows per batch, mirrored ones included.")
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Interleaved runs of both candidates.")
_BASE, _CROP = 520, 480
_SIZES = ((512, 683), (683, 512), (480, 640), (375, 500))  # common in ADE20K


class Images:
    """Upsampled noise with blockwise labels."""

    info = ADE20K

    def __init__(self, count):
        rng = np.random.default_rng(0)
        self.examples = []
        for index in range(count):
            h, w = _SIZES[index % len(_SIZES)]
            low_res = rng.integers(0, 256, (h // 16 + 1, w // 16 + 1, 3), np.uint8)
            image = low_res.repeat(16, 0).repeat(16, 1)[:h, :w]
            blocks = rng.integers(0, 150, (h // 64 + 1, w // 64 + 1))
            labels = blocks.repeat(64, 0).repeat(64, 1)[:h, :w].astype(np.uint8)
            self.examples.append(Example(np.ascontiguousarray(image), labels, ""))

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


class TorchEvaluation:
    """The protocol in plain PyTorch: one window and its mirror image at a time."""

    def __init__(self, model, scales, device="cpu"):
        self.model, self.scales, self.device = model, scales, device
        self.mean = torch.tensor(ADE20K.mean, device=device)[:, None, None]
        self.std = torch.tensor(ADE20K.std, device=device)[:, None, None]

    def pad(self, x):
        bottom, right = (max(_CROP - size, 0) for size in x.shape[1:])
        black = (-self.mean / self.std).expand(3, 1, 1)
        result = black.expand(3, x.shape[1] + bottom, x.shape[2] + right).clone()
        result[:, : x.shape[1], : x.shape[2]] = x
        return result

    def window(self, x):
        crop = self.pad(x)[None].contiguous(memory_format=torch.channels_last)
        logits = self.model(crop) + self.model(crop.flip(3)).flip(3)
        return logits[0, :, : x.shape[1], : x.shape[2]].exp()

    def __call__(self, image):
        x = torch.from_numpy(image).to(self.device).permute(2, 0, 1).float() / 255
        x = (x - self.mean) / self.std
        height, width = x.shape[1:]
        zeros = functools.partial(torch.zeros, device=self.device)
        total = zeros(150, height, width)
        for scale in self.scales:
            long = math.ceil(_BASE * scale)
            size = [int(s * long / max(height, width) + 0.5) for s in (height, width)]
            options = dict(mode="bilinear", align_corners=True)
            y = self.pad(F.interpolate(x[None], size, **options)[0])
            summed, count = zeros(150, *y.shape[1:]), zeros(y.shape[1:])
            stride = int(_CROP * 2 / 3)
            rows, columns = (math.ceil((s - _CROP) / stride) + 1 for s in y.shape[1:])
            for i in range(rows):
                for j in range(columns):
                    top, left = i * stride, j * stride
                    box = np.s_[..., top : top + _CROP, left : left + _CROP]
                    summed[box] += self.window(y[box])
                    count[box] += 1
            averaged = (summed / count)[:, : size[0], : size[1]]
            total += F.interpolate(averaged[None], (height, width), **options)[0]
        return total.argmax(0).cpu().numpy()

    def run(self, dataset):
        matrix = np.zeros(150 * 150, np.int64)
        for example in dataset.examples:
            cells = example.labels.astype(np.int64) * 150 + self(example.image)
            matrix += np.bincount(cells.ravel(), minlength=150 * 150)
        return segmentation_metrics(matrix.reshape(150, 150))


def encoding_protocol(scales):
    return PyTorchEncodingProtocol(
        base_size=_BASE,
        crop_size=_CROP,
        scales=scales,
        flip=True,
        stride=0,
        align_corners=True,
        mean=ADE20K.mean,
        std=ADE20K.std,
    )


def share_outside_network(model, params, batch_stats, dataset, scales):
    """Returns the share of time outside the network, with each step run to its end."""
    protocol = encoding_protocol(scales)
    folded = InferenceModel(model)
    arrays = jax.device_put(folded.arrays(params, batch_stats))
    sharding = ScoreMapSharding(150, protocol.softmax, mesh_of(jax.local_devices()[:1]))
    pool = ScoreMapPool(sharding)
    spent = 0.0

    @jax.jit
    def network(params, batch_stats, windows):
        return folded.model_def.merge(params, batch_stats)(windows).logits

    merge = jax.jit(lambda logits: merge_hflip(logits, None, True, sharding)[0])

    def apply(windows):
        nonlocal spent
        windows = jax.block_until_ready(jax.device_put(add_hflip(windows, True)))
        started = time.perf_counter()
        logits = network(*arrays, windows).block_until_ready()
        spent += time.perf_counter() - started
        return merge(logits).block_until_ready(), None, None

    def run(examples):
        images = ((example, example.image) for example in examples)
        for image in run_sliding_window(
            images, apply, protocol, pool, _BATCH.value // 2
        ):
            confusion_matrix_np(image.key.labels, image.score_map.labels().fetch(), 150)

    run(dataset.examples[:1])  # warms up
    spent, started = 0.0, time.perf_counter()
    run(dataset.examples)
    return 1 - spent / (time.perf_counter() - started)


def evaluate(predict_batches, arrays, dataset, batch):
    """Returns the metrics of a data set by encnet_jax."""
    accumulator = MetricAccumulator(len(dataset), 150)
    for prediction in predict_dataset(
        predict_batches, *arrays, dataset, batch_size=batch
    ):
        accumulator.add(ImageMetrics.of(prediction, 150))
    return accumulator.over_hosts().results("skip")


def main(arguments):
    cli.reject_positional(arguments)
    scales = cli.numbers("scales", _SCALES.value)
    torch.set_num_threads(os.cpu_count())
    reference = EncNet(150)
    weights = random_weights(reference)
    reference = reference.eval().to(memory_format=torch.channels_last)
    model = create_model("encnet", num_classes=150, aux_head=False, rngs=nnx.Rngs(0))
    load_torch_weights(model, weights, source="pytorch_encoding")
    _, params, batch_stats = split_model(model)
    mesh = mesh_of(jax.local_devices()[:1])
    predict_batches = make_window_fn(model, ADE20K, encoding_protocol(scales), mesh)
    dataset, small = Images(_IMAGES.value), Images(1)

    with torch.inference_mode():
        theirs = TorchEvaluation(reference, scales)
        expected = theirs(small.examples[0].image)  # also warms both up
        examples = [(0, small.examples[0])]
        mine = next(predict_batches(params, batch_stats, examples, _BATCH.value))
        agreement = (mine.labels == expected).mean()
        print(f"pixels that agree: {agreement:.5f}")
        assert agreement > 0.999
        ratios, count = [], len(dataset)
        for _ in range(_ROUNDS.value):
            started = time.perf_counter()
            theirs.run(dataset)
            middle = time.perf_counter()
            evaluate(predict_batches, (params, batch_stats), dataset, _BATCH.value)
            ended = time.perf_counter()
            outside = share_outside_network(model, params, batch_stats, dataset, scales)
            seconds = ended - middle
            ratios.append((middle - started) / seconds)
            print(
                f"torch {count / (middle - started):.4f} images/s   "
                f"encnet_jax {count / seconds:.4f} images/s   ratio {ratios[-1]:.2f}   "
                f"outside the network {outside:.1%}"
            )


if __name__ == "__main__":
    cli.run(main)
