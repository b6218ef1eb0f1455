"""Multi-scale evaluation against plain PyTorch: python -m benchmarks.evaluation.

EncNet-50 with 150 classes and windows of 480 pixels under PyTorch-Encoding's protocol.
Both candidates have the same weights and images; outputs are compared first, then runs
are interleaved. Also prints the share of time spent outside the network: resizing,
accumulation, arg max and the confusion matrix. Needs the extra `bench`.
"""

import os
import time

import jax
import torch
from absl import flags
from flax import nnx

from benchmarks.torch_encnet import EncNet, random_weights
from benchmarks.torch_evaluation import TorchEvaluation
from benchmarks.windows import Images, encoding_protocol, evaluate
from encnet_jax import cli
from encnet_jax.convert.load import load_torch_weights
from encnet_jax.data.dataset_info import ADE20K
from encnet_jax.evaluate.evaluator import make_window_fn
from encnet_jax.inference.folding import InferenceModel
from encnet_jax.inference.score_map import ScoreMapPool, ScoreMapSharding
from encnet_jax.inference.sliding_window import (
    add_hflip,
    merge_hflip,
    run_sliding_window,
)
from encnet_jax.metrics import confusion_matrix_np
from encnet_jax.models import create_model
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.state import split_model

_IMAGES = flags.DEFINE_integer("images", 2, "Images, each of another size.")
_SCALES = flags.DEFINE_list("scales", "0.5,0.75,1,1.25,1.5,1.75", "Scales.")
_BATCH = flags.DEFINE_integer("batch", 4, "Windows per batch, mirrored ones included.")
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Interleaved runs of both candidates.")


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


def main(arguments):
    cli.reject_positional(arguments)
    scales = cli.numbers("scales", _SCALES.value)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
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
