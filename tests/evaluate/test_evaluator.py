"""Evaluation: every image once, whatever the batches, devices and hosts."""

import os
import socket
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax import config as configuration
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.datasets import Example
from encnet_jax.evaluate.accumulator import ImageMetrics, MetricAccumulator
from encnet_jax.evaluate.evaluator import (
    _read_ahead,
    batches_of_one_size,
    make_whole_image_fn,
    make_window_fn,
    predict_dataset,
    predict_fn_from_config,
)
from encnet_jax.inference.tta import MmsegProtocol, PyTorchEncodingProtocol
from encnet_jax.models import create_model
from encnet_jax.models.segmentation import SegmentationModel, SegmentationOutput
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.state import split_model
from tests.random_module import random_module

INFO = DatasetInfo("fake", ("a", "b", "c"), ((0, 0, 0),) * 3, {})
COMPILED = "/jax/core/compile/backend_compile_duration"


class Brightest(SegmentationModel):
    """Labels each pixel with its brightest channel; the receptive field is 1x1."""

    align_corners = True

    def __init__(self):
        self.factor = nnx.Param(jnp.ones(()))

    def forward_low_res(self, images):
        # The class of channel 0 is present if the left part is bright.
        presence = images[:, :, 0].mean((1, 2))[:, None] * jnp.ones(3)
        return SegmentationOutput(images * self.factor[...], presence)


class FakeDataset:
    """Images of several sizes with labels that are partly wrong and partly ignored."""

    info = INFO

    def __init__(self, sizes):
        rng = np.random.default_rng(0)
        self.examples = []
        for index, (h, w) in enumerate(sizes):
            image = rng.integers(0, 256, (h, w, 3), np.uint8)
            labels = rng.integers(0, 3, (h, w)).astype(np.uint8)
            labels[0] = 255
            self.examples.append(Example(image, labels, str(index)))

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def matrix_by_hand(dataset):
    matrix = np.zeros((3, 3), np.int64)
    mean, std = np.array(INFO.mean), np.array(INFO.std)
    for example in dataset.examples:
        predicted = ((example.image / 255 - mean) / std).argmax(-1)
        valid = example.labels != 255
        np.add.at(matrix, (example.labels[valid], predicted[valid]), 1)
    return matrix


def encoding(**settings):
    return PyTorchEncodingProtocol(
        **dict(
            base_size=16,
            crop_size=16,
            scales=(1.0,),
            flip=True,
            stride=0,
            align_corners=True,
            mean=INFO.mean,
            std=INFO.std,
        )
        | settings
    )


def predictions_of(predict_batches, model, dataset, batch_size=2, skip=()):
    _, *arrays = split_model(model)
    return predict_dataset(
        predict_batches, *arrays, dataset, batch_size=batch_size, skip=skip
    )


def run(predict_batches, model, dataset, batch_size=2, done=()):
    """Returns metrics over the hosts, and the metrics of the images of this host."""
    accumulator = MetricAccumulator(len(dataset), 3)
    accumulator.add_known(done)
    skip = {metrics.index for metrics in done}
    found = []
    for prediction in predictions_of(predict_batches, model, dataset, batch_size, skip):
        found.append(ImageMetrics.of(prediction, 3))
        accumulator.add(found[-1])
    totals = accumulator.over_hosts()
    return {**totals.results("skip"), "image_iou": totals.image_iou}, found


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_image_counts_once_whatever_the_batches(batch_size):
    dataset = FakeDataset([(5, 7), (6, 4), (5, 7), (5, 7), (6, 4)])
    model = Brightest()
    predict_batches = make_whole_image_fn(model, INFO, mesh=mesh_of(jax.devices()[:1]))
    results, _ = run(predict_batches, model, dataset, batch_size)
    np.testing.assert_array_equal(results["confusion_matrix"], matrix_by_hand(dataset))
    assert results["images"] == 5
    predictions = list(predictions_of(predict_batches, model, dataset, batch_size))
    assert sorted(p.index for p in predictions) == [0, 1, 2, 3, 4]
    for prediction in predictions:
        assert prediction.example is dataset[prediction.index]
        assert prediction.labels.shape == prediction.example.labels.shape


def test_one_scale_in_one_window_is_the_whole_image():
    dataset, model = FakeDataset([(12, 16), (16, 9), (16, 16)]), Brightest()
    predict_batches = make_window_fn(model, INFO, encoding())
    results, _ = run(predict_batches, model, dataset)
    np.testing.assert_array_equal(results["confusion_matrix"], matrix_by_hand(dataset))


def compilations(predict_batches, model, dataset):
    """Returns how many programs an evaluation compiles."""
    seen = []

    def listen(event, duration, **_):
        if event == COMPILED:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(predict_batches, model, dataset, batch_size=16)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)


@pytest.mark.parametrize(
    "rules", ["encoding", pytest.param("mmseg", marks=pytest.mark.slow)]
)
def test_hundred_sizes_at_six_scales_compile_four_programs(rules):
    settings = dict(crop_size=24, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75))
    model = Brightest()
    if rules == "encoding":
        protocol = encoding(base_size=26, **settings)
    else:
        fields = vars(encoding(base_size=4000, **settings))
        protocol = MmsegProtocol(short_size=48, **fields)
    dataset = FakeDataset([(60 + n, 160 - n) for n in range(100)])
    predict_batches = make_window_fn(model, INFO, protocol, mesh_of(jax.devices()[:1]))
    assert 1 <= compilations(predict_batches, model, dataset) <= 4


def small_encnet():
    return random_module(
        create_model,
        "encnet",
        num_classes=3,
        backbone="tiny",
        stem="plain",
        width=2,
        head_channels=4,
        num_codes=2,
    )


def predict_fns(model, devices):
    mesh = mesh_of(jax.local_devices()[:devices])
    protocol = encoding(base_size=40, crop_size=32, scales=(0.5, 1.0, 1.5))
    whole = make_whole_image_fn(model, INFO, mesh=mesh)
    return {
        "whole": whole,
        "windows": make_window_fn(model, INFO, protocol, mesh),
    }


@pytest.mark.parametrize("way", ["whole", "windows"])
def test_devices_share_the_work_and_change_no_count(way):
    model, dataset = small_encnet(), FakeDataset([(33, 40), (40, 33), (33, 40)])
    results = [run(predict_fns(model, n)[way], model, dataset)[0] for n in (1, 2, 8)]
    assert results[0]["confusion_matrix"].sum() == 2 * 32 * 40 + 39 * 33
    for other in results[1:]:
        for key in ("confusion_matrix", "presence_average_precision", "image_iou"):
            np.testing.assert_array_equal(other[key], results[0][key])


HOST = """
import sys
import threading
import jax
import numpy as np
process, port, out = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
from tests.evaluate import test_evaluator as shared
dataset, model = shared.FakeDataset(shared.SHARED), shared.small_encnet()
seen = []
for way, predict_batches in shared.predict_fns(model, None).items():
    results, found = shared.run(predict_batches, model, dataset)
    seen += [metrics.index for metrics in found]
    for key in shared.COMPARED:
        np.save(f"{out}/{process}-{way}-{key}.npy", results[key])
np.save(f"{out}/{process}-seen.npy", seen)
"""
SHARED = [(33, 40), (40, 33), (33, 40), (40, 33), (33, 40)]
COMPARED = ("confusion_matrix", "presence_average_precision", "image_iou")


def test_two_processes_share_the_images_and_agree_with_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, process, port, str(tmp_path)],
            env={**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()},
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in "01"
    ]
    for host in hosts:
        _, text = host.communicate(timeout=200)
        assert host.returncode == 0, text
    model, dataset = small_encnet(), FakeDataset(SHARED)
    for way, predict_batches in predict_fns(model, 1).items():
        alone, _ = run(predict_batches, model, dataset)
        for process in "01":
            for key in COMPARED:
                stored = np.load(tmp_path / f"{process}-{way}-{key}.npy")
                np.testing.assert_array_equal(stored, alone[key])
    seen = [sorted(set(np.load(tmp_path / f"{p}-seen.npy"))) for p in "01"]
    assert seen == [[0, 2, 4], [1, 3]]


def test_finished_images_are_counted_but_not_scored_again():
    dataset, model = FakeDataset([(5, 7), (6, 4), (5, 7)]), Brightest()
    predict_batches = make_whole_image_fn(model, INFO)
    whole, found = run(predict_batches, model, dataset)
    done = [ImageMetrics.from_json(m.to_json(), 3) for m in found if m.index != 1]
    results, again = run(predict_batches, model, dataset, done=done)
    assert [metrics.index for metrics in again] == [1]
    for key in COMPARED:
        np.testing.assert_array_equal(results[key], whole[key])


def test_presence_of_an_image_is_the_mean_over_its_windows():
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, 16:] = 255
    dataset, model = FakeDataset([(1, 1)]), Brightest()
    dataset.examples = [Example(image, np.zeros((16, 32), np.uint8), "half")]
    protocol = encoding(base_size=32, flip=False, stride=16)
    (prediction,) = predictions_of(
        make_window_fn(model, INFO, protocol), model, dataset
    )
    black, white = (
        1 / (1 + np.exp(-np.mean((v - np.array(INFO.mean)) / INFO.std))) for v in (0, 1)
    )
    np.testing.assert_allclose(
        prediction.presence, [(black + white) / 2] * 3, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (dict(mode="slide", crop_size=12), (2, 12, 12, 3)),
        (dict(scales=(1.0,), crop_size=12), (2, 12, 12, 3)),
        (dict(scales=(1.0,), flip=True, crop_size=12), (2, 12, 12, 3)),
        (dict(mode="whole"), (2, 12, 10, 3)),
        (dict(mode="whole", base_size=10), (2, 10, 8, 3)),
        (dict(mode="whole", protocol="mmseg", short_size=10), (1, 12, 10, 3)),
        (dict(mode="slide", protocol="mmseg", crop_size=6), (2, 6, 6, 3)),
    ],
)
def test_configuration_sets_the_shapes_that_the_network_sees(settings, shape):
    shapes = []

    class Counting(Brightest):
        def forward_low_res(self, images):
            shapes.append(images.shape)
            return super().forward_low_res(images)

    config = configuration.default()
    config.mesh.data = 1
    config.data.base_size = 12
    config.evaluation.update(settings)
    predict_batches = predict_fn_from_config(config, Counting(), INFO)
    results, _ = run(predict_batches, Counting(), FakeDataset([(18, 15)]))
    assert set(shapes) == {shape} and results["images"] == 1


THIN = [(2, 1100), (1100, 2), (1, 1), (1, 7), (3, 2)]


@pytest.mark.parametrize(
    "settings",
    [
        dict(mode="whole"),
        dict(mode="whole", base_size=20, align_corners=True),
        dict(mode="slide"),
        dict(mode="slide", crop_size=1, base_size=4),
        dict(scales=(0.25, 1.75), flip=True),
        dict(protocol="mmseg", mode="slide", crop_size=24, flip=True),
        dict(protocol="mmseg", mode="slide", crop_size=16, base_size=32),
        dict(protocol="mmseg", mode="whole", short_size=16, base_size=64),
        dict(protocol="mmseg", mode="whole", scales=(0.1, 1.0)),
    ],
)
def test_images_a_few_pixels_wide_are_scored_once(settings):
    config = configuration.default()
    config.mesh.data = 1
    config.data.base_size, config.data.crop_size = 48, 32
    config.evaluation.update(settings)
    dataset = FakeDataset(THIN)
    dataset.examples = [
        example._replace(labels=example.labels * 0) for example in dataset.examples
    ]
    predict_batches = predict_fn_from_config(config, Brightest(), INFO)
    results, found = run(predict_batches, Brightest(), dataset)
    assert sorted(metrics.index for metrics in found) == [0, 1, 2, 3, 4]
    assert results["confusion_matrix"].sum() == sum(h * w for h, w in THIN)


def test_an_abandoned_iterator_does_not_wait_for_its_reads():
    class Slow:
        def __getitem__(self, index):
            return index and release.wait()

    release = threading.Event()
    timer = threading.Timer(5, release.set)
    timer.start()
    examples = _read_ahead(Slow(), range(3), 2)
    assert next(examples) == (0, 0)
    examples.close()
    assert not release.is_set()
    release.set()
    timer.cancel()


def test_images_of_many_sizes_do_not_all_wait():
    read = []

    def examples():
        for index, width in enumerate((8, 8, *range(9, 40), 8)):
            read.append(index)
            yield index, Example(np.zeros((8, width, 3), np.uint8), np.zeros(()), "")

    seen, batches = [], batches_of_one_size(examples(), 3)
    for batch in batches:
        assert len({example.image.shape for _, example in batch}) == 1
        seen += [index for index, _ in batch]
        assert len(read) - len(seen) < 4 * 3  # four batches at most
    assert sorted(seen) == list(range(34))
    assert seen[:2] == [0, 1]  # the most of one size go first
